// The ways in which a run starts, and what ends it before its first step.

import assert from "node:assert/strict";

import { origin, runOf, thirdParty, workflow, workflows } from "../app.mjs";
import { configuredAtSteps } from "../sdk.mjs";
import { ask, client, eventually, gate, qstash, scenario, sign, unique } from "../support.mjs";
import { logOf } from "../log.mjs";

/** A workflow of one step that returns what it was started with. */
const echo = () =>
  workflow(async (context, did) => {
    const payload = await context.run("echo", () => did("echo", context.requestPayload));
    return { payload, tenant: context.headers.get("x-tenant") };
  });

/** The one run that a flow has had a delivery for. */
const runOfFlow = async (flow) => {
  const what = "a delivery of the run";
  const first = await eventually(what, () => flow.requests.find((one) => one.headers["upstash-workflow-runid"]));
  return runOf(first.headers["upstash-workflow-runid"]);
};

scenario("runs", "a request straight to the endpoint", {}, async () => {
  const flow = await echo();
  const body = JSON.stringify({ order: 7 });
  const headers = { "Content-Type": "application/json", "X-Tenant": "acme" };
  const refused = await fetch(flow.url, { method: "POST", body, headers });
  assert.equal(refused.status, 500);
  assert.match((await refused.json()).message, /`Upstash-Signature` header is not passed/);
  const signed = { ...headers, "Upstash-Signature": sign(flow.url, body) };
  const started = await fetch(flow.url, { method: "POST", body, headers: signed });
  const { workflowRunId } = await started.json();
  assert.equal(started.status, 200);
  const run = runOf(workflowRunId);
  assert.deepEqual(await run.result(), { payload: { order: 7 }, tenant: "acme" });
  run.counted({ step: 2 });
  flow.counted(4);
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "a plain message to the endpoint", {}, async () => {
  const flow = await echo();
  const headers = { "Content-Type": "application/json", "X-Tenant": "acme" };
  await qstash.publish({ url: flow.url, body: JSON.stringify({ order: 8 }), headers });
  const run = await runOfFlow(flow);
  assert.deepEqual(await run.result(), { payload: { order: 8 }, tenant: "acme" });
  run.counted({ step: 2 });
  flow.counted(3);
  run.executed({ echo: 1 });
});

scenario("runs", "payloads of all kinds", {}, async () => {
  const flow = await echo();
  const bodies = [undefined, "", "text", "ünïcode ✓ 😀", { a: [1, null] }, "[not JSON", 12, "x".repeat(100_000)];
  const started = await flow.triggerAll(bodies.map((body) => ({ body })));
  for (const [i, run] of started.entries()) {
    const { payload } = await run.result();
    assert.deepEqual(payload, bodies[i] === "" ? undefined : bodies[i]);
    run.counted({ step: 2 });
  }
});

scenario("runs", "a delayed trigger", {}, async () => {
  const flow = await echo();
  const start = Date.now();
  const run = await flow.trigger({ body: 1, delay: "1s" });
  const until = await flow.trigger({ body: 2, notBefore: Math.ceil(start / 1000) + 1 });
  await run.result();
  assert(run.requests[0].at - start >= 990, `${run.requests[0].at - start} ms`);
  await until.result();
  assert(until.requests[0].at - start >= 990, `${until.requests[0].at - start} ms`);
  for (const one of [run, until]) one.counted({ step: 2 });
});

scenario("runs", "a run id that is taken, and one that is free again", {}, async () => {
  const held = gate();
  const flow = await workflow(async (context, did) => {
    const payload = await context.run("held", async () => {
      await held.opened;
      return did("held", context.requestPayload);
    });
    return await context.run("after", () => did("after", payload));
  });
  const workflowRunId = unique("mine");
  const run = await flow.trigger({ body: "first", workflowRunId });
  assert.equal(run.id, `wfr_${workflowRunId}`);
  assert.equal(await flow.trigger({ body: "second", workflowRunId }), run);
  // What the SDK doesn't tell: the second is answered with the first one's message.
  const item = {
    destination: flow.url,
    headers: {
      "upstash-workflow-init": "true", "upstash-workflow-runid": run.id, "upstash-workflow-url": flow.url,
      "upstash-workflow-sdk-version": "1", "upstash-forward-upstash-workflow-sdk-version": "1",
      "upstash-feature-set": "LazyFetch,InitialBody,WF_DetectTrigger",
    },
    body: "third",
  };
  const answer = await ask("POST", "/v2/batch", { body: JSON.stringify([item]) });
  assert.equal(Math.floor(answer.status / 100), 2);
  const [{ messageId, deduplicated }] = await answer.json();
  assert.equal(deduplicated, true);
  held.open();
  assert.equal(await run.result(), "first");
  assert.equal(run.requests[0].headers["upstash-message-id"], messageId);
  assert.equal(run.requests.length, 3);
  run.executed({ held: 1, after: 1 });

  assert.equal(await flow.trigger({ body: "fourth", workflowRunId }), run);
  await run.waitFor(() => run.returned.length === 2 && run.quiet());
  assert.deepEqual(run.returned, ["first", "fourth"]);
  run.counted({ step: 6 });
  run.executed({ held: 2, after: 2 });
  assert.equal(new Set(run.requests.map(({ headers }) => headers["upstash-workflow-createdat"])).size, 2);
});

scenario("calls", "a trigger of what is no workflow", {}, async () => {
  const plain = thirdParty([{ body: "no workflow" }]);
  const { workflowRunId } = await client.trigger({ url: plain.url });
  await eventually("a request", () => plain.requests.length > 0);
  // Since 1.0 a failure callback goes to the same place.
  const expected = configuredAtSteps ? 1 : 2;
  await eventually("all requests", () => plain.requests.length >= expected);
  const log = await logOf({ id: workflowRunId }, "RUN_FAILED");
  const [init, next, ...others] = log.steps;
  assert.deepEqual(others, []);
  assert.equal(init.steps[0].stepType, "Initial");
  assert.equal(next.type, "next");
  assert.equal(next.steps.length, 1);
  assert.equal(next.steps[0].state, "STEP_FAILED");
  const [error, ...more] = next.steps[0].errors;
  assert.deepEqual(more, []);
  assert.equal(
    error.error,
    "detected a non-workflow destination for trigger/invoke. make sure you are sending the request to the correct endpoint"
  );
  assert.equal(error.body, "no workflow");
  plain.counted(expected);
});

scenario("runs", "authorization that is refused", {}, async () => {
  const flow = await workflow(async (context, did) => {
    if (context.headers.get("authentication") !== "Bearer secret") return undefined;
    await context.run("never", () => did("never"));
  });
  const run = await flow.trigger({ headers: { authentication: "Bearer wrong" } });
  // Since 1.0 a failure callback goes to the endpoint, which has no failure function.
  const kinds = configuredAtSteps ? { step: 1 } : { step: 1, failure: 1 };
  await run.requested(configuredAtSteps ? 1 : 2);
  assert.equal(run.requests[0].status, 400);
  run.counted(kinds);
  run.executed({});
  assert.deepEqual(run.returned, []);
  await run.ended("RUN_FAILED");
});

// --- by plain HTTP ---

const trigger = async (url, options) => {
  const answer = await ask("POST", `/v2/trigger/${url}`, options);
  const body = await answer.json();
  assert.equal(answer.status, 200, JSON.stringify(body));
  assert.equal(typeof body.workflowRunId, "string");
  assert(Number.isInteger(body.workflowCreatedAt));
  return body;
};

scenario("rest", "a trigger by plain HTTP", { from: "1.0.0" }, async () => {
  const flow = await workflow(async (context, did) => {
    const payload = await context.run("echo", () => did("echo", context.requestPayload));
    await context.sleep("sleep", 1);
    return { payload, tenant: context.headers.get("x-tenant"), label: context.label };
  });
  const headers = {
    "Content-Type": "application/json", "Upstash-Forward-X-Tenant": "acme", "Upstash-Label": "order", "Upstash-Retries": "0",
  };
  const { workflowRunId, workflowCreatedAt } = await trigger(flow.url, { headers, body: JSON.stringify({ order: 9 }) });
  const run = runOf(workflowRunId);
  assert.deepEqual(await run.result(), { payload: { order: 9 }, tenant: "acme", label: "order" });
  run.counted({ step: 3 });
  run.executed({ echo: 1 });
  for (const { headers } of run.requests) {
    assert.equal(headers["upstash-workflow-createdat"], String(workflowCreatedAt));
    assert.equal(headers["x-tenant"], "acme");
  }
  await run.ended("RUN_SUCCESS");
});

scenario("rest", "a trigger by plain HTTP with a run id, that fails", { from: "1.0.0" }, async () => {
  const flow = await workflow(
    async (context, did) => {
      await context.run("fails", () => {
        did("fails");
        throw new Error("kaput");
      });
    },
    { failureFunction: () => "told" }
  );
  const id = unique("mine");
  const headers = { "Upstash-Workflow-RunId": id, "Upstash-Retries": "1", "Upstash-Retry-Delay": "200" };
  const { workflowRunId } = await trigger(flow.url, { headers, body: "payload" });
  assert.equal(workflowRunId, id);
  const run = runOf(id);
  const { failStatus, failResponse, context } = await run.failure();
  assert.deepEqual([failStatus, failResponse, context.requestPayload], [500, "kaput", "payload"]);
  run.counted({ step: 2, failure: 1 });
  run.executed({ fails: 2 });
});

scenario("rest", "a trigger by plain HTTP of what is no workflow", { from: "1.0.0" }, async () => {
  const plain = thirdParty([{ headers: { "Upstash-Workflow-Sdk-Version": "1" }, body: "{}" }]);
  const { workflowRunId } = await trigger(plain.url, { headers: { "Upstash-Retries": "0" }, body: "x" });
  await eventually("a request", () => plain.requests.length > 0);
  assert.equal(plain.requests[0].headers["upstash-workflow-unknown-sdk"], undefined);
  const log = await logOf({ id: workflowRunId }, "RUN_FAILED");
  assert.equal(log.steps.length, 2);
  assert.equal(log.steps[0].steps[0].state, "STEP_SUCCESS");
  assert.equal(log.steps[1].type, "next");
  const { error } = log.steps[1].steps[0].errors[0];
  assert.equal(error, "trigger rest api is only usable with sdk versions after v1.0.0 major version");
});

scenario("rest", "options that a trigger by plain HTTP can't have", { from: "1.0.0" }, async () => {
  for (const [name, value] of [["Upstash-Callback", `${origin}/nowhere`], ["Upstash-Retry-Delay", "no expression("]]) {
    const answer = await ask("POST", `/v2/trigger/${origin}/nowhere`, { headers: { [name]: value }, body: "x" });
    assert.equal(answer.status, 412, name);
    assert.equal(typeof (await answer.json()).error, "string");
  }
});

scenario("rest", "several triggers by plain HTTP at once", { from: "1.0.0" }, async () => {
  const flow = await echo();
  const items = [1, 2].map((body) => ({ destination: flow.url, headers: { "Upstash-Retries": "0" }, body: String(body) }));
  const answer = await ask("POST", "/v2/batch/trigger", { body: JSON.stringify(items) });
  assert.equal(answer.status, 201);
  const started = await answer.json();
  for (const [i, { workflowRunId }] of started.entries()) {
    const run = runOf(workflowRunId);
    assert.equal((await run.result()).payload, i + 1);
    run.counted({ step: 2 });
  }
});

scenario("rest", "a trigger by the client that says the SDK is unknown", { from: "1.0.0" }, async () => {
  const flow = await workflow(async (context, did) => {
    const one = await context.run("step1", () => did("one", 1));
    const two = await context.run("step2", () => did("two", one + 1));
    return await context.run("step3", () => did("three", two + 1));
  });
  const run = await flow.trigger({ body: "x", headers: { "Upstash-Workflow-Unknown-Sdk": "true" } });
  assert.equal(await run.result(), 3);
  run.counted({ unknown: 1, step: 4 });
  run.executed({ one: 1, two: 1, three: 1 });
});

scenario("rest", "triggers by plain HTTP and webhooks, mixed", { from: "1.0.0" }, async () => {
  const plain = thirdParty([{ headers: { "Upstash-Workflow-Sdk-Version": "1" }, body: "{}" }]);
  const start = async (url, body, headers = {}) => {
    const options = { "Content-Type": "application/json", "Upstash-Forward-Trigger-Header": "value", "Upstash-Retries": "0" };
    return await trigger(url, { headers: { ...options, ...headers }, body: JSON.stringify(body) });
  };
  const flows = await workflows({
    main: async (context, did) => {
      const webhook = await context.createWebhook("create webhook");
      const { webhookUrl } = webhook;
      await context.run("trigger", async () => {
        did("unknown");
        // The app is asked what it can do: one more request.
        await start(flows.hooked.url, { webhookUrl }, { "Upstash-Workflow-Unknown-Sdk": "true" });
      });
      await context.run("trigger", async () => {
        did("known");
        await start(flows.hooked.url, { webhookUrl });
      });
      const { workflowRunId } = await context.run("trigger", async () => did("plain", await start(plain.url, {})));
      for (let i = 0; i < 2; i++) {
        const { timeout, request } = await context.waitForWebhook("wait for webhook", webhook, "30s");
        assert.equal(timeout, false);
        assert.equal((await request.json()).result, "hooked");
      }
      await context.run("verify complete", async () => {
        did("verified");
        await logOf({ id: workflowRunId }, "RUN_FAILED");
      });
      await context.sleep("sleep so that all requests arrive", 2);
      return "done";
    },
    hooked: async (context, did) => {
      assert.equal(context.headers.get("trigger-header"), "value");
      await context.run("do work", () => did("work"));
      await context.run("call webhook", async () => {
        const body = JSON.stringify({ result: "hooked" });
        const { status } = await fetch(context.requestPayload.webhookUrl, { method: "POST", body });
        assert.equal(status, 200);
      });
    },
  });
  const run = await flows.main.trigger({ body: { test: "payload" } });
  assert.equal(await run.result(), "done");
  run.executed({ unknown: 1, known: 1, plain: 1, verified: 1 });
  await eventually("all requests", () => flows.all.requests.length >= 16);
  flows.all.counted(16);
});
