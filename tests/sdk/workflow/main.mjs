// Plays workflow apps on an official SDK, unmodified, against the server. Started by tests/it/workflows.rs, or by hand:
//
//   QSTASH_URL=… QSTASH_TOKEN=… QSTASH_CURRENT_SIGNING_KEY=… QSTASH_NEXT_SIGNING_KEY=… node main.mjs 1.3.3 [PART OF A NAME…]
//
// The server must reach this machine's loopback address. For webhooks the token must be base64 of a JSON object that has
// "UserID", as the server makes it.

import test from "node:test";

import "./scenarios/steps.mjs";
import "./scenarios/triggers.mjs";
import "./scenarios/calls.mjs";
import "./scenarios/failures.mjs";
import "./scenarios/events.mjs";
import "./scenarios/webhooks.mjs";
import "./scenarios/invoke.mjs";
import "./scenarios/cancel.mjs";
import "./scenarios/logs.mjs";
import "./scenarios/dlq.mjs";
import "./scenarios/large.mjs";
import "./scenarios/losses.mjs";
import { checkAll, close } from "./app.mjs";
import { scenarios } from "./support.mjs";

// Most scenarios wait: for a sleep, a retry, a timeout.
const AT_ONCE = 8;

test("scenarios side by side", { concurrency: AT_ONCE }, async (t) => {
  const together = scenarios.filter(({ alone }) => !alone);
  await Promise.all(together.map(({ name, play }) => t.test(name, play)));
});

for (const { name, play } of scenarios.filter(({ alone }) => alone)) test(name, play);

test("all checks were made: nothing came after the ends", () => {
  try {
    checkAll();
  } finally {
    close();
  }
});
