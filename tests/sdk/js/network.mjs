// The SDK repeats a request when the connection breaks. An answer that is lost leaves a message behind.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import test from "node:test";
import { Client } from "@upstash/qstash";

import { client, ended, ids, receiverUrl, server, token, unique } from "./support.mjs";

/** A way to the server that swallows the first answer and closes the connection. */
async function swallowing() {
  let first = true;
  const { hostname, port } = new URL(server);
  const proxy = net.createServer((near) => {
    const far = net.connect(port, hostname);
    const swallow = first;
    first = false;
    near.pipe(far);
    if (swallow) far.once("data", () => near.destroy());
    else far.pipe(near);
    for (const socket of [near, far]) {
      socket.on("error", () => {});
      socket.on("close", () => (near.destroy(), far.destroy()));
    }
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  return proxy;
}

test("a repeat with a deduplication id makes no second message; without one it does", async () => {
  for (const [deduplicationId, count] of [[unique("dedup"), 1], [undefined, 2]]) {
    const proxy = await swallowing();
    const baseUrl = `http://127.0.0.1:${proxy.address().port}`;
    const repeating = new Client({ baseUrl, token, retry: { retries: 3, backoff: () => 1 } });
    const label = unique("label");
    const { messageId, deduplicated } = await repeating.publish({ url: `${receiverUrl}/ok`, label, deduplicationId });
    proxy.close();
    assert.equal(deduplicated, deduplicationId && true);
    await ended(messageId, "CREATED ACTIVE DELIVERED");
    const { logs } = await client.logs({ filter: { label, state: "CREATED" } });
    assert.equal(new Set(ids(logs)).size, count);
  }
});
