// Calls everything that the official JavaScript SDK can do. Started by tests/it/sdk.rs, which says where everything is.

import assert from "node:assert/strict";
import test from "node:test";

import "./messages.mjs";
import "./cancel.mjs";
import "./providers.mjs";
import "./batch.mjs";
import "./url_groups.mjs";
import "./queues.mjs";
import "./schedules.mjs";
import "./flow_control.mjs";
import "./dlq.mjs";
import "./logs.mjs";
import "./receiver.mjs";
import "./callbacks.mjs";
import "./network.mjs";
import "./keys.mjs";
import { called, methods } from "./support.mjs";

test("all checks were made: every public method was called", () => {
  assert.deepEqual([...methods].filter((method) => !called.has(method)), []);
});
