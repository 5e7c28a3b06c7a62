// Webhooks: URLs that a run makes, and waits for requests to.

import assert from "node:assert/strict";

import { thirdParty, workflow } from "../app.mjs";
import { client, eventually, scenario, server } from "../support.mjs";

/** A workflow that makes a webhook and waits for a request to it. */
const waiting = (timeout = "1h") =>
  workflow(async (context, did) => {
    const webhook = await context.createWebhook("create");
    await context.run("tell", () => did("tell", webhook));
    const { request, timeout: late } = await context.waitForWebhook("wait", webhook, timeout);
    return late ? { late } : { method: request.method, url: request.url, headers: request.headers, text: await request.text() };
  });

/** The webhook that a run has made. */
const webhookOf = async (run) => {
  await run.waitFor(() => run.of("step").length >= 2);
  const log = JSON.parse(run.of("step")[1].body);
  const step = JSON.parse(Buffer.from(log[1].body, "base64"));
  return JSON.parse(step.out);
};

const waited = (eventId) =>
  eventually(`a waiter for ${eventId}`, async () => (await client.getWaiters({ eventId })).length === 1);

scenario("events", "a webhook that is called, and one that isn't", {}, async () => {
  const caller = thirdParty(async ({ body }) => {
    const { webhookUrl } = JSON.parse(body);
    const headers = { "Content-Type": "application/json", "Test-Header": "value" };
    const { status } = await fetch(webhookUrl, { method: "PUT", headers, body: JSON.stringify({ test: "body" }) });
    return { status };
  });
  const flow = await workflow(async (context, did) => {
    const lateWebhook = await context.createWebhook("timeout webhook");
    const late = await context.waitForWebhook("wait for timeout webhook", lateWebhook, "1s");
    assert.deepEqual([late.timeout, late.request], [true, undefined]);
    const webhook = await context.createWebhook("create webhook");
    assert(webhook.webhookUrl.startsWith(`${server}/v2/workflows/hooks/`), webhook.webhookUrl);
    const { status } = await context.call("call webhook caller", {
      url: caller.url, method: "POST", body: JSON.stringify({ webhookUrl: webhook.webhookUrl }), stringifyBody: false,
    });
    assert.equal(status, 200);
    const { request, timeout } = await context.waitForWebhook("wait for webhook", webhook, "30s");
    assert.equal(timeout, false);
    assert.equal(request.url, webhook.webhookUrl);
    assert.equal(request.method, "PUT");
    assert.equal(request.headers.get("test-header"), "value");
    assert.deepEqual(await request.json(), { test: "body" });
    return await context.run("verify complete", () => did("verified", "done"));
  });
  const run = await flow.trigger({ body: { test: "payload" } });
  assert.equal(await run.result(), "done");
  run.counted(8);
  run.executed({ verified: 1 });
  await run.ended("RUN_SUCCESS");
});

scenario("events", "a webhook that is called while the run waits", {}, async () => {
  const flow = await waiting();
  const run = await flow.trigger();
  const { webhookUrl, eventId } = await webhookOf(run);
  await waited(eventId);
  const body = "ünïcode ✓";
  const answer = await fetch(`${webhookUrl}?src=x&y=%2F`, { method: "POST", body, headers: { "X-A": "1" } });
  assert.equal(answer.status, 200);
  const { method, url, headers, text } = await run.result();
  assert.deepEqual([method, url, text, headers.get("x-a")], ["POST", `${webhookUrl}?src=x&y=%2F`, body, "1"]);
  run.counted({ step: 4 });
});

scenario("events", "a webhook without a body", { from: "1.3.3" }, async () => {
  const flow = await waiting();
  const run = await flow.trigger();
  const { webhookUrl, eventId } = await webhookOf(run);
  await waited(eventId);
  assert.equal((await fetch(webhookUrl)).status, 200);
  const { method, text } = await run.result();
  assert.deepEqual([method, text], ["GET", ""]);
  run.counted({ step: 4 });
});

scenario("events", "webhooks of no run that lives", {}, async () => {
  const flow = await waiting("1s");
  const run = await flow.trigger();
  const { webhookUrl } = await webhookOf(run);
  const unknown = webhookUrl.replace(run.id, "wfr_unknown");
  assert.equal((await fetch(unknown, { method: "POST", body: "x" })).status, 404);
  assert.deepEqual(await run.result(), { late: true });
  run.counted({ step: 4 });
  await run.ended("RUN_SUCCESS");
  assert.equal((await fetch(webhookUrl, { method: "POST", body: "x" })).status, 404);
});
