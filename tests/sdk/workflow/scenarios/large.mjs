// Logs that are too large to be sent with each delivery: the SDK fetches them.

import assert from "node:assert/strict";

import { arrived, thirdParty, workflow } from "../app.mjs";
import { scenario } from "../support.mjs";

// Above the server's setting for the largest log that it sends; its default is 3 MiB.
const LARGE_BYTES = Number(process.env.LARGE_BYTES ?? 5 * 1024 * 1024);
const large = "x".repeat(LARGE_BYTES);

/** How many deliveries had no body. Never one that the SDK can't fetch what is missing for. */
function checkFetched(run, expected) {
  const empty = run.requests.filter(({ headers }) => headers["content-length"] === "0");
  assert.deepEqual(empty.map(({ kind }) => kind), Array(expected).fill("step"), run.id);
}

scenario("rest", "a large payload", { alone: true }, async () => {
  const flow = await workflow(
    async (context, did) => {
      assert(context.requestPayload === large);
      await context.run("step1", () => did("one", context.requestPayload.length));
      const two = await context.run("step2", () => did("two", context.requestPayload));
      assert(two === large);
      await context.run("throws", () => {
        throw new Error("throwing");
      });
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger({ body: large, headers: { "X-Tenant": "acme" } });
  const { context, failResponse } = await run.failure();
  assert.equal(failResponse, "throwing");
  assert(context.requestPayload === large);
  run.counted({ step: 3, failure: 1 });
  run.executed({ one: 1, two: 1 });
  checkFetched(run, 3);
});

scenario("rest", "a large result of a step", { alone: true }, async () => {
  const flow = await workflow(async (context, did) => {
    const one = await context.run("step1", () => did("one", large));
    assert(one === large);
    return await context.run("step2", () => did("two", one.length));
  });
  const run = await flow.trigger({ headers: { "X-Tenant": "acme" } });
  assert.equal(await run.result(), LARGE_BYTES);
  run.counted({ step: 3 });
  run.executed({ one: 1, two: 1 });
  checkFetched(run, 2);
  for (const { headers } of run.requests) assert.equal(headers["x-tenant"], "acme");
});

scenario("rest", "large results of steps at once", { alone: true }, async () => {
  const flow = await workflow(async (context, did) => {
    const lengths = [];
    for (const group of ["first", "second"]) {
      const [small, big] = await Promise.all([
        context.run(`${group} small`, () => did(`${group} small`)),
        context.run(`${group} large`, () => did(`${group} large`, large)),
      ]);
      assert.equal(small, undefined);
      assert(big === large);
      lengths.push(big.length);
    }
    await arrived(context, 9);
    return lengths;
  });
  const run = await flow.trigger();
  assert.deepEqual(await run.result(), [LARGE_BYTES, LARGE_BYTES]);
  run.counted({ step: 9 });
  run.executed({ "first small": 1, "first large": 1, "second small": 1, "second large": 1 });
  assert(run.requests.some(({ headers }) => headers["content-length"] === "0"));
});

scenario("rest", "a large result of a call", { alone: true }, async () => {
  const other = thirdParty([{ status: 201, body: large, headers: { "Get-Header": "value" } }]);
  const flow = await workflow(async (context, did) => {
    const { body, status, header } = await context.call("get large body", { url: other.url, method: "GET" });
    assert.deepEqual([status, header["Get-Header"]], [201, ["value"]]);
    assert(body === large);
    return await context.run("step2", () => did("two", body.length));
  });
  const run = await flow.trigger({ body: "payload" });
  assert.equal(await run.result(), LARGE_BYTES);
  run.counted({ step: 3, result: 1 });
  checkFetched(run, 2);
});

scenario("rest", "a large error", { alone: true }, async () => {
  // The answer holds it twice, and the server keeps no more than 10 MiB of one by default.
  const message = large.slice(0, 4 * 1024 * 1024);
  const flow = await workflow(
    async (context, did) => {
      await context.run("step1", () => did("one", 1));
      await context.run("step2", () => {
        throw new Error(message);
      });
    },
    { failureFunction: () => {} }
  );
  const run = await flow.trigger({ body: "“unicode-quotes”" });
  const { failResponse, failStatus, context } = await run.failure();
  assert.equal(failStatus, 500);
  assert(failResponse === message);
  assert.equal(context.requestPayload, "“unicode-quotes”");
  run.counted({ step: 2, failure: 1 });
  checkFetched(run, 0);
});
