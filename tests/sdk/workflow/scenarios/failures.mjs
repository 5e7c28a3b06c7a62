// Runs that fail, and who is told of it.

import assert from "node:assert/strict";

import { origin, runOf, thirdParty, workflow } from "../app.mjs";
import { logOf } from "../log.mjs";
import { WorkflowNonRetryableError, WorkflowRetryAfterError, configuredAtSteps, since } from "../sdk.mjs";
import { client, eventually, receiver, scenario, sign } from "../support.mjs";

const MESSAGE = "my-error";

/** A workflow that ends in an error in its second step. */
const failing = (error, more) =>
  workflow(async (context, did) => {
    await context.run("step1", () => did("one"));
    await context.run("step2", () => {
      did("two");
      throw error();
    });
  }, more);

scenario("calls", "a failure function", {}, async () => {
  const flow = await failing(() => new Error(MESSAGE), { failureFunction: () => "told" });
  const run = await flow.trigger({ body: { order: 7 }, headers: { "X-Tenant": "acme" }, label: "order" });
  const { context, failStatus, failResponse, failHeaders } = await run.failure();
  assert.deepEqual([failStatus, failResponse], [500, MESSAGE]);
  assert.deepEqual(failHeaders["Upstash-Workflow-Sdk-Version"], ["1"]);
  assert.deepEqual(context.requestPayload, { order: 7 });
  assert.equal(context.workflowRunId, run.id);
  assert.equal(context.headers.get("x-tenant"), "acme");
  assert.equal(context.label, "order");
  if (since("1.1.1")) {
    assert.equal(String(context.workflowRunCreatedAt), run.requests[0].headers["upstash-workflow-createdat"]);
  }
  run.counted({ step: 2, failure: 1 });
  run.executed({ one: 1, two: 1 });

  const [one] = run.of("failure");
  assert.equal(one.headers["upstash-workflow-failure-callback"], "true");
  assert.deepEqual(JSON.parse(one.answer), { result: "told" });
  const payload = JSON.parse(one.body);
  assert.equal(Buffer.from(payload.sourceBody, "base64").toString(), '{"order":7}');
  assert.equal(JSON.parse(Buffer.from(payload.body, "base64")).message, MESSAGE);
  assert.deepEqual(
    [payload.status, payload.retried, payload.maxRetries, payload.url, payload.method, payload.workflowRunId, payload.workflowUrl],
    [500, 0, 0, flow.url, "POST", run.id, flow.url]
  );
  assert.equal(payload.sourceMessageId, run.of("step")[1].headers["upstash-message-id"]);
  assert.equal(String(payload.workflowCreatedAt), one.headers["upstash-workflow-createdat"]);

  // The answer is on its way to the server when the function has been called.
  const log = await eventually("the failure function's answer is in the log", async () => {
    const log = await run.ended("RUN_FAILED");
    return log.failureFunction?.state !== "CALLBACK_INPROGRESS" && log;
  });
  assert.equal(payload.dlqId, log.dlqId);
  const told = log.failureFunction;
  assert.deepEqual(
    [told.messageId, told.url, told.state, told.failStatus, told.responseStatus, JSON.parse(told.responseBody)],
    [one.headers["upstash-message-id"], flow.url, "CALLBACK_SUCCESS", 500, 200, { result: "told" }]
  );
  assert.equal(JSON.parse(told.failResponse).message, MESSAGE);
});

scenario("calls", "a failure in the first step", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      assert.equal(context.requestPayload, undefined);
      await context.run("step1", () => {
        did("one");
        throw new Error(MESSAGE);
      });
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger();
  const { failStatus, failResponse, context } = await run.failure();
  assert.deepEqual([failStatus, failResponse, context.requestPayload], [500, MESSAGE, undefined]);
  run.counted({ step: 1, failure: 1 });
  await run.ended("RUN_FAILED");
});

scenario("calls", "a failure after one retry", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      await context.run("step1", () => {
        did("one");
        throw new Error(MESSAGE);
      });
    },
    { config: { retries: 1, retryDelay: "200" }, failureFunction: () => {} }
  );
  const run = await flow.trigger();
  const { failStatus, failResponse } = await run.failure();
  assert.deepEqual([failStatus, failResponse], [500, MESSAGE]);
  run.counted({ step: 2, failure: 1 });
  run.executed({ one: 2 });
  const { retried, maxRetries } = JSON.parse(run.of("failure")[0].body);
  assert.deepEqual([retried, maxRetries], [1, 1]);
});

scenario("calls", "the retries of a later step are the run's", {}, async () => {
  const flow = await failing(() => new Error(MESSAGE), {
    config: { retries: 2, retryDelay: "200" }, failureFunction: () => {},
  });
  const run = await flow.trigger();
  await run.failure();
  run.counted({ step: 1 + 3, failure: 1 });
  run.executed({ one: 1, two: 3 });
});

scenario("calls", "an error that can't be retried", {}, async () => {
  const flow = await failing(() => new WorkflowNonRetryableError(MESSAGE), {
    config: { retries: 3 }, failureFunction: () => {},
  });
  const run = await flow.trigger({ label: "order" });
  const { failStatus, failResponse, context } = await run.failure();
  assert.deepEqual([failStatus, failResponse, context.label], [489, MESSAGE, "order"]);
  run.counted({ step: 2, failure: 1 });
  run.executed({ one: 1, two: 1 });
  await run.ended("RUN_FAILED");
});

scenario("calls", "an error that says when to retry", {}, async () => {
  let attempts = 0;
  const flow = await workflow(
    async (context, did) => {
      await context.run("one", () => {
        did("one");
        if (++attempts === 1) throw new WorkflowRetryAfterError("later", 1);
        if (attempts === 2) throw new WorkflowRetryAfterError("later", "2s");
      });
    },
    { config: { retries: 2, retryDelay: "100" } }
  );
  const run = await flow.trigger();
  await run.result();
  run.counted({ step: 4 });
  run.executed({ one: 3 });
  const [one, two, three] = run.requests;
  assert.deepEqual([one.status, two.status, three.status], [429, 429, 200]);
  assert(two.at - one.doneAt >= 990, `${two.at - one.doneAt} ms of 1000`);
  assert(three.at - two.doneAt >= 1990, `${three.at - two.doneAt} ms of 2000`);
});

scenario("calls", "an error that says when to retry uses up a retry", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      await context.run("one", () => {
        did("one");
        throw new WorkflowRetryAfterError("later", 1);
      });
    },
    { config: { retries: 1 }, failureFunction: () => {} }
  );
  const run = await flow.trigger();
  const { failStatus, failResponse } = await run.failure();
  assert.deepEqual([failStatus, failResponse], [429, "later"]);
  run.counted({ step: 2, failure: 1 });
  run.executed({ one: 2 });
});

scenario("calls", "a failure URL", {}, async () => {
  const other = thirdParty([{ body: "thanks" }]);
  const flow = await workflow(
    async (context, did) => {
      await context.run("step1", () => {
        did("one");
        throw new Error(MESSAGE);
      });
    },
    { config: { failureUrl: other.url } }
  );
  const run = await flow.trigger({ body: "payload", headers: { "X-Tenant": "acme" } });
  await eventually("the failure callback", () => other.requests.length > 0);
  const [{ headers, body, method }] = other.requests;
  const text = body.toString();
  const payload = JSON.parse(text);
  assert.equal(method, "POST");
  assert.equal(headers["x-tenant"], "acme");
  assert.equal(headers["upstash-workflow-runid"], run.id);
  assert.equal(payload.workflowRunId, run.id);
  assert.equal(JSON.parse(Buffer.from(payload.body, "base64")).message, MESSAGE);
  assert.equal(Buffer.from(payload.sourceBody, "base64").toString(), "payload");
  const signature = headers["upstash-signature"];
  assert.equal(await receiver.verify({ signature, body: text, url: other.url }), true);
  run.counted({ step: 1 });
  await run.ended("RUN_FAILED");
  other.counted(1);
});

scenario("calls", "a function that returns before any step", {}, async () => {
  let calls = 0;
  const flow = await workflow(
    async (context) => {
      // The failure function is called only if there is a step to be found.
      if (++calls > 1) await context.run("mock step", () => {});
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger();
  const { failStatus, failResponse } = await run.failure();
  assert.equal(failStatus, 400);
  assert.match(failResponse, /^Failed to authenticate Workflow request/);
  run.counted({ step: 1, failure: 1 });
});

scenario("calls", "a failure that has no failure function", { from: "1.0.0" }, async () => {
  const flow = await failing(() => new Error(MESSAGE));
  const run = await flow.trigger();
  await run.requested(3);
  const [one] = run.of("failure");
  assert.equal(one.status, 200);
  assert.equal(one.answerHeaders["upstash-workflow-failure-callback-notfound"], "true");
  run.counted({ step: 2, failure: 1 });
  const log = await run.ended("RUN_FAILED");
  await eventually("no failure function is shown", async () => !(await run.ended("RUN_FAILED")).failureFunction);
});

scenario("calls", "a failure function that fails at first", {}, async () => {
  let calls = 0;
  const flow = await failing(() => new WorkflowNonRetryableError(MESSAGE), {
    config: { retries: 1, retryDelay: "200" },
    failureFunction: () => {
      if (++calls === 1) throw new Error("not yet");
    },
  });
  const run = await flow.trigger();
  await run.waitFor(() => run.of("failure").length === 2 && run.quiet());
  assert.deepEqual(run.of("failure").map(({ status }) => status), [500, 200]);
  run.counted({ step: 2, failure: 2 });
  assert.equal(run.failures.length, 2);
});

scenario("calls", "a branch that fails ends the others", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      await Promise.all([
        context.sleep("long", 3600),
        context.run("fails", () => {
          did("fails");
          throw new WorkflowNonRetryableError(MESSAGE);
        }),
        context.run("works", () => did("works")),
      ]);
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger();
  await run.failure();
  const log = await run.ended("RUN_FAILED");
  const group = log.steps.find(({ type }) => type === "parallel");
  const states = Object.fromEntries(group.steps.map(({ stepName, state }) => [stepName, state]));
  assert.equal(states.fails, "STEP_FAILED");
  // The third branch may have been executed before the run failed, or not.
  await eventually("nothing is on its way", () => run.quiet());
  assert.equal(run.of("failure").length, 1);
  assert.deepEqual({ ...run.did, works: 1 }, { fails: 1, works: 1 });
});

scenario("calls", "a run that was started at the endpoint tells its failure function", {}, async () => {
  const flow = await failing(() => new WorkflowNonRetryableError(MESSAGE), { failureFunction: () => {} });
  const body = JSON.stringify({ order: 7 });
  const headers = { "Content-Type": "application/json", "X-Tenant": "acme", "Upstash-Signature": sign(flow.url, body) };
  const { workflowRunId } = await (await fetch(flow.url, { method: "POST", body, headers })).json();
  const run = runOf(workflowRunId);
  if (configuredAtSteps) {
    const { failStatus, context } = await run.failure();
    assert.equal(failStatus, 489);
    assert.deepEqual(context.requestPayload, { order: 7 });
    assert.equal(context.headers.get("x-tenant"), "acme");
    run.counted({ step: 2, failure: 1 });
  } else {
    // Newer SDKs say it only in the client's trigger.
    await run.requested(2);
    await run.ended("RUN_FAILED");
    run.counted({ step: 2 });
  }
});

scenario("calls", "an endpoint that isn't there", { from: "1.0.0" }, async () => {
  const { workflowRunId } = await client.trigger({ url: `${origin}/nowhere`, retries: 0 });
  const log = await logOf({ id: workflowRunId }, "RUN_FAILED");
  assert.equal(log.steps.at(-1).steps[0].errors[0].status, 404);
});

scenario("calls", "a configuration kept from the trigger", { to: "0.2.23" }, async () => {
  // As an option of this SDK, the trigger's configuration holds for the whole run.
  const flow = await failing(() => new Error(MESSAGE));
  flow.atTrigger = { keepTriggerConfig: true, retries: 1, retryDelay: "200" };
  const run = await flow.trigger();
  await run.requested(3);
  run.executed({ one: 1, two: 2 });
  await run.ended("RUN_FAILED");
  run.counted({ step: 3 });
});
