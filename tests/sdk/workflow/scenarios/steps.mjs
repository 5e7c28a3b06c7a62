// Steps that the app executes by itself, sleeps, and several of them at once.

import assert from "node:assert/strict";

import { arrived, workflow } from "../app.mjs";
import { gate, scenario, unique } from "../support.mjs";

scenario("runs", "three steps, one after the other", {}, async () => {
  const tenants = new Set();
  const flow = await workflow(async (context, did) => {
    tenants.add(context.headers.get("x-tenant"));
    const processed = (text) => `processed '${text}'`;
    const one = await context.run("step1", async () => did("one", processed(context.requestPayload)));
    assert.equal(one, "processed '“unicode-quotes”'");
    const two = await context.run("step2", () => did("two", processed(one)));
    const three = await context.run("step 3", () => Promise.resolve(did("three", true)));
    assert.equal(three, true);
    return two;
  });
  const run = await flow.trigger({ body: "“unicode-quotes”", headers: { "X-Tenant": "acme" } });
  assert.equal(await run.result(), "processed 'processed '“unicode-quotes”''");
  run.counted({ step: 4 });
  run.executed({ one: 1, two: 1, three: 1 });
  assert.deepEqual([...tenants], ["acme"]);
  for (const { headers } of run.requests) assert.equal(headers["x-tenant"], "acme");
  const { workflowRunResponse } = (await run.ended("RUN_SUCCESS")) ?? {};
  if (workflowRunResponse) assert.equal(JSON.parse(workflowRunResponse), "processed 'processed '“unicode-quotes”''");
});

scenario("runs", "results of all kinds come back as they were", {}, async () => {
  const values = [undefined, null, 0, "", "text", "ünïcode ✓ \u2028 😀", "quotes \" and \\ \n", [1, [2]], { a: { b: null } }, 1e21, "12"];
  // What JSON text the SDK takes for something else comes back as that, from any server.
  const expected = values.map((value) => (value === "12" ? 12 : value));
  const flow = await workflow(async (context, did) => {
    const results = [];
    for (const [i, value] of values.entries()) results.push(await context.run(`value ${i}`, () => did(`${i}`, value)));
    return results;
  });
  const run = await flow.trigger();
  const results = await run.result();
  assert.deepEqual(results.map(String), expected.map(String));
  run.counted({ step: values.length + 1 });
  run.executed(Object.fromEntries(values.map((_, i) => [i, 1])));
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "names that repeat are steps of their own", {}, async () => {
  const flow = await workflow(async (context, did) => {
    let sum = 0;
    for (let i = 1; i <= 5; i++) sum += await context.run("again", () => did("again", i));
    return sum;
  });
  const run = await flow.trigger();
  assert.equal(await run.result(), 15);
  run.counted({ step: 6 });
  run.executed({ again: 5 });
});

scenario("runs", "sleeps", {}, async () => {
  const flow = await workflow(async (context, did) => {
    assert.equal(context.requestPayload, undefined);
    const start = await context.run("step1", () => did("one", Date.now()));
    // A fraction of a second, as the SDK's users get it from Date.now().
    await context.sleepUntil("sleep1", start / 1000 + 1.5);
    const middle = await context.run("step2", () => did("two", Date.now()));
    await context.sleep("sleep2", 1);
    const end = await context.run("step3", () => did("three", Date.now()));
    return [middle - start, end - middle];
  });
  const run = await flow.trigger();
  const [first, second] = await run.result();
  // The unit of sleepUntil is a second; a server may take the fraction or drop it.
  assert(first >= 500, `slept ${first} ms of 1500`);
  assert(second >= 990, `slept ${second} ms of 1000`);
  run.counted({ step: 6 });
  run.executed({ one: 1, two: 1, three: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "sleeps as text, and until a date", {}, async () => {
  const flow = await workflow(async (context, did) => {
    await context.sleep("text", "1s");
    const until = await context.run("until", () => did("until", Math.ceil(Date.now() / 1000) + 1));
    await context.sleepUntil("date", new Date(until * 1000));
    const woke = await context.run("woke", () => did("woke", Date.now()));
    return woke - until * 1000;
  });
  const run = await flow.trigger();
  const late = await run.result();
  assert(late >= -10, `${-late} ms before the date`);
  run.counted({ step: 5 });
  run.executed({ until: 1, woke: 1 });
});

scenario("runs", "a sleep among steps at once, behind steps in a row", {}, async () => {
  const flow = await workflow(async (context, did) => {
    for (let attempt = 1; attempt <= 3; attempt++) {
      const success = await context.run("attemptCharge", () => did("attempt", attempt === 3));
      if (!success) {
        await context.sleep("retrySleep", 1);
        continue;
      }
      const results = await Promise.all([
        context.run("updateDb", () => did("update", context.requestPayload.amount)),
        context.run("sendReceipt", () => did("send", context.requestPayload.email)),
        context.sleep("sleep", 1),
      ]);
      await arrived(context, 12);
      return results;
    }
  });
  const run = await flow.trigger({ body: { email: "my@mail.com", amount: 10 } });
  assert.deepEqual(await run.result(), [10, "my@mail.com", undefined]);
  run.counted({ step: 12 });
  run.executed({ attempt: 3, update: 1, send: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "groups of steps at once, one behind the other", {}, async () => {
  const flow = await workflow(async (context, did) => {
    const first = await Promise.all([
      context.run("1", () => did("1")),
      context.run("2", () => did("2", 2)),
    ]);
    const second = await Promise.all([
      context.run("3", () => did("3", 3)),
      context.run("4", () => did("4")),
    ]);
    await arrived(context, 9);
    return [...first, ...second];
  });
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), [undefined, 2, 3, undefined]);
  run.counted({ step: 9 });
  run.executed({ 1: 1, 2: 1, 3: 1, 4: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "a step at once that is slow, and one that continues", {}, async () => {
  const slow = gate();
  const flow = await workflow(async (context, did) => {
    const results = await Promise.all([
      context.run("slow", async () => {
        await slow.opened;
        return did("slow", "slow");
      }),
      context.run("quick", () => did("quick", "quick")),
      context.sleepUntil("past", 1000),
    ]);
    const after = await context.run("after", () => did("after", results));
    await arrived(context, 8);
    return after;
  });
  const run = await flow.trigger();
  // The start, three plans, two results; of them all but the slow plan are answered.
  await run.waitFor(() => run.requests.length === 6 && run.requests.filter((one) => one.status === undefined).length === 1);
  slow.open();
  assert.deepEqual(await run.result(), ["slow", "quick", null]);
  run.counted({ step: 8 });
  run.executed({ slow: 1, quick: 1, after: 1 });
});

scenario("runs", "two hundred branches at once", { from: "1.3.3", web: true, alone: true }, async () => {
  const branches = Array.from({ length: 200 }, (_, i) => i);
  const flow = await workflow(async (context, did) => {
    const results = await Promise.all(branches.map((i) => context.run(`branch ${i}`, () => did(`${i}`, i))));
    const sum = await context.run("sum", () => did("sum", results.reduce((sum, i) => sum + i)));
    await arrived(context, 402);
    return sum;
  });
  const run = await flow.trigger();
  assert.equal(await run.result(), 19900);
  run.counted({ step: 1 + 2 * 200 + 1 });
  run.executed({ ...Object.fromEntries(branches.map((i) => [i, 1])), sum: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "fifty runs at once", { from: "1.3.3" }, async () => {
  const flow = await workflow(async (context, did) => {
    const one = await context.run("one", () => did("one", context.requestPayload));
    const [two, three] = await Promise.all([
      context.run("two", () => did("two", one + 1)),
      context.run("three", () => did("three", one + 2)),
    ]);
    await arrived(context, 6);
    return two + three;
  });
  const started = await flow.triggerAll(Array.from({ length: 50 }, (_, i) => ({ body: i })));
  assert.equal(new Set(started).size, 50);
  for (const [i, run] of started.entries()) {
    assert.equal(await run.result(), 2 * i + 3);
    run.counted({ step: 6 });
    run.executed({ one: 1, two: 1, three: 1 });
  }
});

scenario("runs", "authorization that is given", {}, async () => {
  const flow = await workflow(async (context, did) => {
    if (context.headers.get("authentication") !== "Bearer secret") return undefined;
    const one = await context.run("step1", () => did("one", 1));
    return await context.run("step2", () => did("two", one + 1));
  });
  const run = await flow.trigger({ headers: { authentication: "Bearer secret" } });
  assert.equal(await run.result(), 2);
  run.counted({ step: 3 });
  run.executed({ one: 1, two: 1 });
});

scenario("runs", "a step that fails once is executed again", {}, async () => {
  let attempts = 0;
  const flow = await workflow(
    async (context, did) => {
      const one = await context.run("one", () => did("one", 1));
      const two = await context.run("two", () => {
        did("two");
        if (++attempts === 1) throw new Error("not yet");
        return one + 1;
      });
      return await context.run("three", () => did("three", two + 1));
    },
    { config: { retries: 1, retryDelay: "200" } }
  );
  const run = await flow.trigger();
  assert.equal(await run.result(), 3);
  run.counted({ step: 5 });
  run.executed({ one: 1, two: 2, three: 1 });
  assert.deepEqual(run.requests.map((one) => one.status), [200, 500, 200, 200, 200]);
  await run.ended("RUN_SUCCESS");
});

scenario("runs", "the attempt's number", { from: "1.3.3" }, async () => {
  const attempts = [];
  const flow = await workflow(
    async (context, did) => {
      await context.run("one", () => {
        attempts.push(context.retried);
        did("one");
        if (context.retried < 2) throw new Error("not yet");
      });
    },
    { config: { retries: 2, retryDelay: "200" } }
  );
  const run = await flow.trigger();
  await run.result();
  assert.deepEqual(attempts, [0, 1, 2]);
  run.counted({ step: 4 });
  assert.deepEqual(run.requests.map(({ headers }) => headers["upstash-retried"]), ["0", "1", "2", "0"]);
});

scenario("runs", "the run's creation time", { from: "1.1.1" }, async () => {
  const times = new Set();
  const flow = await workflow(async (context, did) => {
    times.add(context.workflowRunCreatedAt);
    await context.run("one", () => did("one"));
    await context.sleep("sleep", 1);
  });
  const before = Date.now();
  const run = await flow.trigger();
  await run.result();
  run.counted({ step: 3 });
  const [time, ...others] = times;
  assert.deepEqual(others, []);
  assert(time >= before - 1000 && time <= Date.now(), `created ${time - before} ms after the trigger`);
});

scenario("runs", "a label is on every delivery", {}, async () => {
  const labels = new Set();
  const flow = await workflow(async (context, did) => {
    labels.add(context.label);
    await context.run("one", () => did("one"));
    await Promise.all([context.run("two", () => did("two")), context.run("three", () => did("three"))]);
    await arrived(context, 6);
  });
  const run = await flow.trigger({ label: "order" });
  await run.result();
  run.counted({ step: 6 });
  assert.deepEqual([...labels], ["order"]);
  for (const { headers } of run.requests) assert.equal(headers["upstash-label"], "order");
  const log = await run.ended("RUN_SUCCESS");
  assert.deepEqual([log.label, log.labels], ["order", ["order"]]);
});

scenario("runs", "several labels", { from: "1.3.3" }, async () => {
  const labels = new Set();
  const flow = await workflow(async (context, did) => {
    labels.add(context.labels.join("|"));
    await context.run("one", () => did("one"));
  });
  const run = await flow.trigger({ label: ["order", "express"] });
  await run.result();
  run.counted({ step: 2 });
  assert.deepEqual([...labels], ["order|express"]);
  const log = await run.ended("RUN_SUCCESS");
  assert.deepEqual([log.label, log.labels], ["order", ["order", "express"]]);
});

scenario("runs", "flow control holds for every delivery of a run", {}, async () => {
  const flow = await workflow(
    async (context, did) => {
      const branches = ["a", "b", "c", "d"].map((name) => context.run(name, () => did(name, name)));
      const results = await Promise.all(branches);
      // No request comes while this one is under way, so none may be awaited here.
      await context.run("after", () => did("after"));
      return results.join("");
    },
    { config: { flowControl: { key: unique("key"), parallelism: 1 } } }
  );
  const [one, two] = await flow.triggerAll([{}, {}]);
  for (const run of [one, two]) {
    assert.equal(await run.result(), "abcd");
    run.executed({ a: 1, b: 1, c: 1, d: 1, after: 1 });
    await run.ended("RUN_SUCCESS");
    // Of the four results' deliveries three may have been waiting when the run ended.
    const { length } = run.requests;
    assert(length >= 7 && length <= 10, `${length} requests`);
  }
  assert.equal(flow.most, 1, "requests at once");
});

scenario("runs", "two retries of a group's plan leave the group whole", {}, async () => {
  const failed = new Set();
  const once = (name) => {
    if (failed.has(name)) return;
    failed.add(name);
    throw new Error("not yet");
  };
  const flow = await workflow(
    async (context, did) => {
      const branches = ["a", "b", "c"].map((name) =>
        context.run(name, () => {
          did(name);
          once(name);
          return name;
        })
      );
      const results = await Promise.all(branches);
      await arrived(context, 10);
      return results.join("");
    },
    { config: { retries: 1, retryDelay: "200" } }
  );
  const run = await flow.trigger();
  assert.equal(await run.result(), "abc");
  run.counted({ step: 1 + 3 + 3 + 3 });
  run.executed({ a: 2, b: 2, c: 2 });
});
