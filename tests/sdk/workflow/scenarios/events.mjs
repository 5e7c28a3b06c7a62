// Events: waiting for them, telling of them, and what comes too late or too early.

import assert from "node:assert/strict";

import { arrived, thirdParty, workflow } from "../app.mjs";
import { client, eventually, scenario, unique } from "../support.mjs";

/** A workflow that waits for the event in its payload. */
const waiting = (timeout = "1h") =>
  workflow(async (context, did) => {
    const result = await context.waitForEvent("wait", context.requestPayload, { timeout });
    return await context.run("after", () => did("after", result));
  });

const waiters = (eventId) => client.getWaiters({ eventId });

/** Waits until so many runs wait for an event; the waiters. */
const waitersOf = (eventId, count = 1) =>
  eventually(`${count} waiters for ${eventId}`, async () => {
    const list = await waiters(eventId);
    return list.length === count && list;
  });

scenario("events", "a run waits for an event", {}, async () => {
  const flow = await waiting();
  const eventId = unique("event");
  const run = await flow.trigger({ body: eventId, headers: { "X-Tenant": "acme" } });
  const [waiter] = await waitersOf(eventId);
  assert.deepEqual([waiter.url, waiter.timeoutUrl], [flow.url, flow.url]);
  assert(Math.abs(waiter.deadline - Date.now() / 1000 - 3600) < 60, `deadline ${waiter.deadline}`);
  for (const headers of [waiter.headers, waiter.timeoutHeaders]) {
    assert(!Object.keys(headers).some((name) => name.toLowerCase() === "authorization"));
  }
  const notified = await client.notify({ eventId, eventData: { paid: true } });
  assert.equal(notified.length, 1);
  const [{ messageId, workflowRunId, waiter: told }] = notified;
  assert.equal(told.url, flow.url);
  assert.equal(workflowRunId, run.id);
  assert.deepEqual(await run.result(), { eventData: { paid: true }, timeout: false });
  run.counted({ step: 3 });
  run.executed({ after: 1 });
  assert.equal(run.requests[1].headers["upstash-message-id"], messageId);
  assert.equal(run.requests[1].headers["x-tenant"], "acme");
  assert.deepEqual(await waiters(eventId), []);
  await run.ended("RUN_SUCCESS");
});

scenario("events", "an event that doesn't come in time", {}, async () => {
  const flow = await waiting(1);
  const eventId = unique("event");
  const run = await flow.trigger({ body: eventId, headers: { "X-Tenant": "acme" } });
  assert.deepEqual(await run.result(), { timeout: true });
  run.counted({ step: 3 });
  assert(run.requests[1].at - run.requests[0].at >= 990);
  assert.equal(run.requests[1].headers["x-tenant"], "acme");
  assert.deepEqual(await client.notify({ eventId, eventData: "late" }), []);
  await run.ended("RUN_SUCCESS");
});

scenario("events", "an event that nobody waits for", {}, async () => {
  const eventId = unique("event");
  assert.deepEqual(await client.notify({ eventId, eventData: "gone" }), []);
  assert.deepEqual(await waiters(eventId), []);
  const flow = await waiting(1);
  const run = await flow.trigger({ body: eventId });
  assert.equal((await run.result()).timeout, true);
  run.counted({ step: 3 });
});

scenario("events", "an event that several runs wait for", {}, async () => {
  const flow = await waiting();
  const eventId = unique("event");
  const started = await flow.triggerAll([1, 2, 3].map(() => ({ body: eventId })));
  await waitersOf(eventId, 3);
  const notified = await client.notify({ eventId, eventData: "all" });
  assert.deepEqual(notified.map(({ workflowRunId }) => workflowRunId).sort(), started.map(({ id }) => id).sort());
  for (const run of started) {
    assert.deepEqual(await run.result(), { eventData: "all", timeout: false });
    run.counted({ step: 3 });
  }
});

scenario("events", "event data of all kinds", {}, async () => {
  const flow = await waiting();
  const cases = [
    [undefined, undefined], ["", undefined], ["no JSON", "no JSON"], ["ünïcode ✓ 😀", "ünïcode ✓ 😀"], [{ a: [1] }, { a: [1] }],
    [12, 12], ["x".repeat(1_000_000), "x".repeat(1_000_000)],
  ];
  for (const [eventData, expected] of cases) {
    const eventId = unique("event");
    const run = await flow.trigger({ body: eventId });
    await waitersOf(eventId);
    assert.equal((await client.notify({ eventId, eventData })).length, 1);
    const { eventData: got, timeout } = await run.result();
    assert.equal(timeout, false);
    assert.deepEqual(got, expected);
    run.counted({ step: 3 });
  }
});

scenario("events", "an event's name with everything in it", {}, async () => {
  const flow = await waiting();
  const eventId = unique("event.of:ünï ~all@kinds&more=1");
  const run = await flow.trigger({ body: eventId });
  await waitersOf(eventId);
  assert.equal((await client.notify({ eventId, eventData: "x" })).length, 1);
  assert.equal((await run.result()).eventData, "x");
  run.counted({ step: 3 });
});

scenario("events", "a run tells another", {}, async () => {
  const flow = await waiting();
  const eventId = unique("event");
  const notifier = await workflow(async (context) => {
    const none = await context.notify("nobody", `${eventId}-none`, "x");
    const { eventId: told, eventData, notifyResponse } = await context.notify("notify", eventId, { from: "a run" });
    return { none: none.notifyResponse, told, eventData, ids: notifyResponse.map((one) => one.workflowRunId) };
  });
  const run = await flow.trigger({ body: eventId });
  await waitersOf(eventId);
  const other = await notifier.trigger();
  assert.deepEqual(await other.result(), { none: [], told: eventId, eventData: { from: "a run" }, ids: [run.id] });
  assert.deepEqual(await run.result(), { eventData: { from: "a run" }, timeout: false });
  run.counted({ step: 3 });
  other.counted({ step: 3 });
});

scenario("events", "an event that came before the run waits for it", { from: "1.3.3" }, async () => {
  const eventId = unique("event");
  const flow = await workflow(async (context, did) => {
    await context.run("before", () => did("before"));
    await context.sleep("sleep", 1);
    const results = [];
    for (let i = 1; i <= 3; i++) results.push(await context.waitForEvent(`wait ${i}`, eventId, { timeout: "1s" }));
    return results;
  });
  const run = await flow.trigger();
  const notify = (eventData) => client.notify({ eventId, eventData, workflowRunId: run.id });
  // Of this run and this event, in the order in which they came.
  assert(Array.isArray(await notify("first")));
  await notify("second");
  assert.deepEqual(await waiters(eventId), []);
  const [one, two, three] = await run.result();
  assert.deepEqual([one, two], [{ eventData: "first", timeout: false }, { eventData: "second", timeout: false }]);
  assert.equal(three.timeout, true);
  run.counted({ step: 6 });
});

scenario("events", "an event for one run of several that wait", { from: "1.3.3" }, async () => {
  const flow = await waiting();
  const eventId = unique("event");
  const [one, two] = await flow.triggerAll([{ body: eventId }, { body: eventId }]);
  await waitersOf(eventId, 2);
  const [{ workflowRunId }, ...others] = await client.notify({ eventId, eventData: "for one", workflowRunId: one.id });
  assert.deepEqual([workflowRunId, others], [one.id, []]);
  assert.equal((await one.result()).eventData, "for one");
  await waitersOf(eventId, 1);
  await client.notify({ eventId, eventData: "for all" });
  assert.equal((await two.result()).eventData, "for all");
  for (const run of [one, two]) run.counted({ step: 3 });
});

scenario("events", "a run tells another before it waits", { from: "1.3.3" }, async () => {
  const eventId = unique("event");
  const flow = await workflow(async (context) => {
    await context.sleep("sleep", 1);
    return await context.waitForEvent("wait", eventId, { timeout: "20s" });
  });
  const notifier = await workflow(async (context) => {
    await context.notify("notify", eventId, "early", context.requestPayload);
  });
  const run = await flow.trigger();
  const other = await notifier.trigger({ body: run.id });
  await other.result();
  assert.deepEqual(await run.result(), { eventData: "early", timeout: false });
  run.counted({ step: 3 });
  other.counted({ step: 2 });
});

scenario("events", "waiting beside steps, calls and sleeps", {}, async () => {
  const eventId = unique("event");
  const other = thirdParty([{ body: "called" }]);
  const flow = await workflow(async (context, did) => {
    const [ran, , call, event, late] = await Promise.all([
      context.run("run", () => did("run", "ran")),
      context.sleep("sleep", 1),
      context.call("call", { url: other.url }),
      context.waitForEvent("wait", eventId, { timeout: "1h" }),
      context.waitForEvent("late", `${eventId}-late`, { timeout: "1s" }),
    ]);
    await arrived(context, 12);
    return [ran, call.body, event.eventData, late.timeout];
  });
  const run = await flow.trigger();
  await waitersOf(eventId);
  await client.notify({ eventId, eventData: "event" });
  assert.deepEqual(await run.result(), ["ran", "called", "event", true]);
  run.counted({ step: 1 + 5 + 5, result: 1 });
  run.executed({ run: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("events", "waits for a notifier that is called, and for another workflow", {}, async () => {
  const sdkEvent = unique("sdk-event");
  const textEvent = unique("text-event");
  const objectEvent = unique("object-event");
  const notifier = thirdParty(() => {
    void waitersOf(sdkEvent).then(() => client.notify({ eventId: sdkEvent, eventData: "by the SDK" }));
    return { body: "notifying..." };
  });
  const notifierFlow = await workflow(async (context) => {
    for (const [eventId, data] of [[textEvent, "text"], [objectEvent, { with: 1 }]]) {
      await context.run(`${eventId} is waited for`, () => waitersOf(eventId));
      await context.notify(`notify ${eventId}`, eventId, data);
    }
  });
  const flow = await workflow(async (context, did) => {
    const { eventData, timeout } = await context.waitForEvent("times out", unique("random-event"), { timeout: 1 });
    assert.deepEqual([eventData, timeout], [undefined, true]);
    const config = await context.run("get config", () => did("config", "config"));
    const one = await Promise.all([
      context.call("start notifying", { url: notifier.url, method: "POST", body: config }),
      context.waitForEvent("wait sdk", sdkEvent, { timeout: "20s" }),
    ]);
    const two = await Promise.all([
      context.call("start notifying workflow", { url: notifierFlow.url, method: "POST", body: "{}", retries: 0 }),
      context.waitForEvent("wait text", textEvent, { timeout: 20 }),
    ]);
    const three = await context.waitForEvent("wait object", objectEvent, { timeout: "20s" });
    await context.sleep("sleep before the end", 1);
    await context.run("last", () => did("last"));
    await arrived(context, 16);
    return [one[0].body, one[1].eventData, Boolean(two[0].body.workflowRunId), two[1].eventData, three.eventData];
  });
  const run = await flow.trigger({ body: "payload" });
  assert.deepEqual(await run.result(), ["notifying...", "by the SDK", true, "text", { with: 1 }]);
  run.counted(16);
  run.executed({ config: 1, last: 1 });
});

scenario("events", "a run that fails waits no more", {}, async () => {
  const eventId = unique("event");
  const flow = await workflow(
    async (context) => {
      await Promise.all([
        context.waitForEvent("wait", eventId, { timeout: "1h" }),
        context.run("fails", async () => {
          await waitersOf(eventId);
          throw new Error("kaput");
        }),
      ]);
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger();
  await run.failure();
  assert.deepEqual(await waiters(eventId), []);
  assert.deepEqual(await client.notify({ eventId, eventData: "late" }), []);
  run.counted({ step: 3, failure: 1 });
});
