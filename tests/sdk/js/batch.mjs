// Many messages in one request.

import assert from "node:assert/strict";
import test from "node:test";

import { client, delivery, ids, receiverUrl, rejectsWith, unique } from "./support.mjs";

test("one answer for each message, in their order; a list for a group", async () => {
  const group = unique("group");
  const queueName = unique("queue");
  const endpoints = [{ url: `${receiverUrl}/a` }, { url: `${receiverUrl}/b` }];
  await client.urlGroups.addEndpoints({ name: group, endpoints });
  const results = await client.batch([
    { url: `${receiverUrl}/ok?first`, body: "one", headers: { "X-A": "1" }, method: "PUT" },
    { urlGroup: group, body: "two" },
    { queueName, url: `${receiverUrl}/ok?third`, body: "three", label: "l" },
    { queueName, urlGroup: group },
  ]);
  assert.equal(results.length, 4);
  const [one, two, three, four] = results;
  assert.deepEqual([one, two, three, four].map(Array.isArray), [false, true, false, true]);
  assert.deepEqual(two.map(({ url }) => url), endpoints.map(({ url }) => url));
  const all = ids([one, ...two, three, ...four]);
  assert.equal(new Set(all).size, 6);
  for (const id of all) assert.match(id, /^msg_/);

  const request = await delivery(one.messageId);
  assert.deepEqual([request.method, request.body, request.headers["x-a"]], ["PUT", "one", "1"]);
  assert.equal(request.target, "/ok?first");
  const message = await client.messages.get(three.messageId);
  assert.deepEqual([message.queueName, message.label, message.body], [queueName, "l", "three"]);
  const ofGroup = await client.messages.get(four[1].messageId);
  assert.deepEqual([ofGroup.queueName, ofGroup.urlGroup, ofGroup.url], [queueName, group, `${receiverUrl}/b`]);
  for (const id of all) await delivery(id);
});

test("JSON bodies, and each message's own options", async () => {
  const results = await client.batchJSON([
    { url: `${receiverUrl}/ok`, body: { n: 1 } },
    { url: `${receiverUrl}/ok`, body: [2], delay: "1d", retries: 0 },
    { url: `${receiverUrl}/ok` },
  ]);
  const [first, second, third] = ids(results);
  const request = await delivery(first);
  assert.equal(request.body, '{"n":1}');
  assert.equal(request.headers["content-type"], "application/json");
  const message = await client.messages.get(second);
  assert.deepEqual([message.body, message.maxRetries], ["[2]", 0]);
  assert.equal(message.notBefore - message.createdAt, 86_400_000);
  assert.deepEqual(message.header, { "Content-Type": ["application/json"] });
  assert.equal((await delivery(third)).body, "");
  assert.deepEqual(await client.messages.cancel([second]), { cancelled: 1 });
});

test("a repeat within the batch is the first message", async () => {
  const message = { url: `${receiverUrl}/ok`, deduplicationId: unique("dedup") };
  const [first, second] = await client.batch([message, { ...message, body: "other" }]);
  assert.equal(first.deduplicated, undefined);
  assert.deepEqual(second, { messageId: first.messageId, deduplicated: true });
});

test("all or none", async () => {
  const label = unique("label");
  const good = { url: `${receiverUrl}/ok`, label };
  await rejectsWith(400, client.batch([good, { url: "nowhere:" }]), "1");
  await rejectsWith(400, client.batch([good, { ...good, delay: "5x" }]), "1");
  await rejectsWith(404, client.batch([good, { urlGroup: "no-such-group" }]), "topic no-such-group not found");
  assert.deepEqual((await client.logs({ filter: { label } })).logs, []);
  assert.deepEqual(await client.batch([]), []);
});
