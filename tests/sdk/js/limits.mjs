// The limits of the API itself, on a server that has some: the SDK chooses its error by the answer's headers.

import assert from "node:assert/strict";
import test from "node:test";
import { QstashDailyRatelimitError, QstashRatelimitError } from "@upstash/qstash";

import { client, receiverUrl } from "./support.mjs";

/** The error that the call comes to when it is made again and again. */
async function refused(call) {
  for (let i = 0; i < 1000; i++) {
    try {
      await call();
    } catch (error) {
      return error;
    }
  }
  throw new Error("it was never refused");
}

function hasLimits(error, limit) {
  assert.equal(error.limit, limit);
  assert.equal(error.remaining, "0");
  assert.match(error.reset, /^\d{10}$/);
  const wait = Number(error.reset) - Date.now() / 1000;
  assert(wait > -60 && wait <= 86_400, `reset ${error.reset}`);
}

test("too many requests in a second", async () => {
  const error = await refused(() => client.logs({ count: 1 }));
  assert.equal(error.constructor, QstashRatelimitError);
  hasLimits(error, process.env.REQUESTS_PER_SECOND);
  const wait = Number(error.reset) - Date.now() / 1000;
  assert(wait <= 5, `reset ${error.reset}`);
});

test("too many messages in a day", async () => {
  const error = await refused(() => client.publish({ url: `${receiverUrl}/ok` }));
  assert.equal(error.constructor, QstashDailyRatelimitError);
  hasLimits(error, process.env.MESSAGES_PER_DAY);
  await assert.rejects(client.batch([{ url: `${receiverUrl}/ok` }]), QstashDailyRatelimitError);
  const queue = client.queue({ queueName: "q" });
  await assert.rejects(queue.enqueue({ url: `${receiverUrl}/ok` }), QstashDailyRatelimitError);
});

test("all checks were made", () => {});
