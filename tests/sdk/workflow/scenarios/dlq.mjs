// Dead letters of runs: runs that are resumed and started again.

import assert from "node:assert/strict";

import { runOf, thirdParty, workflow } from "../app.mjs";
import { client, eventually, gate, scenario, unique } from "../support.mjs";

/** A workflow whose second step fails as long as `broken` is true. */
async function breakable(more = {}) {
  const flow = await workflow(async (context, did) => {
    const one = await context.run("one", () => did("one", context.requestPayload));
    const two = await context.run("two", () => {
      did("two");
      if (flow.broken) throw new Error("kaput");
      return `${one}!`;
    });
    return await context.run("three", () => did("three", `${two}${context.headers.get("x-tenant")}`));
  }, more);
  flow.broken = true;
  return flow;
}

/** A run that has failed; its dead letter. */
async function failed(flow, options) {
  const run = await flow.trigger(options);
  await run.ended("RUN_FAILED");
  return [run, await letterOf(run)];
}

const letterOf = async (run) => {
  const { messages } = await client.dlq.list({ filter: { workflowRunId: run.id } });
  assert.equal(messages.length, 1);
  return messages[0];
};

const gone = async (run) => assert.deepEqual((await client.dlq.list({ filter: { workflowRunId: run.id } })).messages, []);

const again = async (what, dlqId, options = {}) => {
  const { workflowRunId, workflowCreatedAt } = await client.dlq[what]({ dlqId, ...options });
  assert(Number.isInteger(workflowCreatedAt));
  return runOf(workflowRunId);
};

scenario("logs", "a failed run is a dead letter", {}, async () => {
  const label = unique("label");
  const flow = await breakable();
  const [run, letter] = await failed(flow, { body: "payload", headers: { "X-Tenant": "acme" }, label });
  assert.deepEqual(
    [letter.workflowRunId, letter.workflowUrl, letter.url, letter.method, letter.body, letter.maxRetries, letter.label],
    [run.id, flow.url, flow.url, "POST", "payload", 0, label]
  );
  assert.equal(String(letter.workflowCreatedAt), run.requests[0].headers["upstash-workflow-createdat"]);
  assert.equal(letter.responseStatus, 500);
  assert.equal(JSON.parse(letter.responseBody).message, "kaput");
  assert.deepEqual(letter.responseHeader["Upstash-Workflow-Sdk-Version"], ["1"]);
  assert.deepEqual(letter.labels, [label]);
  assert.equal(letter.callerIP, "127.0.0.1");
  assert.match(letter.dlqId, /^[^/?#%,&\s]+$/);
  for (const [filter, count] of [
    [{ label }, 1], [{ label: unique("none") }, 0], [{ workflowUrl: flow.url }, 1], [{ workflowUrl: `${flow.url}x` }, 0],
    [{ workflowRunId: run.id, responseStatus: 500 }, 1], [{ workflowRunId: run.id, responseStatus: 404 }, 0],
    [{ workflowRunId: run.id, workflowCreatedAt: letter.workflowCreatedAt }, 1],
    [{ workflowRunId: run.id, fromDate: Date.now() + 3_600_000 }, 0],
  ]) {
    assert.equal((await client.dlq.list({ filter })).messages.length, count, JSON.stringify(filter));
  }
});

scenario("logs", "pages of dead letters", {}, async () => {
  const flow = await breakable();
  const label = unique("label");
  const started = await flow.triggerAll(Array.from({ length: 5 }, () => ({ label })));
  for (const run of started) await run.ended("RUN_FAILED");
  const seen = [];
  let cursor;
  do {
    const page = await client.dlq.list({ cursor, count: 2, filter: { label } });
    assert(page.messages.length <= 2);
    seen.push(...page.messages.map(({ workflowRunId }) => workflowRunId));
    cursor = page.cursor;
  } while (cursor);
  assert.deepEqual(seen.sort(), started.map(({ id }) => id).sort());
});

scenario("logs", "a run is started again", {}, async () => {
  const flow = await breakable();
  const [run, { dlqId }] = await failed(flow, { body: "payload", headers: { "X-Tenant": "acme" }, label: "order" });
  flow.broken = false;
  const other = await again("restart", dlqId);
  assert.notEqual(other, run);
  assert.equal(await other.result(), "payload!acme");
  other.counted({ step: 4 });
  other.executed({ one: 1, two: 1, three: 1 });
  const log = await other.ended("RUN_SUCCESS");
  assert.equal(log.label, "order");
  await gone(run);
  await run.ended("RUN_FAILED");
});

scenario("logs", "a run is resumed", {}, async () => {
  const flow = await breakable();
  const [run, { dlqId }] = await failed(flow, { body: "payload", headers: { "X-Tenant": "acme" } });
  flow.broken = false;
  const other = await again("resume", dlqId);
  assert.notEqual(other, run);
  assert.equal(await other.result(), "payload!acme");
  other.counted({ step: 3 });
  other.executed({ two: 1, three: 1 });
  await other.ended("RUN_SUCCESS");
  await gone(run);
});

scenario("logs", "a run that is resumed with more retries fails again, and is resumed again", {}, async () => {
  const flow = await breakable();
  const [, { dlqId }] = await failed(flow, { body: "payload", headers: { "X-Tenant": "acme" } });
  const second = await again("resume", dlqId, { retries: 1 });
  await second.ended("RUN_FAILED");
  assert(second.did.two >= 1);
  flow.broken = false;
  const third = await again("resume", (await letterOf(second)).dlqId);
  assert.equal(await third.result(), "payload!acme");
  third.executed({ two: 1, three: 1 });
});

scenario("logs", "several runs are started again and resumed at once", {}, async () => {
  const flow = await breakable();
  const letters = [];
  for (let i = 0; i < 4; i++) letters.push((await failed(flow, { body: `${i}`, headers: { "X-Tenant": "a" } }))[1].dlqId);
  flow.broken = false;
  const restarted = await client.dlq.restart({ dlqId: letters.slice(0, 2) });
  const resumed = await client.dlq.resume({ dlqId: letters.slice(2) });
  const results = [];
  for (const { workflowRunId } of [...restarted, ...resumed]) results.push(await runOf(workflowRunId).result());
  assert.deepEqual(results.sort(), ["0!a", "1!a", "2!a", "3!a"]);
});

scenario("logs", "runs are resumed by filter, page by page", { from: "1.3.3" }, async () => {
  const flow = await breakable();
  const label = unique("label");
  const started = await flow.triggerAll(Array.from({ length: 5 }, (_, i) => ({ body: `${i}`, label })));
  for (const run of started) await run.ended("RUN_FAILED");
  flow.broken = false;
  const resumed = [];
  let cursor;
  do {
    const page = await client.dlq.resume({ filter: { label }, count: 2, cursor });
    assert(page.workflowRuns.length <= 2);
    resumed.push(...page.workflowRuns);
    cursor = page.cursor;
  } while (cursor);
  assert.equal(resumed.length, 5);
  for (const { workflowRunId } of resumed) await runOf(workflowRunId).result();
  assert.deepEqual((await client.dlq.list({ filter: { label } })).messages, []);
});

scenario("logs", "a resumed run does again only what had no result", {}, async () => {
  const eventId = unique("event");
  const answered = gate();
  let broken = true;
  const other = thirdParty(() => ({ body: "called", after: answered.opened }));
  const flow = await workflow(async (context, did) => {
    const before = await context.run("before", () => did("before", "before"));
    const [fails, works, event, call] = await Promise.all([
      context.run("fails", async () => {
        did("fails");
        if (!broken) return "fixed";
        // Not before all the others have got as far as they can.
        await eventually("the waiter", async () => (await client.getWaiters({ eventId })).length === 1);
        await eventually("the call", () => other.requests.length > 0);
        await eventually("the branch that works", () => runOf(context.workflowRunId).of("step").length === 7);
        throw new Error("kaput");
      }),
      context.run("works", () => did("works", "works")),
      context.waitForEvent("wait", eventId, { timeout: "1h" }),
      context.call("call", { url: other.url }),
    ]);
    return [before, fails, works, event.eventData, call.body];
  });
  const [run, { dlqId }] = await failed(flow);
  run.executed({ before: 1, fails: 1, works: 1 });
  assert.deepEqual(await client.getWaiters({ eventId }), []);
  broken = false;
  answered.open();
  const resumed = await again("resume", dlqId);
  await eventually("the waiter", async () => (await client.getWaiters({ eventId })).length === 1);
  await client.notify({ eventId, eventData: "event" });
  assert.deepEqual(await resumed.result(), ["before", "fixed", "works", "event", "called"]);
  resumed.executed({ fails: 1 });
  await resumed.ended("RUN_SUCCESS");
});

scenario("logs", "a failure function that has failed is called again", {}, async () => {
  let broken = true;
  const flow = await breakable({
    failureFunction: () => {
      if (broken) throw new Error("not yet");
      return "told";
    },
  });
  const [run, { dlqId }] = await failed(flow, { body: "payload" });
  const state = (expected) =>
    eventually(`the failure function is ${expected}`, async () => (await run.ended("RUN_FAILED")).failureFunction?.state === expected);
  await state("CALLBACK_FAIL");
  assert.equal((await letterOf(run)).failureCallbackInfo.state, "CALLBACK_FAIL");
  assert.equal(run.of("failure").length, 1);
  broken = false;
  const { workflowRunId } = await client.dlq.retryFailureFunction({ dlqId });
  assert.equal(workflowRunId, run.id);
  await state("CALLBACK_SUCCESS");
  run.counted({ step: 2, failure: 2 });
  const { failureFunction } = await run.ended("RUN_FAILED");
  assert.deepEqual([failureFunction.responseStatus, JSON.parse(failureFunction.responseBody)], [200, { result: "told" }]);
  await assert.rejects(client.dlq.retryFailureFunction({ dlqId }), { status: 400 });
});

scenario("logs", "dead letters are deleted", { from: "1.3.3" }, async () => {
  const flow = await breakable();
  const label = unique("label");
  const letters = [];
  for (let i = 0; i < 4; i++) letters.push(await failed(flow, { label }));
  const [[one, { dlqId }], [, second]] = letters;
  assert.deepEqual(plain(await client.dlq.delete(dlqId)), { deleted: 1 });
  await gone(one);
  assert.deepEqual(plain(await client.dlq.delete([dlqId, second.dlqId])), { deleted: 1 });
  assert.equal((await client.dlq.delete({ filter: { label }, count: 1 })).deleted, 1);
  assert.equal((await client.dlq.delete({ filter: { label } })).deleted, 1);
  assert.deepEqual((await client.dlq.list({ filter: { label } })).messages, []);
  await one.ended("RUN_FAILED");
});

/** What went over the wire: without the fields that the SDK adds as undefined. */
const plain = (value) => JSON.parse(JSON.stringify(value));

scenario("logs", "all dead letters are started again, and deleted", { from: "1.3.3", alone: true }, async () => {
  while ((await client.dlq.delete({ all: true })).deleted > 0);
  const flow = await breakable();
  for (let i = 0; i < 3; i++) await failed(flow, { body: `${i}`, headers: { "X-Tenant": "a" } });
  const { workflowRuns } = await client.dlq.restart({ all: true }, { retries: 0 });
  assert.equal(workflowRuns.length, 3);
  for (const { workflowRunId } of workflowRuns) await runOf(workflowRunId).ended("RUN_FAILED");
  assert.equal((await client.dlq.list()).messages.length, 3);
  assert.equal((await client.dlq.delete({ all: true })).deleted, 3);
  assert.deepEqual((await client.dlq.list()).messages, []);
});
