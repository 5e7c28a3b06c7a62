// Publishing a message, and reading it back.

import assert from "node:assert/strict";
import test from "node:test";
import { Client, QstashError } from "@upstash/qstash";

import {
  client, delivery, deliveries, ended, isTime, plain, receiverUrl, rejectsWith, server, unique, waiting,
} from "./support.mjs";

test("a message is read back with exactly what was set", async () => {
  const { messageId, ...rest } = await client.publishJSON({
    url: `${receiverUrl}/ok?a=1&b=%20`,
    body: { hello: "wörld" },
    headers: { "Test-Header": "test-value", "bypass-tunnel-reminder": "1" },
    method: "PUT",
    delay: 3600,
    retries: 2,
    retryDelay: "1000 * (1 + retried)",
    timeout: 30,
    callback: `${receiverUrl}/callback`,
    failureCallback: `${receiverUrl}/failure`,
    label: ["first", "second"],
  });
  assert.match(messageId, /^msg_[0-9A-Za-z]+$/);
  assert.deepEqual(rest, { url: `${receiverUrl}/ok?a=1&b=%20` });

  const message = await client.messages.get(messageId);
  const { createdAt } = message;
  isTime(createdAt);
  assert.deepEqual(plain(message), {
    messageId,
    url: `${receiverUrl}/ok?a=1&b=%20`,
    method: "PUT",
    header: {
      "Content-Type": ["application/json"],
      "Test-Header": ["test-value"],
      "Bypass-Tunnel-Reminder": ["1"],
    },
    body: '{"hello":"wörld"}',
    maxRetries: 2,
    createdAt,
    notBefore: createdAt + 3_600_000,
    retryDelayExpression: "1000 * (1 + retried)",
    callback: `${receiverUrl}/callback`,
    failureCallback: `${receiverUrl}/failure`,
    label: "first",
    labels: ["first", "second"],
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
  });
  await client.messages.cancel(messageId);
});

test("a message with nothing set has the defaults, and can be read right after", async () => {
  const { messageId } = await client.publish({ url: `${receiverUrl}/ok` });
  const message = plain(await client.messages.get(messageId));
  assert.deepEqual(message, {
    messageId,
    url: `${receiverUrl}/ok`,
    method: "POST",
    header: {},
    maxRetries: 3,
    createdAt: message.createdAt,
    notBefore: message.createdAt,
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
  });
  await ended(messageId, "CREATED ACTIVE DELIVERED");
  assert.deepEqual(plain(await client.messages.get(messageId)), message);
});

test("headers arrive with one prefix less, and nothing of the SDK's own", async () => {
  const withHeaders = new Client({
    baseUrl: server,
    token: client.token,
    headers: { "X-Global": "g", "Upstash-Label": "global" },
  });
  const { messageId } = await withHeaders.publish({
    url: `${receiverUrl}/ok`,
    body: "x",
    headers: { "X-Own": "o", "Content-Type": "text/x", "Upstash-Forward-Upstash-Mine": "m" },
  });
  const message = await client.messages.get(messageId);
  assert.deepEqual(message.header, {
    "Content-Type": ["text/x"],
    "X-Global": ["g"],
    "X-Own": ["o"],
    "Upstash-Mine": ["m"],
  });
  assert.deepEqual(message.labels, ["global"]);
  const { headers } = await delivery(messageId);
  assert.equal(headers["x-global"], "g");
  assert.equal(headers["upstash-mine"], "m");
  assert.equal(headers["content-type"], "text/x");
  assert.equal(headers["user-agent"], "Upstash-QStash");
  assert.equal(headers["upstash-retried"], "0");
  assert.equal(headers["upstash-caller-ip"], "127.0.0.1");
  for (const name of Object.keys(headers)) assert.doesNotMatch(name, /telemetry|authorization|sec-fetch|upstash-label/);
});

test("a header that starts with Upstash configures the message", async () => {
  const { messageId } = await waiting({
    headers: {
      "Upstash-Retries": "7",
      "Upstash-Callback": `${receiverUrl}/callback`,
      "Upstash-Callback-Forward-X-Callback": "c",
      "Upstash-Failure-Callback": `${receiverUrl}/failure`,
      "Upstash-Failure-Callback-Forward-X-Failure": "f",
    },
  });
  const message = await client.messages.get(messageId);
  assert.equal(message.maxRetries, 7);
  // From fetch, since the body is a text.
  assert.deepEqual(message.header, { "Content-Type": ["text/plain;charset=UTF-8"] });
  assert.equal(message.callback, `${receiverUrl}/callback`);
  assert.deepEqual(message.callbackHeader, { "X-Callback": ["c"] });
  assert.deepEqual(message.failureCallbackHeader, { "X-Failure": ["f"] });
  await client.messages.cancel(messageId);
});

test("delays, times and timeouts in every form", async () => {
  const notBefore = Math.floor(Date.now() / 1000) + 7200;
  for (const [options, wait] of [
    [{ delay: 90.4 }, 90_000],
    [{ delay: "10d" }, 864_000_000],
    [{ delay: "1d10h30m" }, 124_200_000],
    [{ delay: "0s", notBefore }, undefined],
    [{ delay: "1d", timeout: 1.5 }, 86_400_000],
    [{ delay: "1d", timeout: "1h30m" }, 86_400_000],
  ]) {
    const { messageId } = await waiting(options);
    const message = await client.messages.get(messageId);
    if (wait === undefined) assert.equal(message.notBefore, notBefore * 1000);
    else assert.equal(message.notBefore - message.createdAt, wait, JSON.stringify(options));
    await client.messages.cancel(messageId);
  }
  const { messageId } = await client.publish({ url: `${receiverUrl}/ok`, notBefore: 1_500_000_000, timeout: 1.5 });
  await ended(messageId, "CREATED ACTIVE DELIVERED");
});

test("bodies arrive byte for byte", async () => {
  for (const body of ["", "plain", "ünï✓ \r\n\u0000", new Blob([Uint8Array.of(0, 255, 254, 10)])]) {
    const { messageId } = await client.publish({ url: `${receiverUrl}/ok`, body });
    const expected = Buffer.from(typeof body === "string" ? body : await body.arrayBuffer());
    assert.deepEqual((await delivery(messageId)).bytes, expected);
    const message = await client.messages.get(messageId);
    const isText = typeof body === "string";
    assert.equal(message.body, isText && body !== "" ? body : undefined);
    assert.equal(message.bodyBase64, isText ? undefined : "AP/+Cg==");
  }
  for (const body of [null, 7, "text", [1, { a: null }]]) {
    const { messageId } = await client.publishJSON({ url: `${receiverUrl}/ok`, body });
    const request = await delivery(messageId);
    assert.equal(request.body, JSON.stringify(body));
    assert.equal(request.headers["content-type"], "application/json");
  }
});

test("a repeat with the same deduplication id is the first message", async () => {
  const request = { url: `${receiverUrl}/ok`, body: "once", deduplicationId: unique("dedup") };
  const first = await client.publish(request);
  assert.equal("deduplicated" in first, false);
  const second = await client.publish({ ...request, body: "another" });
  assert.deepEqual(second, { messageId: first.messageId, deduplicated: true });
  await ended(first.messageId, "CREATED ACTIVE DELIVERED");
  assert.equal((await deliveries(first.messageId)).length, 1);
});

test("a repeat of the same content is the first message", async () => {
  const content = { url: `${receiverUrl}/ok`, body: unique("content"), contentBasedDeduplication: true };
  const { messageId } = await client.publish(content);
  assert.deepEqual(await client.publish(content), { messageId, deduplicated: true });
  const other = await client.publish({ ...content, body: unique("content") });
  assert.equal(other.deduplicated, undefined);
});

test("redacted fields are shown as a hash and delivered as they are", async () => {
  for (const [redact, body, secret, open] of [
    [{ body: true, header: ["X-Secret"] }, true, true, false],
    [{ header: true }, false, true, true],
    [{ body: true }, true, false, false],
  ]) {
    const { messageId } = await client.publish({
      url: `${receiverUrl}/ok`,
      body: "secret body",
      headers: { "X-Secret": "s3cret", "X-Open": "open" },
      redact,
    });
    const message = await client.messages.get(messageId);
    const hash = /^REDACTED:[0-9a-f]{64}$/;
    assert.equal(hash.test(message.body), body);
    assert.equal(hash.test(message.header["X-Secret"][0]), secret);
    assert.equal(hash.test(message.header["X-Open"][0]), open);
    const request = await delivery(messageId);
    assert.equal(request.body, "secret body");
    assert.equal(request.headers["x-secret"], "s3cret");
    const { logs } = await client.logs({ messageIds: [messageId] });
    for (const log of logs) assert.equal(hash.test(Buffer.from(log.body, "base64").toString()), body);
  }
});

test("what is wrong is refused with its reason", async () => {
  const invalidScheme = "invalid destination url: endpoint has invalid scheme, add http:// or https://";
  await rejectsWith(404, client.messages.get("msg_unknown"));
  await rejectsWith(400, client.publish({ url: "ftp://example.com" }), invalidScheme);
  await rejectsWith(400, client.publish({ url: "example.com/hook" }), invalidScheme);
  await rejectsWith(400, client.publish({ url: `${receiverUrl}/ok`, delay: "5x" }));
  await rejectsWith(400, client.publish({ url: `${receiverUrl}/ok`, retries: -1 }));
  await rejectsWith(400, client.publish({ url: `${receiverUrl}/ok`, callback: "example.com" }));
  await rejectsWith(400, client.publish({ url: `${receiverUrl}/ok`, retryDelay: "1 +" }));
  const wrong = new Client({ baseUrl: server, token: "wrong" });
  await rejectsWith(401, wrong.publish({ url: `${receiverUrl}/ok` }));
  await rejectsWith(401, wrong.messages.get("msg_unknown"));
  // A common mistake: a base URL with a path.
  const tooLong = new Client({ baseUrl: `${server}/v2/publish`, token: client.token });
  await rejectsWith(400, tooLong.publish({ url: `${receiverUrl}/ok` }), invalidScheme);
  // The SDK itself refuses these.
  await assert.rejects(client.messages.get(""), QstashError);
  await assert.rejects(client.publish({ body: "nowhere" }), QstashError);
});
