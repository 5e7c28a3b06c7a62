// Runs that are cancelled.

import assert from "node:assert/strict";

import { thirdParty, workflow } from "../app.mjs";
import { since } from "../sdk.mjs";
import { ask, client, eventually, gate, scenario, unique } from "../support.mjs";

/** A workflow that executes one step and then sleeps for an hour. */
const sleeping = (more) =>
  workflow(async (context, did) => {
    await context.run("one", () => did("one"));
    await context.sleep("long", 3600);
    await context.run("never", () => did("never"));
  }, more);

/** What older SDKs say in another way. */
const cancel = {
  ids: (ids) => (since("1.3.3") ? client.cancel(ids) : client.cancel({ ids })),
  prefix: (urlStartingWith) =>
    since("1.3.3") ? client.cancel({ filter: { workflowUrlStartingWith: urlStartingWith } }) : client.cancel({ urlStartingWith }),
};

/** Started, and asleep. */
const asleep = async (flow, options) => {
  const run = await flow.trigger(options);
  await run.requested(2);
  return run;
};

const isCancelled = async (run, count = 2) => {
  run.counted({ step: count });
  assert.deepEqual([run.returned, run.failures], [[], []]);
  await run.ended("RUN_CANCELED");
};

scenario("invoke", "a run cancels itself", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      await context.run("one", () => did("one"));
      await context.cancel();
      await context.run("never", () => did("never"));
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger();
  await run.requested(2);
  run.executed({ one: 1 });
  await isCancelled(run);
});

scenario("invoke", "cancelled by id", {}, async () => {
  const flow = await sleeping({ failureFunction: () => {} });
  const [one, two, three] = await Promise.all([asleep(flow), asleep(flow), asleep(flow)]);
  assert.deepEqual(await cancel.ids(one.id), { cancelled: 1 });
  assert.deepEqual(await cancel.ids(one.id), { cancelled: 0 });
  assert.deepEqual(await cancel.ids([one.id, two.id, three.id]), { cancelled: 2 });
  for (const run of [one, two, three]) await isCancelled(run);
});

scenario("invoke", "cancelled by a part of the URL", {}, async () => {
  const [flow, other] = [await sleeping(), await sleeping()];
  const [one, two] = await Promise.all([asleep(flow), asleep(flow)]);
  const kept = await asleep(other);
  assert.deepEqual(await cancel.prefix(flow.url.slice(0, -2)), { cancelled: 2 });
  for (const run of [one, two]) await isCancelled(run);
  await kept.ended("RUN_STARTED");
  assert.deepEqual(await cancel.ids(kept.id), { cancelled: 1 });
  await isCancelled(kept);
});

scenario("invoke", "cancelled by other filters", { from: "1.3.3" }, async () => {
  const flow = await sleeping();
  const label = unique("label");
  const labelled = await asleep(flow, { label });
  const plain = await asleep(flow);
  assert.deepEqual(await client.cancel({ filter: { workflowUrl: flow.url.slice(0, -1) } }), { cancelled: 0 });
  assert.deepEqual(await client.cancel({ filter: { label: unique("none") } }), { cancelled: 0 });
  assert.deepEqual(await client.cancel({ filter: { label } }), { cancelled: 1 });
  await isCancelled(labelled);
  assert.deepEqual(await client.cancel({ filter: { workflowUrl: [flow.url], fromDate: Date.now() + 3_600_000 } }), { cancelled: 0 });
  assert.deepEqual(await client.cancel({ filter: { workflowUrl: flow.url } }), { cancelled: 1 });
  await isCancelled(plain);
});

scenario("invoke", "as many are cancelled as were asked for", { from: "1.3.3" }, async () => {
  const flow = await sleeping();
  const runs = await Promise.all([1, 2, 3].map(() => asleep(flow)));
  assert.deepEqual(await client.cancel({ filter: { workflowUrl: flow.url }, count: 2 }), { cancelled: 2 });
  assert.deepEqual(await client.cancel({ filter: { workflowUrl: flow.url }, count: 2 }), { cancelled: 1 });
  for (const run of runs) await isCancelled(run);
});

scenario("invoke", "cancelled while a step is executed", {}, async () => {
  const held = gate();
  const flow = await workflow(async (context, did) => {
    await context.run("held", async () => {
      await held.opened;
      did("held");
    });
    await context.run("never", () => did("never"));
  });
  const run = await flow.trigger();
  await run.waitFor(() => run.requests.length === 1);
  assert.deepEqual(await cancel.ids(run.id), { cancelled: 1 });
  held.open();
  await run.requested(1);
  // The step's result comes too late, which is no error of the endpoint.
  assert.equal(run.requests[0].status, 200);
  run.executed({ held: 1 });
  await isCancelled(run, 1);
});

scenario("invoke", "cancelled while it waits for an event and for a call", {}, async () => {
  const answered = gate();
  const other = thirdParty(() => ({ body: "late", after: answered.opened }));
  const eventId = unique("event");
  const flow = await workflow(async (context) => {
    await Promise.all([
      context.waitForEvent("wait", eventId, { timeout: "1h" }),
      context.call("call", { url: other.url }),
    ]);
  });
  const run = await flow.trigger();
  await eventually("the call", () => other.requests.length === 1);
  await eventually("the waiter", async () => (await client.getWaiters({ eventId })).length === 1);
  await run.requested(3);
  assert.deepEqual(await cancel.ids(run.id), { cancelled: 1 });
  assert.deepEqual(await client.getWaiters({ eventId }), []);
  assert.deepEqual(await client.notify({ eventId, eventData: "late" }), []);
  answered.open();
  await eventually("the call is answered", () => other.requests[0].status === 200);
  await isCancelled(run, 3);
});

scenario("invoke", "a run that has ended can't be cancelled, nor one that never was", {}, async () => {
  const flow = await workflow(async (context, did) => await context.run("one", () => did("one", 1)));
  const run = await flow.trigger();
  await run.result();
  run.counted({ step: 2 });
  assert.deepEqual(await cancel.ids(run.id), { cancelled: 0 });
  await run.ended("RUN_SUCCESS");
  assert.equal((await ask("DELETE", `/v2/workflows/runs/${unique("unknown")}?cancel=true`)).status, 404);
  // What the SDK sends when a run is over may come twice.
  for (const id of [run.id, unique("unknown")]) {
    assert.equal((await ask("DELETE", `/v2/workflows/runs/${id}?cancel=false`)).status, 200);
  }
});

scenario("invoke", "all are cancelled", { alone: true }, async () => {
  await client.cancel({ all: true });
  const [flow, other] = [await sleeping(), await sleeping()];
  const runs = [await asleep(flow), await asleep(flow), await asleep(other)];
  assert.deepEqual(await client.cancel({ all: true }), { cancelled: 3 });
  assert.deepEqual(await client.cancel({ all: true }), { cancelled: 0 });
  for (const run of runs) await isCancelled(run);
});
