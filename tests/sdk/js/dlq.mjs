// Dead letters.

import assert from "node:assert/strict";
import test from "node:test";
import { QstashError } from "@upstash/qstash";

import {
  callbackOf, client, deadLetter, ended, failed, ids, isTime, plain, receiver, receiverUrl, rejectsWith, sorted, unique,
} from "./support.mjs";

const listed = async (options) => ids((await client.dlq.listMessages(options)).messages);

const deleteAll = async () => {
  while ((await client.dlq.delete({ all: true })).deleted > 0);
};

test("a message that failed for good is there with its last response", async () => {
  await deleteAll();
  const { messageId } = await client.publish({
    url: `${receiverUrl}/fails`,
    body: "never",
    headers: { "X-A": "1" },
    retries: 0,
    label: "dead",
    retryDelay: "1000",
    failureCallback: `${receiverUrl}/failure`,
  });
  const letter = plain(await deadLetter(messageId));
  const { createdAt, dlqId, responseHeader } = letter;
  isTime(createdAt);
  assert.match(dlqId, /^[^/?#%,&\s]+$/);
  assert.deepEqual(responseHeader["Content-Type"], ["text/plain"]);
  assert.deepEqual(letter, {
    messageId,
    dlqId,
    url: `${receiverUrl}/fails`,
    method: "POST",
    header: { "Content-Type": ["text/plain;charset=UTF-8"], "X-A": ["1"] },
    body: "never",
    maxRetries: 0,
    createdAt,
    notBefore: createdAt,
    failureCallback: `${receiverUrl}/failure`,
    retryDelayExpression: "1000",
    label: "dead",
    labels: ["dead"],
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
    responseStatus: 404,
    responseHeader,
    responseBody: "404 Not Found",
  });
  await ended(messageId, "CREATED ACTIVE ERROR FAILED");
  const failure = await callbackOf(messageId, "/failure");
  assert.equal(JSON.parse(failure.body).dlqId, dlqId);
  const signature = failure.headers["upstash-signature"];
  assert.equal(await receiver.verify({ signature, body: failure.body, url: failure.url }), true);
});

test("pages, and no cursor on the last one", async () => {
  await deleteAll();
  assert.deepEqual(await client.dlq.listMessages(), { messages: [], cursor: undefined });
  const letters = [await failed(), await failed(), await failed()];
  const whole = await client.dlq.listMessages();
  assert.equal(whole.cursor, undefined);
  assert.deepEqual(ids(whole.messages), ids(letters));
  const first = await client.dlq.listMessages({ count: 2 });
  assert.equal(typeof first.cursor, "string");
  const rest = await client.dlq.listMessages({ count: 2, cursor: first.cursor });
  assert.equal(rest.cursor, undefined);
  assert.deepEqual(ids([...first.messages, ...rest.messages]), ids(letters));
  const [one, , three] = letters;
  const dlqIds = [one.dlqId, three.dlqId];
  assert.deepEqual(sorted(await listed({ dlqIds })), sorted(ids([one, three])));
  assert.deepEqual(await listed({ dlqIds: one.dlqId }), [one.messageId]);
});

test("each filter by itself", async () => {
  await deleteAll();
  const group = unique("group");
  const queueName = unique("queue");
  const key = unique("key");
  await client.urlGroups.addEndpoints({ name: group, endpoints: [{ url: `${receiverUrl}/fails?a=1,2` }] });
  const label = [unique("label"), unique("label")];
  const flowControl = { key, parallelism: 5 };
  const [sent] = await client
    .queue({ queueName })
    .enqueue({ urlGroup: group, retries: 0, label, flowControl });
  const { messageId } = await deadLetter(sent.messageId);
  const other = await failed();
  const both = [messageId, other.messageId];
  const now = Date.now();
  for (const [filter, expected] of [
    [{ messageId }, [messageId]],
    [{ url: `${receiverUrl}/fails?a=1,2` }, [messageId]],
    [{ url: [`${receiverUrl}/fails?a=1,2`, `${receiverUrl}/fails`] }, both],
    [{ urlGroup: group }, [messageId]],
    [{ queueName }, [messageId]],
    [{ queueName: ["none", queueName] }, [messageId]],
    [{ flowControlKey: key }, [messageId]],
    [{ label: label[0] }, [messageId]],
    [{ label: ["none", label[1]] }, [messageId]],
    [{ responseStatus: 404 }, both],
    [{ responseStatus: [500, 404] }, both],
    [{ responseStatus: 999 }, []],
    [{ callerIp: "127.0.0.1" }, both],
    [{ callerIp: "192.0.2.1" }, []],
    [{ scheduleId: "none" }, []],
    [{ fromDate: new Date(now - 3_600_000) }, both],
    [{ fromDate: now + 3_600_000 }, []],
    [{ toDate: now + 3_600_000 }, both],
    [{ toDate: new Date(now - 3_600_000) }, []],
    [{ label: label[0], responseStatus: 500 }, []],
    [{ api: "llm" }, both],
  ]) {
    assert.deepEqual(sorted(await listed({ filter })), sorted(expected), JSON.stringify(filter));
  }
});

test("letters are deleted once", async () => {
  await deleteAll();
  const letters = [await failed(), await failed(), await failed(), await failed()];
  const [first, second, third, fourth] = letters.map((letter) => letter.dlqId);
  assert.deepEqual(await client.dlq.delete(first), { deleted: 1 });
  await rejectsWith(404, client.dlq.delete(first));
  assert.deepEqual(await client.dlq.delete([first, second, "1-0"]), { deleted: 1 });
  assert.deepEqual(await client.dlq.deleteMany({ dlqIds: [second, third] }), { deleted: 1 });
  assert.deepEqual(await client.dlq.deleteMany({ dlqIds: fourth }), { deleted: 1 });
  assert.deepEqual(await listed(), []);
});

test("letters are deleted by filter, as many as were asked for", async () => {
  await deleteAll();
  const label = unique("label");
  for (let i = 0; i < 3; i++) await failed({ label });
  const other = await failed();
  const part = await client.dlq.delete({ filter: { label }, count: 2 });
  assert.equal(part.deleted, 2);
  assert.equal(typeof part.cursor, "string");
  const rest = await client.dlq.delete({ filter: { label }, count: 2, cursor: part.cursor });
  assert.deepEqual(rest, { deleted: 1 });
  assert.deepEqual(await listed(), [other.messageId]);
  assert.deepEqual(await client.dlq.delete({ all: true }), { deleted: 1 });
  assert.deepEqual(await client.dlq.delete({ all: true }), { deleted: 0 });
});

test("a retry is a new message, and the letter is gone", async () => {
  const letter = await failed({ body: "again", label: "kept" });
  const { responses, cursor } = await client.dlq.retry(letter.dlqId);
  assert.equal(cursor, undefined);
  assert.equal(responses.length, 1);
  const [{ messageId }] = responses;
  assert.notEqual(messageId, letter.messageId);
  const again = await deadLetter(messageId);
  assert.deepEqual([again.body, again.label, again.maxRetries], ["again", "kept", 0]);
  assert.deepEqual(await listed({ filter: { messageId: letter.messageId } }), []);
  await rejectsWith(404, client.dlq.retry(letter.dlqId));
});

test("letters are retried by ids, all or none", async () => {
  const letters = [await failed(), await failed()];
  const dlqIds = letters.map((letter) => letter.dlqId);
  await rejectsWith(404, client.dlq.retry([...dlqIds, "1-0"]));
  assert.deepEqual(sorted(await listed({ dlqIds })), sorted(ids(letters)));
  const { responses } = await client.dlq.retry(dlqIds);
  assert.equal(new Set(ids(responses)).size, 2);
  assert.deepEqual(await listed({ dlqIds }), []);
  // Their failures must not come in between what follows.
  for (const { messageId } of responses) await deadLetter(messageId);
});

test("letters are retried by filter", async () => {
  await deleteAll();
  const label = unique("label");
  for (let i = 0; i < 3; i++) await failed({ label });
  const part = await client.dlq.retry({ filter: { label, responseStatus: 404 }, count: 2 });
  assert.equal(part.responses.length, 2);
  assert.equal(typeof part.cursor, "string");
  for (const { messageId } of part.responses) await deadLetter(messageId);
  const { responses } = await client.dlq.retry({ all: true });
  assert.equal(responses.length, 3);
  for (const { messageId } of responses) await deadLetter(messageId);
  assert.deepEqual(await client.dlq.retry({ filter: { responseStatus: 999 } }), { responses: [], cursor: undefined });
  const one = await client.dlq.retry({ dlqIds: [(await failed()).dlqId] });
  assert.equal(one.responses.length, 1);
  await deadLetter(one.responses[0].messageId);
});

test("a filter that nobody knows does nothing", async () => {
  await deleteAll();
  const { messageId } = await failed();
  for (const filter of [{ labeel: "x" }, { host: "example.com" }, { path: "/fails" }]) {
    await rejectsWith(400, client.dlq.delete({ filter }), Object.keys(filter)[0]);
    await rejectsWith(400, client.dlq.retry({ filter }), Object.keys(filter)[0]);
    await rejectsWith(400, client.dlq.listMessages({ filter }), Object.keys(filter)[0]);
  }
  assert.deepEqual(await listed(), [messageId]);
});

test("no ids are not all", async () => {
  assert.deepEqual(await client.dlq.delete([]), { deleted: 0 });
  assert.deepEqual(await client.dlq.retry([]), { responses: [] });
  await assert.rejects(client.dlq.delete(""), QstashError);
  await assert.rejects(client.dlq.delete({ dlqIds: [] }), QstashError);
  await assert.rejects(client.dlq.retry({ dlqIds: [] }), QstashError);
  assert.equal((await listed()).length, 1);
});
