// The log of runs.

import assert from "node:assert/strict";

import { thirdParty, workflow } from "../app.mjs";
import { since } from "../sdk.mjs";
import { client, eventually, scenario, unique } from "../support.mjs";

const isTime = (value) => assert(Number.isInteger(value) && Math.abs(value - Date.now()) < 3_600_000, `${value} is not about now`);

const ids = ({ runs }) => runs.map(({ workflowRunId }) => workflowRunId);

scenario("logs", "a run with steps of all kinds", {}, async () => {
  const eventId = unique("event");
  const label = unique("label");
  const other = thirdParty([{ body: '{"rate":1.1}', headers: { "Content-Type": "application/json" } }]);
  const flow = await workflow(async (context, did) => {
    const { amount } = await context.run("charge", () => did("charge", { amount: context.requestPayload.order * 2 }));
    await context.sleep("cool down", 1);
    await context.call("rates", { url: other.url, method: "POST", body: '{"from":"EUR"}', headers: { "X-Key": "k" } });
    await context.waitForEvent("paid?", eventId, { timeout: "1s" });
    await Promise.all([
      context.run("a", () => did("a", "A")),
      context.run("b", () => did("b")),
    ]);
    return { amount };
  });
  const run = await flow.trigger({ body: { order: 7 }, label });
  assert.deepEqual(await run.result(), { amount: 14 });
  const log = await run.ended("RUN_SUCCESS");
  const { workflowRunCreatedAt, workflowRunCompletedAt, steps, ...rest } = log;
  isTime(workflowRunCreatedAt);
  isTime(workflowRunCompletedAt);
  assert(workflowRunCompletedAt > workflowRunCreatedAt);
  assert.equal(String(workflowRunCreatedAt), run.requests[0].headers["upstash-workflow-createdat"]);
  assert.deepEqual(
    [rest.workflowRunId, rest.workflowUrl, rest.workflowState, JSON.parse(rest.workflowRunResponse), rest.label, rest.labels],
    [run.id, flow.url, "RUN_SUCCESS", { amount: 14 }, label, [label]]
  );
  for (const absent of ["invoker", "dlqId", "failureFunction"]) assert(!(absent in rest), absent);

  const shown = steps.map(({ type, steps }) => [type, steps.map((step) => step.stepName)]);
  assert.deepEqual(shown, [
    ["sequential", ["init"]], ["sequential", ["charge"]], ["sequential", ["cool down"]], ["sequential", ["rates"]],
    ["sequential", ["paid?"]], ["parallel", ["a", "b"]],
  ]);
  const [[init], [charge], [sleep], [call], [wait], group] = steps.map(({ steps }) => steps);
  for (const step of [init, charge, sleep, call, wait, ...group]) {
    assert.equal(step.state, "STEP_SUCCESS", step.stepName);
    assert.match(step.messageId, /\S/);
    isTime(step.createdAt);
  }
  assert.deepEqual([init.stepType, init.callType, init.concurrent, JSON.parse(init.out)], ["Initial", "step", 1, { order: 7 }]);
  assert.deepEqual(
    [charge.stepType, charge.stepId, charge.callType, charge.concurrent, JSON.parse(charge.out)],
    ["Run", 1, "step", 1, { amount: 14 }]
  );
  assert.deepEqual([sleep.stepType, sleep.stepId, sleep.sleepFor], ["SleepFor", 2, 1]);
  assert.deepEqual(
    [call.stepType, call.stepId, call.callUrl, call.callMethod, call.callHeaders["X-Key"], call.callResponseStatus],
    ["Call", 3, other.url, "POST", ["k"], 200]
  );
  assert.equal(call.callResponseBody, '{"rate":1.1}');
  assert.deepEqual(call.callResponseHeaders["Content-Type"], ["application/json"]);
  assert.deepEqual(
    [wait.stepType, wait.stepId, wait.waitEventId, wait.waitTimeoutDuration, wait.waitTimeout],
    ["Wait", 4, eventId, "1s", true]
  );
  isTime(wait.waitTimeoutDeadline);
  assert.deepEqual(group.map(({ stepId, concurrent }) => [stepId, concurrent]), [[5, 2], [6, 2]]);
});

scenario("logs", "a run that is at work, and one whose step is tried again", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      await context.run("one", () => did("one"));
      await context.run("fails", () => {
        did("fails");
        throw new Error("kaput");
      });
    },
    // Not before the scenario is over.
    { config: { retries: 1, retryDelay: "3600000" } }
  );
  const run = await flow.trigger();
  await run.requested(2);
  const next = await eventually("the failed attempt is shown", async () => {
    const { runs } = await client.logs({ workflowRunId: run.id });
    assert.equal(runs[0].workflowState, "RUN_STARTED");
    const last = runs[0].steps.at(-1);
    return last.type === "next" && last.steps[0].errors?.length === 1 && last.steps[0];
  });
  assert.equal(next.state, "STEP_RETRY");
  assert.equal(next.messageId, run.requests[1].headers["upstash-message-id"]);
  const [{ status, body }] = next.errors;
  assert.deepEqual([status, JSON.parse(body).message], [500, "kaput"]);
  if (since("1.3.3")) assert.equal(next.stepName, "fails");
  const cancelled = since("1.3.3") ? await client.cancel(run.id) : await client.cancel({ ids: run.id });
  assert.deepEqual(cancelled, { cancelled: 1 });
  await run.ended("RUN_CANCELED");
  run.counted({ step: 2 });
});

scenario("logs", "pages, until there is no cursor", {}, async () => {
  const flow = await workflow(async (context, did) => await context.run("one", () => did("one", 1)));
  const started = await flow.triggerAll(Array.from({ length: 25 }, () => ({})));
  for (const run of started) await run.ended("RUN_SUCCESS");
  const seen = [];
  const sizes = [];
  let cursor;
  do {
    const page = await client.logs({ workflowUrl: flow.url, count: 10, cursor });
    seen.push(...ids(page));
    sizes.push(page.runs.length);
    cursor = page.cursor;
  } while (cursor);
  assert.deepEqual(sizes, [10, 10, 5]);
  assert.deepEqual([...seen].sort(), started.map(({ id }) => id).sort());
  // The newest first.
  const { runs } = await client.logs({ workflowUrl: flow.url, count: 25 });
  const times = runs.map(({ workflowRunCreatedAt }) => workflowRunCreatedAt);
  assert.deepEqual(times, [...times].sort((a, b) => b - a));
  assert.equal((await client.logs({ workflowUrl: flow.url })).runs.length, 10);
});

scenario("logs", "each filter by itself", {}, async () => {
  const label = unique("label");
  const flow = await workflow(async (context, did) => {
    await context.run("one", () => did("one"));
    if (context.requestPayload === "sleeps") await context.sleep("long", 3600);
  });
  const [labelled, plain, asleep] = await flow.triggerAll([{ label }, {}, { body: "sleeps" }]);
  const { workflowRunCreatedAt } = await labelled.ended("RUN_SUCCESS");
  await plain.ended("RUN_SUCCESS");
  await asleep.requested(2);
  const all = [labelled, plain, asleep].map(({ id }) => id);
  const cases = [
    [{ workflowUrl: flow.url }, all],
    [{ workflowUrl: `${flow.url}/` }, []],
    [{ workflowRunId: plain.id }, [plain.id]],
    [{ workflowRunId: unique("none") }, []],
    [{ workflowRunId: labelled.id, workflowCreatedAt: workflowRunCreatedAt }, [labelled.id]],
    [{ workflowRunId: labelled.id, workflowCreatedAt: workflowRunCreatedAt + 1 }, []],
    [{ label }, [labelled.id]],
    [{ workflowUrl: flow.url, state: "RUN_STARTED" }, [asleep.id]],
    [{ workflowUrl: flow.url, state: "RUN_SUCCESS" }, [labelled.id, plain.id]],
    [{ workflowUrl: flow.url, state: "RUN_FAILED" }, []],
  ];
  if (since("1.3.3")) {
    const hour = 3_600_000;
    const messageId = plain.requests[0].headers["upstash-message-id"];
    cases.push(
      ...[
        [{ label: [label, unique("none")] }, [labelled.id]],
        [{ workflowUrl: flow.url, fromDate: Date.now() - hour, toDate: Date.now() + hour }, all],
        [{ workflowUrl: flow.url, fromDate: Date.now() + hour }, []],
        [{ workflowUrl: flow.url, toDate: Date.now() - hour }, []],
        [{ workflowUrl: flow.url, callerIp: "127.0.0.1" }, all],
        [{ workflowUrl: flow.url, callerIp: "192.0.2.1" }, []],
        [{ workflowUrl: flow.url, flowControlKey: unique("none") }, []],
        [{ messageId }, [plain.id]],
      ].map(([filter, expected]) => [{ filter }, expected])
    );
  }
  for (const [filter, expected] of cases) {
    assert.deepEqual(ids(await client.logs(filter)).sort(), [...expected].sort(), JSON.stringify(filter));
  }
  await (since("1.3.3") ? client.cancel(asleep.id) : client.cancel({ ids: asleep.id }));
  await asleep.ended("RUN_CANCELED");
});

scenario("rest", "what is secret is not shown", { from: "1.3.3" }, async () => {
  const flow = await workflow(async (context, did) => await context.run("one", () => did("one", context.requestPayload)));
  const run = await flow.trigger({
    body: "secret payload", headers: { "X-Secret": "secret header", "X-Tenant": "acme" },
    redact: { body: true, header: ["X-Secret"] },
  });
  // The app gets it all.
  assert.equal(await run.result(), "secret payload");
  assert.equal(run.requests[0].headers["x-secret"], "secret header");
  run.counted({ step: 2 });
  const log = await run.ended("RUN_SUCCESS");
  const [init] = log.steps[0].steps;
  assert.match(init.out, /^REDACTED:/);
  assert.doesNotMatch(JSON.stringify(log.steps[0]), /secret (payload|header)/);
});
