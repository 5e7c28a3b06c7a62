// Workflows that start others and wait for their results.

import assert from "node:assert/strict";

import { arrived, runOf, thirdParty, workflows } from "../app.mjs";
import { WorkflowMiddleware, WorkflowNonRetryableError, configuredAtSteps, since } from "../sdk.mjs";
import { client, eventually, gate, scenario, unique } from "../support.mjs";

/** The run that was invoked: the one that isn't its parent. */
const others = (flows, ...known) => [
  ...new Set(flows.all.requests.map((one) => one.headers["upstash-workflow-runid"])),
].filter((id) => id && !known.some((run) => run.id === id)).map(runOf);

/** A failure callback that nobody asked for comes since 1.0, if there is no failure function. */
const told = configuredAtSteps ? {} : { failure: 1 };

scenario("invoke", "a workflow and its result", {}, async () => {
  const flows = await workflows({
    parent: async (context, did) => {
      const before = await context.run("before", () => did("before", context.requestPayload));
      const result = await context.invoke("invoke", {
        workflow: flows.child.invokable, body: { order: before }, headers: { "X-Mode": "fast" },
      });
      return await context.run("after", () => did("after", result));
    },
    child: async (context, did) => {
      const order = await context.run("one", () => did("one", context.requestPayload.order));
      return { tracking: `T${order}`, mode: context.headers.get("x-mode"), tenant: context.headers.get("x-tenant") };
    },
  });
  const run = await flows.parent.trigger({ body: 7, headers: { "X-Tenant": "acme" } });
  const { body, isFailed, isCanceled } = await run.result();
  // The parent's own headers aren't inherited.
  assert.deepEqual(body, { tracking: "T7", mode: "fast", tenant: null });
  assert.deepEqual([isFailed, isCanceled], [false, false]);
  run.counted({ step: 4 });
  run.executed({ before: 1, after: 1 });
  for (const { headers } of run.requests) assert.equal(headers["x-tenant"], "acme");
  const [child, ...more] = others(flows, run);
  assert.deepEqual(more, []);
  child.counted({ step: 2 });
  child.executed({ one: 1 });
  for (const { headers } of child.requests) assert.equal(headers["upstash-workflow-invoke-count"], "1");
  const log = await run.ended("RUN_SUCCESS");
  const childLog = await child.ended("RUN_SUCCESS");
  assert.deepEqual(childLog.invoker, {
    workflowRunId: run.id, workflowUrl: flows.parent.url, workflowRunCreatedAt: log.workflowRunCreatedAt,
  });
  const step = log.steps.flatMap(({ steps }) => steps).find(({ stepName }) => stepName === "invoke");
  assert.deepEqual([step.invokedWorkflowRunId, step.invokedWorkflowUrl, step.state], [child.id, flows.child.url, "STEP_SUCCESS"]);
});

scenario("invoke", "a workflow that returns nothing, and gets nothing", {}, async () => {
  const flows = await workflows({
    parent: async (context) => await context.invoke("invoke", { workflow: flows.child.invokable }),
    child: async (context, did) => {
      assert.equal(context.requestPayload, undefined);
      await context.run("one", () => did("one"));
    },
  });
  const run = await flows.parent.trigger();
  const { body, isFailed, isCanceled } = await run.result();
  assert.deepEqual([body || undefined, isFailed, isCanceled], [undefined, false, false]);
  run.counted({ step: 2 });
});

scenario("invoke", "a workflow that fails", {}, async () => {
  const flows = await workflows({
    parent: async (context) => await context.invoke("invoke", { workflow: flows.child.invokable, retries: 1, retryDelay: "200" }),
    child: async (context, did) => {
      await context.run("fails", () => {
        did("fails");
        throw new Error("kaput");
      });
    },
  });
  const run = await flows.parent.trigger();
  const { body, isFailed, isCanceled } = await run.result();
  assert.deepEqual([body, isFailed, isCanceled], [undefined, true, false]);
  const [child] = others(flows, run);
  // Their invoker's options hold for the first delivery of an older SDK, as for all of a newer one.
  child.executed({ fails: 2 });
  await child.requested(configuredAtSteps ? 2 : 3);
  child.counted({ step: 2, ...told });
  run.counted({ step: 2 });
  await child.ended("RUN_FAILED");
  await run.ended("RUN_SUCCESS");
});

scenario("invoke", "workflows that cancel themselves, and are cancelled", {}, async () => {
  const flows = await workflows({
    parent: async (context) => {
      const results = await Promise.all([
        context.invoke("itself", { workflow: flows.itself.invokable }),
        context.invoke("client", { workflow: flows.sleeper.invokable, workflowRunId: context.requestPayload }),
      ]);
      await arrived(context, 5);
      return results;
    },
    itself: async (context, did) => {
      await context.run("one", () => did("one"));
      await context.cancel();
    },
    sleeper: async (context) => {
      await context.sleep("long", 3600);
    },
  });
  const id = unique("child");
  const run = await flows.parent.trigger({ body: id });
  const sleeper = runOf(`wfr_${id}`);
  await sleeper.requested(1);
  assert.deepEqual(await cancel(sleeper), { cancelled: 1 });
  const results = await run.result();
  for (const { body, isFailed, isCanceled } of results) {
    assert.deepEqual([body, isFailed, isCanceled], [undefined, false, true]);
  }
  run.counted({ step: 5 });
  const [itself] = others(flows, run, sleeper);
  itself.counted({ step: 2 });
  sleeper.counted({ step: 1 });
  await itself.ended("RUN_CANCELED");
  await sleeper.ended("RUN_CANCELED");
});

const cancel = (run) => (since("1.3.3") ? client.cancel(run.id) : client.cancel({ ids: run.id }));

scenario("invoke", "several at once", {}, async () => {
  const flows = await workflows({
    parent: async (context) => {
      const invoked = [1, 2, 3, 4, 5].map((i) => context.invoke(`invoke ${i}`, { workflow: flows.child.invokable, body: i }));
      const results = await Promise.all(invoked);
      await arrived(context, 11);
      return results.map(({ body }) => body);
    },
    child: async (context, did) => {
      const one = await context.run("one", () => did("one", context.requestPayload * 10));
      return await context.run("two", () => did("two", one + 1));
    },
  });
  const run = await flows.parent.trigger();
  assert.deepEqual(await run.result(), [11, 21, 31, 41, 51]);
  run.counted({ step: 1 + 5 + 5 });
  const children = others(flows, run);
  assert.equal(children.length, 5);
  for (const child of children) {
    child.counted({ step: 3 });
    child.executed({ one: 1, two: 1 });
  }
});

scenario("invoke", "invoked with an id and a label", { from: "1.1.1" }, async () => {
  const labels = new Set();
  const flows = await workflows({
    parent: async (context) =>
      await context.invoke("invoke", { workflow: flows.child.invokable, workflowRunId: context.requestPayload, label: "shipping" }),
    child: async (context, did) => {
      labels.add(context.label);
      await context.run("one", () => did("one"));
      return context.workflowRunId;
    },
  });
  const id = unique("child");
  const run = await flows.parent.trigger({ body: id, label: "order" });
  const { body, workflowRunId } = await run.result();
  assert.deepEqual([body, workflowRunId], [`wfr_${id}`, `wfr_${id}`]);
  assert.deepEqual([...labels], ["shipping"]);
  const log = await runOf(body).ended("RUN_SUCCESS");
  assert.deepEqual(log.labels, ["shipping"]);
});

scenario("invoke", "invocations, calls, events and failures, mixed", {}, async () => {
  const event = unique("event");
  const ids = { two: unique("two") };
  const counts = [];
  const called = thirdParty(({ headers }) => {
    counts.push(headers["upstash-workflow-invoke-count"]);
    return { body: "{}" };
  });
  const label = since("1.1.1") ? { label: "invoked" } : {};
  const flows = await workflows({
    workflowOne: async (context, did) => {
      await context.run("step 1", () => did("step 1"));
      const two = await context.invoke("invoking other", {
        workflow: flows.workflowTwo.invokable, body: "payload", headers: { "invoke-header": "value" }, workflowRunId: ids.two,
        ...label,
      });
      assert.deepEqual([two.body, two.isCanceled, two.isFailed], ["result", false, false]);
      const call = await context.call("call workflow", {
        workflow: flows.workflowFour.invokable, body: { the: "payload" }, retries: 0,
      });
      assert.equal(typeof call.body.workflowRunId, "string");
      const three = await context.invoke("invoke failing", { workflow: flows.workflowThree.invokable, body: "x", retries: 0 });
      assert.deepEqual([three.body, three.isCanceled, three.isFailed], [undefined, false, true]);
      await context.run("step 2", () => did("step 2"));
      await context.sleep("sleep so that the asynchronous ones finish", 1);
      return "done";
    },
    workflowTwo: async (context, did) => {
      assert.equal(context.requestPayload, "payload");
      assert.equal(context.headers.get("invoke-header"), "value");
      assert.equal(context.workflowRunId, `wfr_${ids.two}`);
      if (label.label) assert.equal(context.label, "invoked");
      await context.run("step 1", () => did("step 1"));
      await context.run("step 2", () => did("step 2"));
      const [one, two] = await Promise.all([
        context.invoke("invoke branch one", { workflow: flows.branchOne.invokable, body: 1 }),
        context.invoke("invoke branch two", { workflow: flows.branchTwo.invokable, body: 2 }),
      ]);
      assert.deepEqual([one.body, two.body], [{ "branch-one": "result" }, "branch-two-result"]);
      await arrived(context, 7);
      return "result";
    },
    workflowThree: async () => {
      throw new Error("what");
    },
    workflowFour: async (context, did) => {
      await context.run("mock", () => did("mock"));
    },
    branchOne: async (context) => {
      const { timeout } = await context.waitForEvent("timeoutEvent", `${event}-never`, { timeout: 1 });
      assert.equal(timeout, true);
      const { timeout: late } = await context.waitForEvent("notified event", event, { timeout: "20s" });
      assert.equal(late, false);
      await context.sleep("check", 1);
      return { "branch-one": "result" };
    },
    branchTwo: async (context, did) => {
      const { status } = await context.call("call", { url: called.url, method: "GET" });
      assert.equal(status, 200);
      await context.run("wait", async () => {
        await eventually("the other waits", async () => (await client.getWaiters({ eventId: event })).length === 1);
        did("wait");
      });
      const { notifyResponse } = await context.notify("notified event", event, "data");
      assert.equal(notifyResponse.length, 1);
      await context.sleep("check", 1);
      return "branch-two-result";
    },
  });
  const run = await flows.workflowOne.trigger({ body: 123, headers: { "test-header-foo": "header-foo" } });
  assert.equal(await run.result(), "done");
  run.executed({ "step 1": 1, "step 2": 1 });
  await eventually("all workflows are done", () => flows.all.requests.length >= (configuredAtSteps ? 29 : 30));
  flows.all.counted(configuredAtSteps ? 29 : 30);
  assert.deepEqual(counts, ["2"]);
  run.counted({ step: 7, result: 1 });
});

scenario("invoke", "a parent that fails leaves its child alone", {}, async () => {
  const id = unique("parent");
  const failed = gate();
  const flows = await workflows({
    parent: [
      async (context) => {
        await Promise.all([
          context.invoke("invoke child", { workflow: flows.child.invokable }),
          context.run("failing step", async () => {
            // Not before there is a child.
            await eventually("the child", () => flows.all.requests.some((one) => one.path.endsWith("/child")));
            throw new WorkflowNonRetryableError("step failed");
          }),
        ]);
      },
      { failureFunction: () => failed.open() },
    ],
    child: async (context, did) => {
      await context.run("until the parent has failed", () => failed.opened);
      await context.run("child step", () => did("child"));
    },
  });
  const run = await flows.parent.trigger({ workflowRunId: id });
  await run.failure();
  const [child] = others(flows, run);
  await child.result();
  child.counted({ step: 3 });
  child.executed({ child: 1 });
  run.counted({ step: 3, failure: 1 });
  const log = await run.ended("RUN_FAILED");
  await child.ended("RUN_SUCCESS");
  const states = await eventually("the child's result is in its parent's log", async () => {
    const { steps } = (await run.ended("RUN_FAILED")).steps.find(({ type }) => type === "parallel");
    const states = Object.fromEntries(steps.map(({ stepName, state }) => [stepName, state]));
    return states["invoke child"] === "STEP_SUCCESS" && states;
  });
  assert.equal(states["failing step"], "STEP_FAILED");
});

scenario("invoke", "a parent that is told of a failing child, which has one of its own", { from: "1.0.0" }, async () => {
  const id = unique("middle");
  const flows = await workflows({
    workflow: async (context, did) => {
      const workflowRunId = await context.run("step 1", () => did("step 1", id));
      const { isFailed } = await context.invoke("invoke", { workflow: flows.middle.invokable, workflowRunId });
      await context.run("verify step", async () => {
        did("verify", isFailed);
        await eventually("the child has ended", () => flows.all.requests.filter((one) => one.path.endsWith("/child")).length === 3);
      });
      return "done";
    },
    middle: async (context) => {
      await Promise.all([
        context.invoke("invoke child", { workflow: flows.child.invokable }),
        context.run("failing step", async () => {
          await eventually("the child", () => flows.all.requests.some((one) => one.path.endsWith("/child")));
          throw new WorkflowNonRetryableError("step failed");
        }),
      ]);
    },
    child: async (context, did) => {
      await context.sleep("sleep", 1);
      await context.run("child step", () => did("child"));
    },
  });
  const run = await flows.workflow.trigger();
  assert.equal(await run.result(), "done");
  await eventually("all requests", () => flows.all.requests.length >= 11);
  flows.all.counted(11);
  run.counted({ step: 4 });
});

scenario("invoke", "a parent that is cancelled leaves its child alone", {}, async () => {
  const cancelled = gate();
  const flows = await workflows({
    parent: async (context) => {
      await context.invoke("invoke child", { workflow: flows.child.invokable });
    },
    child: async (context, did) => {
      await context.run("until the parent is cancelled", () => cancelled.opened);
      return await context.run("after", () => did("after", "done"));
    },
  });
  const run = await flows.parent.trigger();
  await eventually("the child", () => flows.all.requests.some((one) => one.path.endsWith("/child")));
  assert.deepEqual(await cancel(run), { cancelled: 1 });
  cancelled.open();
  const [child] = others(flows, run);
  assert.equal(await child.result(), "done");
  child.counted({ step: 3 });
  run.counted({ step: 1 });
  await run.ended("RUN_CANCELED");
});

scenario("invoke", "middlewares see each step once", { from: "1.0.0" }, async () => {
  const seen = new Map();
  const see = (context, what) => seen.set(context.workflowRunId, [...(seen.get(context.workflowRunId) ?? []), what]);
  const middleware = new WorkflowMiddleware({
    name: "notes",
    callbacks: {
      runStarted: ({ context }) => see(context, "started"),
      beforeExecution: ({ context, stepName }) => see(context, `before ${stepName}`),
      afterExecution: ({ context, stepName }) => see(context, `after ${stepName}`),
      runCompleted: ({ context, result }) => see(context, `completed ${JSON.stringify(result)}`),
    },
  });
  const other = thirdParty([{ body: JSON.stringify({ message: "called" }), headers: { "Content-Type": "application/json" } }]);
  const flows = await workflows(
    {
      main: async (context, did) => {
        const results = [];
        for (const name of ["runAndSleep", "call", "wait"]) {
          const { body } = await context.invoke(`invoke ${name}`, { workflow: flows[name].invokable, body: "test" });
          await context.run(`check ${name}`, () => did(name));
          results.push(seen.get(body));
        }
        return results;
      },
      runAndSleep: async (context, did) => {
        await context.run("run", () => did("run"));
        await context.sleep("sleep", 1);
        return context.workflowRunId;
      },
      call: async (context) => {
        const { body } = await context.call("call", { url: other.url, method: "GET" });
        assert.equal(body.message, "called");
        return context.workflowRunId;
      },
      wait: async (context) => {
        const { timeout } = await context.waitForEvent("wait", unique("never"), { timeout: 1 });
        assert.equal(timeout, true);
        return context.workflowRunId;
      },
    },
    { middlewares: [middleware] }
  );
  const run = await flows.main.trigger({ body: "payload" });
  const [sleeps, calls, waits] = await run.result();
  const steps = (...names) => names.flatMap((name) => [`before ${name}`, `after ${name}`]);
  assert.deepEqual(sleeps.slice(0, -1), ["started", ...steps("run", "sleep")]);
  assert.deepEqual(calls.slice(0, -1), ["started", ...steps("call")]);
  assert.deepEqual(waits.slice(0, -1), ["started", ...steps("wait")]);
  for (const list of [sleeps, calls, waits]) assert.match(list.at(-1), /^completed "wfr_/);
  flows.all.counted(15);
});
