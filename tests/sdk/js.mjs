// Drives a server with the official JavaScript SDK. Started by tests/it/sdk.rs, which says where everything is.

import assert from "node:assert/strict";
import { Client, Receiver } from "@upstash/qstash";

const {
  QSTASH_URL: server,
  QSTASH_TOKEN: token,
  QSTASH_CURRENT_SIGNING_KEY: currentSigningKey,
  QSTASH_NEXT_SIGNING_KEY: nextSigningKey,
  RECEIVER_URL: receiverUrl,
  RECEIVED_URL: receivedUrl,
} = process.env;

const client = new Client({ baseUrl: server, token });
const receiver = new Receiver({ currentSigningKey, nextSigningKey });

/** Asks until there is an answer, 20 s at most. */
async function eventually(what, ask) {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert(Date.now() < deadline, `not within 20 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

async function received() {
  const requests = await (await fetch(receivedUrl)).json();
  return requests.map((request) => ({
    ...request,
    url: receiverUrl + request.target,
    body: Buffer.from(request.body, "base64").toString(),
    messageId: request.headers["upstash-message-id"],
  }));
}

const delivery = (messageId) =>
  eventually(`${messageId} is delivered`, async () => (await received()).find((r) => r.messageId === messageId));

const callbackOf = (messageId, path) =>
  eventually(`${messageId} has a callback on ${path}`, async () =>
    (await received()).find((r) => r.target === path && JSON.parse(r.body).sourceMessageId === messageId)
  );

const verify = (by, request, body = request.body) =>
  by.verify({ signature: request.headers["upstash-signature"], body, url: request.url });

const states = async (messageId) => {
  const { logs } = await client.logs({ messageIds: [messageId] });
  return logs.map((log) => log.state).reverse().join(" ");
};

const ended = (messageId, expected) =>
  eventually(`${messageId}: ${expected}`, async () => (await states(messageId)) === expected);

const deadLetter = (messageId) =>
  eventually(`${messageId} is in the DLQ`, async () => {
    const { messages } = await client.dlq.listMessages({ filter: { messageId } });
    return messages[0];
  });

const rejectsWith = (status, promise) =>
  assert.rejects(promise, (error) => {
    assert.equal(error.status, status, String(error));
    assert.equal(typeof JSON.parse(error.message).error, "string");
    return true;
  });

// --- publishing, and reading the message back ---

{
  const { messageId } = await client.publishJSON({
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
    label: "sdk-label",
  });
  assert.match(messageId, /^msg_/);
  const message = await client.messages.get(messageId);
  assert.equal(message.messageId, messageId);
  assert.equal(message.url, `${receiverUrl}/ok?a=1&b=%20`);
  assert.equal(message.method, "PUT");
  assert.equal(message.body, '{"hello":"wörld"}');
  assert.deepEqual(message.header, {
    "Content-Type": ["application/json"],
    "Test-Header": ["test-value"],
    "Bypass-Tunnel-Reminder": ["1"],
  });
  assert.equal(message.maxRetries, 2);
  assert.equal(message.retryDelayExpression, "1000 * (1 + retried)");
  assert.equal(message.callback, `${receiverUrl}/callback`);
  assert.equal(message.failureCallback, `${receiverUrl}/failure`);
  assert.equal(message.label, "sdk-label");
  assert.equal(typeof message.createdAt, "number");
  assert.equal(message.notBefore - message.createdAt, 3_600_000);

  // Cancelling it.
  assert.deepEqual(await client.messages.cancel(messageId), { cancelled: 1 });
  await ended(messageId, "CREATED CANCEL_REQUESTED CANCELED");
  await rejectsWith(404, client.messages.cancel(messageId));
}

{
  // Without a delay it can be read right after, delivered or not.
  const { messageId } = await client.publish({ url: `${receiverUrl}/ok`, body: "plain" });
  const message = await client.messages.get(messageId);
  assert.equal(message.body, "plain");
  assert.equal(message.maxRetries, 3);
  assert.equal(message.notBefore, message.createdAt);
  await ended(messageId, "CREATED ACTIVE DELIVERED");
}

await rejectsWith(404, client.messages.get("msg_unknown"));
await rejectsWith(400, client.publish({ url: "ftp://example.com", body: "x" }));
await rejectsWith(401, new Client({ baseUrl: server, token: "wrong" }).publish({ url: receiverUrl, body: "x" }));

// --- deduplication ---

{
  const request = { url: `${receiverUrl}/ok`, body: "once", deduplicationId: "js-1" };
  const first = await client.publish(request);
  assert.equal(first.deduplicated, undefined);
  assert.deepEqual({ ...(await client.publish(request)), url: undefined }, {
    messageId: first.messageId,
    deduplicated: true,
    url: undefined,
  });
  const content = { url: `${receiverUrl}/ok`, body: "content once", contentBasedDeduplication: true };
  const original = await client.publish(content);
  const repeat = await client.publish(content);
  assert.equal(repeat.messageId, original.messageId);
  assert.equal(repeat.deduplicated, true);
}

// --- redaction ---

{
  const { messageId } = await client.publish({
    url: `${receiverUrl}/ok`,
    body: "secret body",
    headers: { "X-Secret": "s3cret", "X-Open": "open" },
    redact: { body: true, header: ["X-Secret"] },
  });
  const message = await client.messages.get(messageId);
  assert.match(message.body, /^REDACTED:[0-9a-f]{64}$/);
  assert.match(message.header["X-Secret"][0], /^REDACTED:[0-9a-f]{64}$/);
  assert.deepEqual(message.header["X-Open"], ["open"]);
  const request = await delivery(messageId);
  assert.equal(request.body, "secret body");
  assert.equal(request.headers["x-secret"], "s3cret");
}

// --- deliveries and callbacks verify ---

{
  const { messageId } = await client.publishJSON({
    url: `${receiverUrl}/recovers`,
    body: { text: "ünïcode ✓" },
    retryDelay: "50",
    callback: `${receiverUrl}/callback?of=js`,
  });
  const request = await delivery(messageId);
  assert.equal(await verify(receiver, request), true);
  await assert.rejects(verify(receiver, request, request.body + " "), { name: "SignatureError" });
  await assert.rejects(verify(receiver, { ...request, url: `${request.url}/` }), { name: "SignatureError" });
  await assert.rejects(
    verify(new Receiver({ currentSigningKey: nextSigningKey, nextSigningKey: "sig_other" }), request),
    { name: "SignatureError" }
  );
  await ended(messageId, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED");
  const callback = await callbackOf(messageId, "/callback?of=js");
  assert.equal(await verify(receiver, callback), true);
  await assert.rejects(verify(receiver, callback, callback.body.replace('"', "'")), { name: "SignatureError" });
}

// --- dead letters ---

{
  const { messageId } = await client.publish({
    url: `${receiverUrl}/fails`,
    body: "never",
    retries: 0,
    label: "dead",
    retryDelay: "1000",
    failureCallback: `${receiverUrl}/failure`,
  });
  await ended(messageId, "CREATED ACTIVE ERROR FAILED");
  const letter = await deadLetter(messageId);
  assert.equal(letter.responseStatus, 404);
  assert.equal(letter.responseBody, "404 Not Found");
  assert.deepEqual(letter.responseHeader["Content-Type"], ["text/plain"]);
  assert.equal(letter.body, "never");
  assert.equal(letter.maxRetries, 0);
  assert.equal(letter.retryDelayExpression, "1000");
  const failure = await callbackOf(messageId, "/failure");
  assert.equal(await verify(receiver, failure), true);
  assert.equal(JSON.parse(failure.body).dlqId, letter.dlqId);

  for (const filter of [{ messageId }, { fromDate: 1, toDate: 4_000_000_000_000 }]) {
    const page = await client.dlq.listMessages({ filter });
    assert.equal(page.messages[0].messageId, messageId);
    assert.equal(page.cursor, undefined);
  }
  const other = await client.publish({ url: `${receiverUrl}/fails`, body: "second", retries: 0 });
  await deadLetter(other.messageId);
  const page = await client.dlq.listMessages({ count: 1 });
  assert.equal(page.messages.length, 1);
  assert.equal(typeof page.cursor, "string");
  const rest = await client.dlq.listMessages({ count: 1, cursor: page.cursor });
  assert.equal(rest.messages.length, 1);
  assert.notEqual(rest.messages[0].dlqId, page.messages[0].dlqId);
  assert.equal(rest.cursor, undefined);

  // A retry is a new message, and the entry is gone.
  const { responses } = await client.dlq.retry(letter.dlqId);
  assert.equal(responses.length, 1);
  assert.notEqual(responses[0].messageId, messageId);
  const again = await deadLetter(responses[0].messageId);
  assert.equal(again.body, "never");
  assert.deepEqual((await client.dlq.listMessages({ filter: { messageId } })).messages, []);
  await rejectsWith(404, client.dlq.retry(letter.dlqId));

  await client.dlq.delete(again.dlqId);
  await rejectsWith(404, client.dlq.delete(again.dlqId));
}

// --- cancelling what is in flight ---

{
  const { messageId } = await client.publish({ url: `${receiverUrl}/held`, body: "x" });
  await delivery(messageId);
  assert.deepEqual(await client.messages.cancel(messageId), { cancelled: 1 });
}

// --- the log ---

{
  const { messageId } = await client.publish({ url: `${receiverUrl}/ok?logged`, body: "x", label: ["first", "second"] });
  await ended(messageId, "CREATED ACTIVE DELIVERED");
  const { logs, cursor } = await client.logs({ messageIds: [messageId] });
  assert.equal(cursor, undefined);
  assert.equal(logs.length, 3);
  for (const log of logs) {
    assert.equal(log.messageId, messageId);
    assert.equal(log.url, `${receiverUrl}/ok?logged`);
    assert.equal(log.label, "first");
    assert.deepEqual(log.labels, ["first", "second"]);
    assert.equal(Buffer.from(log.body, "base64").toString(), "x");
    assert.equal(typeof log.time, "number");
  }
  const first = await client.logs({ count: 2, filter: { messageId } });
  assert.equal(first.logs.length, 2);
  const second = await client.logs({ count: 2, cursor: first.cursor, filter: { messageId } });
  assert.deepEqual([...first.logs, ...second.logs], logs);
  assert.equal(second.cursor, undefined);
  const delivered = await client.logs({ filter: { messageId, state: "DELIVERED" } });
  assert.deepEqual(delivered.logs.map((log) => log.state), ["DELIVERED"]);
}

// --- keys ---

const call = async (method, path) =>
  (await fetch(server + path, { method, headers: { Authorization: `Bearer ${token}` } })).json();
assert.deepEqual(await call("GET", "/v2/keys"), { current: currentSigningKey, next: nextSigningKey });
const rotated = await call("POST", "/v2/keys/rotate");
assert.equal(rotated.current, nextSigningKey);
assert.deepEqual(await call("GET", "/v2/keys"), rotated);

{
  // A receiver that still has the old pair goes on verifying: what is current now was its next key.
  const { messageId } = await client.publish({ url: `${receiverUrl}/ok`, body: "after the rotation" });
  const request = await delivery(messageId);
  assert.equal(await verify(receiver, request), true);
  const updated = new Receiver({ currentSigningKey: rotated.current, nextSigningKey: rotated.next });
  assert.equal(await verify(updated, request), true);
  await assert.rejects(verify(receiver, request, "tampered"), { name: "SignatureError" });
}

console.log("all checks passed");
