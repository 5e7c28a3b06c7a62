// Callbacks and failure callbacks.

import assert from "node:assert/strict";
import test from "node:test";

import { callbackOf, client, deadLetter, ended, eventually, received, receiver, receiverUrl, unique } from "./support.mjs";

const base64 = (text) => Buffer.from(text).toString("base64");

test("a callback tells everything, under the names of both generations", async () => {
  const path = `/${unique("callback")}`;
  const { messageId } = await client.publish({
    url: `${receiverUrl}/answers`,
    body: "question",
    headers: { "X-A": "1" },
    method: "PUT",
    retries: 1,
    callback: receiverUrl + path,
  });
  const request = await callbackOf(messageId, path);
  const signature = request.headers["upstash-signature"];
  assert.equal(await receiver.verify({ signature, body: request.body, url: request.url }), true);
  assert.equal(request.method, "POST");
  assert.equal(request.headers["content-type"], "application/json");
  const { createdAt } = await client.messages.get(messageId);
  const body = JSON.parse(request.body);
  const { header, headers } = body;
  assert.deepEqual(header["X-Answer"], ["one", "two"]);
  assert.equal(headers["X-Answer"], "one, two");
  assert.deepEqual(body, {
    status: 200,
    header,
    headers,
    body: base64("answer"),
    retried: 0,
    maxRetries: 1,
    sourceMessageId: messageId,
    sourceMessasgeId: messageId,
    url: `${receiverUrl}/answers`,
    method: "PUT",
    sourceHeader: { "Content-Type": ["text/plain;charset=UTF-8"], "X-A": ["1"] },
    sourceBody: base64("question"),
    createdAt,
    notBefore: createdAt,
    callerIP: "127.0.0.1",
  });
  // It is a message like any other.
  const message = await client.messages.get(request.messageId);
  assert.deepEqual([message.url, message.maxRetries], [receiverUrl + path, 1]);
  await ended(request.messageId, "CREATED ACTIVE DELIVERED");
});

test("a callback for every attempt, and a failure callback at the end", async () => {
  const [callback, failure] = [`/${unique("callback")}`, `/${unique("failure")}`];
  const { messageId } = await client.publish({
    url: `${receiverUrl}/fails`,
    retries: 1,
    retryDelay: "10",
    callback: receiverUrl + callback,
    failureCallback: receiverUrl + failure,
    headers: {
      "Upstash-Callback-Method": "PUT",
      "Upstash-Callback-Forward-X-Callback": "c",
      "Upstash-Failure-Callback-Forward-X-Failure": "f",
      "Upstash-Failure-Callback-Retries": "7",
      "Upstash-Failure-Callback-Label": "of-the-failure",
    },
  });
  const { dlqId } = await deadLetter(messageId);
  const end = await callbackOf(messageId, failure);
  const told = JSON.parse(end.body);
  assert.deepEqual([told.dlqId, told.status, told.retried, told.maxRetries], [dlqId, 404, 1, 1]);
  assert.equal(told.body, base64("404 Not Found"));
  assert.equal("sourceBody" in told, false);
  assert.equal(end.headers["x-failure"], "f");
  const made = await client.messages.get(end.messageId);
  assert.deepEqual([made.maxRetries, made.labels], [7, ["of-the-failure"]]);
  const callbacks = await eventually("two callbacks", async () => {
    const found = (await received()).filter(({ target }) => target === callback);
    return found.length === 2 && found;
  });
  const retried = callbacks.map(({ body }) => JSON.parse(body).retried);
  assert.deepEqual(retried.sort(), [0, 1]);
  for (const { method, headers, body } of callbacks) {
    assert.deepEqual([method, headers["x-callback"]], ["PUT", "c"]);
    assert.equal("dlqId" in JSON.parse(body), false);
  }
});
