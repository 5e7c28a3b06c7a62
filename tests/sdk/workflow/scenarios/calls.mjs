// Calls of third parties that the server makes.

import assert from "node:assert/strict";
import { createServer } from "node:net";

import { arrived, runOf, thirdParty, workflow, workflows } from "../app.mjs";
import { configuredAtSteps, since } from "../sdk.mjs";
import { eventually, receiver, scenario, server, token, unique } from "../support.mjs";

/** What older SDKs need so that a text goes out as it is, as it does in newer ones. */
const asItIs = configuredAtSteps ? { stringifyBody: false } : {};

/** Without it the SDK leaves a body as it is. */
const TEXT = { "Content-Type": "text/plain" };

const call = (context, name, settings) =>
  context.call(name, { ...(typeof settings.body === "string" && asItIs), ...settings });

scenario("calls", "calls of every method, of all endings", {}, async () => {
  const other = thirdParty(({ method, headers, body }) => {
    switch (method) {
      case "GET":
        return { body: `called GET '${headers["get-header"]}'`, headers: { "Get-Header": "value" } };
      case "POST":
        return { status: 201, body: `called POST '${headers["post-header"]}' '${headers["content-type"]}' '${body}'` };
      case "PATCH":
        return { status: 401, body: "99", headers: { "Failing-Header": "failing", ...TEXT } };
      case "PUT":
        return { status: 300 };
      default:
        return { status: 400, body: JSON.stringify({ foo: "bar", zed: 2 }), headers: TEXT };
    }
  });
  const results = [];
  const flow = await workflow(async (context) => {
    const post = await call(context, "post call", {
      url: other.url, method: "POST", body: "post-payload", headers: { "post-header": "x", "content-type": "text/custom" },
    });
    assert.equal(context.requestPayload, "payload");
    await context.sleep("sleep 1", 1);
    const get = await context.call("get call", { url: `${other.url}?a=1&b=%2F`, headers: { "get-header": "y" } });
    const patch = await context.call("patch call", { url: other.url, method: "PATCH", retries: 1, retryDelay: "200" });
    const put = await context.call("put call", { url: other.url, method: "PUT", retries: 0 });
    const del = await context.call("delete call", { url: other.url, method: "DELETE", retries: 0 });
    results.splice(0, results.length, post, get, patch, put, del);
    return "done";
  });
  const run = await flow.trigger({ body: "payload", headers: { "X-Tenant": "acme" } });
  assert.equal(await run.result(), "done");
  run.counted({ step: 7, result: 5 });
  await run.ended("RUN_SUCCESS");
  const [post, get, patch, put, del] = results;
  assert.deepEqual([post.status, post.body], [201, "called POST 'x' 'text/custom' 'post-payload'"]);
  assert.deepEqual([get.status, get.body, get.header["Get-Header"]], [200, "called GET 'y'", ["value"]]);
  assert.deepEqual([patch.status, patch.body, patch.header["Failing-Header"]], [401, 99, ["failing"]]);
  assert.deepEqual([put.status, put.body], [300, ""]);
  assert.deepEqual([del.status, del.body], [400, { foo: "bar", zed: 2 }]);
  assert.deepEqual(other.requests.map(({ method }) => method), ["POST", "GET", "PATCH", "PATCH", "PUT", "DELETE"]);
  assert.equal(other.requests[1].url, `${other.path}?a=1&b=%2F`);
  // The third party is told nothing of the run, but it can verify that the server called it.
  for (const { url, path, headers, body } of other.requests) {
    for (const name of ["upstash-workflow-runid", "upstash-workflow-sdk-version", "x-tenant", "upstash-workflow-url"]) {
      assert.equal(headers[name], undefined, name);
    }
    const signature = headers["upstash-signature"];
    const signedUrl = other.url.replace(path, url);
    assert.equal(await receiver.verify({ signature, body: body.toString(), url: signedUrl }), true);
  }
  // The results carry the run's own headers.
  for (const { headers } of run.of("result")) assert.equal(headers["x-tenant"], "acme");
});

scenario("calls", "a call whose third party fails twice", {}, async () => {
  const other = thirdParty([{ status: 500, body: "one" }, { status: 503, body: "two" }, { body: "three" }]);
  const flow = await workflow(async (context) => {
    const { status, body } = await context.call("call", { url: other.url, retries: 2, retryDelay: "200" });
    return [status, body];
  });
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), [200, "three"]);
  other.counted(3);
  run.counted({ step: 2, result: 1 });
  const { retried, maxRetries, status, workflowRunId } = JSON.parse(run.of("result")[0].body);
  assert.deepEqual([retried, maxRetries, status, workflowRunId], [2, 2, 200, run.id]);
});

scenario("calls", "a call whose retries are used up", {}, async () => {
  const other = thirdParty([{ status: 500, body: "one" }, { status: 502, body: "two" }]);
  const flow = await workflow(async (context, did) => {
    const { status, body } = await context.call("call", { url: other.url, retries: 1, retryDelay: "200" });
    return await context.run("after", () => did("after", [status, body]));
  });
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), [502, "two"]);
  other.counted(2);
  run.counted({ step: 3, result: 1 });
  run.executed({ after: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("calls", "a response of bytes that are no UTF-8", {}, async () => {
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
  const other = thirdParty([{ body: bytes, headers: { "Content-Type": "application/octet-stream" } }]);
  const flow = await workflow(async (context, did) => {
    const { body } = await context.call("call", { url: other.url });
    return await context.run("after", () => did("after", Buffer.from(body, "latin1").toString("hex")));
  });
  const run = await flow.trigger();
  assert.equal(await run.result(), bytes.toString("hex"));
  run.counted({ step: 3, result: 1 });
});

scenario("calls", "a response of text and header values beyond ASCII", {}, async () => {
  const other = thirdParty([{ body: "ünïcode ✓ 😀", headers: { "Content-Type": "text/plain; charset=utf-8", "X-Latin": "caf\u00e9/" } }]);
  const flow = await workflow(async (context, did) => {
    const { body } = await context.call("call", { url: other.url });
    return await context.run("after", () => did("after", body));
  });
  const run = await flow.trigger();
  assert.equal(await run.result(), "ünïcode ✓ 😀");
  run.counted({ step: 3, result: 1 });
  // A body parser would write it so before the signature is verified.
  const [{ body }] = run.of("result");
  assert.equal(body.toString(), JSON.stringify(JSON.parse(body)));
});

scenario("calls", "a third party that can't be reached", {}, async () => {
  const free = createServer();
  await new Promise((resolve) => free.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${free.address().port}/`;
  await new Promise((resolve) => free.close(resolve));
  const flow = await workflow(async (context, did) => {
    const { status } = await context.call("call", { url });
    return await context.run("after", () => did("after", status));
  });
  const run = await flow.trigger();
  assert.equal(await run.result(), 0);
  run.counted({ step: 3, result: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("calls", "a third party that takes too long", {}, async () => {
  let give;
  const other = thirdParty(() => ({ after: new Promise((resolve) => (give = resolve)) }));
  const flow = await workflow(async (context, did) => {
    const { status } = await context.call("call", { url: other.url, timeout: 1 });
    return await context.run("after", () => did("after", status));
  });
  const run = await flow.trigger();
  const status = await run.result();
  give();
  assert(!(status >= 200 && status < 300), `status ${status}`);
  other.counted(1);
  run.counted({ step: 3, result: 1 });
});

scenario("calls", "a failed call is no failure of the run", {}, async () => {
  const other = thirdParty([{ status: 401, body: "99", headers: { "Failing-Header": "failing", ...TEXT } }]);
  const flow = await workflow(
    async (context) => {
      const { status, body, header } = await context.call("call", { url: other.url, method: "PATCH", retries: 0 });
      return [status, body, header["Failing-Header"]];
    },
    { failureFunction: () => "never" }
  );
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), [401, 99, ["failing"]]);
  run.counted({ step: 2, result: 1 });
  assert.deepEqual(run.failures, []);
});

scenario("calls", "a failed call doesn't go to the failure URL", {}, async () => {
  const other = thirdParty([{ status: 401, body: "99" }]);
  const flow = await workflow(
    async (context) => (await context.call("call", { url: other.url, method: "PATCH" })).status,
    { config: { failureUrl: other.url } }
  );
  const run = await flow.trigger();
  assert.equal(await run.result(), 401);
  run.counted({ step: 2, result: 1 });
  other.counted(1);
});

scenario("calls", "calls and a step at once", {}, async () => {
  const other = thirdParty(({ url }) => ({ body: url.split("?")[1] }));
  const flow = await workflow(async (context, did) => {
    const [one, two, three] = await Promise.all([
      context.call("one", { url: `${other.url}?one` }),
      context.run("two", () => did("two", "two")),
      context.call("three", { url: `${other.url}?three` }),
    ]);
    await arrived(context, 9);
    return [one.body, two, three.body];
  });
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), ["one", "two", "three"]);
  run.counted({ step: 1 + 3 + 3, result: 2 });
  run.executed({ two: 1 });
  other.counted(2);
});

scenario("calls", "a call of another workflow", {}, async () => {
  const flows = await workflows({
    caller: async (context) => {
      const { body, status } = await context.call("call", {
        workflow: flows.called.invokable, body: { from: "the caller" }, headers: { "x-caller": "caller" },
      });
      return [status, body.workflowRunId];
    },
    called: async (context, did) =>
      await context.run("one", () => did("one", [context.requestPayload, context.headers.get("x-caller")])),
  });
  const run = await flows.caller.trigger();
  const [status, id] = await run.result();
  assert.equal(status, 200);
  const called = runOf(id);
  assert.deepEqual(await called.result(), [{ from: "the caller" }, "caller"]);
  run.counted({ step: 2, result: 1 });
  called.counted({ step: 2 });
  flows.all.counted(3 + 1 + 2);
});

scenario("calls", "an endpoint that refuses, called with everything that it knows", {}, async () => {
  const target = await workflow(async () => {}, {
    failureFunction: () => assert.fail("not authorized"),
    options: { receiver: undefined },
  });
  const answers = [];
  const flow = await workflow(async (context) => {
    const body = JSON.stringify({ status: 200, header: "", body: "", url: "", sourceBody: "", workflowRunId: "" });
    const kinds = [{ "Upstash-Workflow-Is-Failure": "true" }, { "Upstash-Workflow-Callback": "true" }, {}];
    for (const [i, headers] of kinds.entries()) {
      answers[i] = await call(context, `call ${i}`, { url: target.url, method: "POST", body, headers });
    }
    return "done";
  });
  const run = await flow.trigger();
  assert.equal(await run.result(), "done");
  assert.deepEqual(answers.map(({ status }) => status), [500, 400, 400]);
  assert.equal(answers[0].body.message, "Not authorized to run the failure function.");
  for (const { body } of answers.slice(1)) assert.match(body.message, /^Failed to authenticate Workflow request/);
  run.counted(7);
  target.counted(3);
});

scenario("calls", "a call's result is delivered again", {}, async () => {
  const other = thirdParty([{ body: "answer" }]);
  const flow = await workflow(async (context) => (await context.call("call", { url: other.url })).body, {
    config: { retries: 1, retryDelay: "200" },
  });
  const { answer } = flow;
  let failed = false;
  flow.answer = (request, response, one) => {
    if (one.kind !== "result" || failed) return answer(request, response, one);
    failed = true;
    response.writeHead(500).end("not yet");
  };
  const run = await flow.trigger();
  assert.equal(await run.result(), "answer");
  other.counted(1);
  run.counted({ step: 2, result: 2 });
});

scenario("calls", "a call's result that can't be delivered fails the run", {}, async () => {
  const other = thirdParty([{ body: "answer" }]);
  const flow = await workflow(async (context) => (await context.call("call", { url: other.url })).body, {
    failureFunction: () => "told",
  });
  const { answer } = flow;
  flow.answer = (request, response, one) =>
    one.kind === "result" ? response.writeHead(500).end("never") : answer(request, response, one);
  const run = await flow.trigger();
  const { failStatus } = await run.failure();
  assert.equal(failStatus, 500);
  run.counted({ step: 1, result: 1, failure: 1 });
  await run.ended("RUN_FAILED");
});

scenario("calls", "flow control of calls", {}, async () => {
  const other = thirdParty(() => ({ body: "x" }));
  const flowControl = { key: unique("key"), parallelism: 1 };
  const flow = await workflow(async (context) => {
    const calls = [1, 2, 3, 4].map((i) => context.call(`call ${i}`, { url: other.url, flowControl }));
    const results = await Promise.all(calls);
    await arrived(context, 13);
    return results.map(({ status }) => status);
  });
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), [200, 200, 200, 200]);
  run.counted({ step: 9, result: 4 });
  other.counted(4);
  assert.equal(other.most, 1, "calls at once");
});

scenario("calls", "a call with an option that can't be", {}, async () => {
  const other = thirdParty([{ body: "normal" }]);
  const flow = await workflow(
    async (context) => (await context.call("call", { url: other.url, retryDelay: "no expression(" })).status,
    { failureFunction: () => "told" }
  );
  const run = await flow.trigger();
  const { failStatus, failResponse } = await run.failure();
  // Older SDKs don't know that there is no use in trying again.
  assert.equal(failStatus, since("1.3.3") ? 489 : 500);
  assert.match(failResponse, /retry/i);
  run.counted({ step: 1, failure: 1 });
  other.counted(0);
  await run.ended("RUN_FAILED");
});

scenario("calls", "calls at once, one with an option that can't be", { from: "1.3.3" }, async () => {
  const other = thirdParty([{ body: "normal" }]);
  const flow = await workflow(
    async (context) => {
      const settings = [{}, { retryDelay: "no expression(" }];
      await Promise.all(settings.map((more, i) => context.call(`call ${i}`, { url: other.url, ...more })));
    },
    { failureFunction: () => "told" }
  );
  const run = await flow.trigger();
  const { failStatus } = await run.failure();
  assert.equal(failStatus, 489);
  await run.ended("RUN_FAILED");
  // The other call may have been made, and its result may have come, before the run failed.
  await eventually("nothing is on its way", () => run.quiet());
  assert.equal(run.of("failure").length, 1);
  assert(other.requests.length <= 1);
});

scenario("calls", "a call of this server", {}, async () => {
  const other = thirdParty([{ body: "published" }]);
  const flow = await workflow(async (context) => {
    const { status, body } = await call(context, "publish", {
      url: `${server}/v2/publish/${other.url}`, method: "POST", body: "through", headers: { Authorization: `Bearer ${token}` },
    });
    return [status, typeof body.messageId];
  });
  const run = await flow.trigger();
  const [status, type] = await run.result();
  assert.equal(Math.floor(status / 100), 2);
  assert.equal(type, "string");
  await eventually("the message", () => other.requests.length === 1);
  assert.equal(other.requests[0].body.toString(), "through");
});
