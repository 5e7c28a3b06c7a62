// Queues.

import assert from "node:assert/strict";
import test from "node:test";

import {
  client, deliveries, delivery, eventually, ids, isTime, received, receiverUrl, rejectsWith, unique,
} from "./support.mjs";

test("a queue is made, changed and deleted", async () => {
  const queueName = unique("queue");
  const queue = client.queue({ queueName });
  await queue.delete();
  await rejectsWith(404, queue.get());
  await queue.upsert({ parallelism: 2 });
  const made = await queue.get();
  isTime(made.createdAt);
  isTime(made.updatedAt);
  const { createdAt, updatedAt } = made;
  assert.deepEqual(made, { name: queueName, parallelism: 2, createdAt, updatedAt, paused: false, lag: 0 });
  assert.deepEqual((await queue.list()).filter(({ name }) => name === queueName), [made]);

  await queue.pause();
  await queue.pause();
  assert.equal((await queue.get()).paused, true);
  await queue.resume();
  assert.equal((await queue.get()).paused, false);
  await queue.upsert({ parallelism: 5 });
  const changed = await queue.get();
  assert.equal(changed.parallelism, 5);
  assert.equal(changed.createdAt, createdAt);
  // The SDK says parallelism 1 when it isn't told.
  await queue.upsert({ paused: true });
  assert.deepEqual([(await queue.get()).parallelism, (await queue.get()).paused], [1, true]);

  await queue.delete();
  await queue.delete();
  await rejectsWith(404, queue.get());
  await rejectsWith(404, queue.pause());
  await rejectsWith(404, queue.resume());
});

test("the list is empty when all are deleted", async () => {
  await client.queue({ queueName: unique("queue") }).upsert({ parallelism: 1 });
  for (const { name } of await client.queue().list()) await client.queue({ queueName: name }).delete();
  assert.deepEqual(await client.queue().list(), []);
});

test("messages go one after the other, and wait while it is paused", async () => {
  const queueName = unique("queue");
  const queue = client.queue({ queueName });
  await queue.upsert({ parallelism: 1, paused: true });
  const sent = [];
  for (let n = 0; n < 4; n++) sent.push(await queue.enqueueJSON({ url: `${receiverUrl}/ok`, body: { n } }));
  const message = await client.messages.get(sent[0].messageId);
  assert.equal(message.queueName, queueName);
  assert.equal((await queue.get()).lag, 4);
  for (const { messageId } of sent) assert.deepEqual(await deliveries(messageId), []);
  await queue.resume();
  for (const { messageId } of sent) await delivery(messageId);
  const order = ids(await received()).filter((id) => ids(sent).includes(id));
  assert.deepEqual(order, ids(sent));
  await eventually("nothing is left", async () => (await queue.get()).lag === 0);
});

test("a message makes the queue that isn't there, and changes none that is", async () => {
  const queueName = unique("queue");
  const queue = client.queue({ queueName });
  const { messageId, ...rest } = await queue.enqueue({ url: `${receiverUrl}/ok?a=1&b=//x`, body: "raw" });
  assert.deepEqual(rest, { url: `${receiverUrl}/ok?a=1&b=//x` });
  const request = await delivery(messageId);
  assert.deepEqual([request.target, request.body], ["/ok?a=1&b=//x", "raw"]);
  assert.deepEqual([(await queue.get()).parallelism, (await queue.get()).paused], [1, false]);
  await queue.upsert({ parallelism: 7, paused: true });
  await queue.enqueue({ url: `${receiverUrl}/ok` });
  assert.deepEqual([(await queue.get()).parallelism, (await queue.get()).paused], [7, true]);
  await queue.delete();
});

test("options, groups and repeats", async () => {
  const queueName = unique("queue");
  const queue = client.queue({ queueName });
  const name = unique("group");
  const urls = [`${receiverUrl}/a`, `${receiverUrl}/b`];
  await client.urlGroups.addEndpoints({ name, endpoints: urls.map((url) => ({ url })) });
  const results = await queue.enqueueJSON({
    urlGroup: name, body: { x: 1 }, method: "PATCH", retries: 1, label: "l", headers: { "X-A": "1" },
  });
  assert.deepEqual(results.map(({ url }) => url), urls);
  for (const { messageId, url } of results) {
    const message = await client.messages.get(messageId);
    assert.deepEqual([message.url, message.queueName, message.urlGroup], [url, queueName, name]);
    assert.deepEqual([message.method, message.maxRetries, message.label], ["PATCH", 1, "l"]);
    assert.deepEqual(message.header, { "Content-Type": ["application/json"], "X-A": ["1"] });
    await delivery(messageId);
  }
  const request = { url: `${receiverUrl}/ok`, deduplicationId: unique("dedup") };
  const first = await queue.enqueue(request);
  assert.deepEqual(await queue.enqueue(request), { messageId: first.messageId, deduplicated: true });
  // Not described any more, but sent: it joins the queue when it is due.
  const delayed = await queue.enqueue({ url: `${receiverUrl}/ok`, delay: 3600 });
  const message = await client.messages.get(delayed.messageId);
  assert.equal(message.notBefore - message.createdAt, 3_600_000);
  const next = await queue.enqueue({ url: `${receiverUrl}/ok` });
  await delivery(next.messageId);
  await queue.delete();
});

test("what is wrong is refused", async () => {
  await rejectsWith(400, client.queue({ queueName: "a name" }).upsert({ parallelism: 1 }));
  await rejectsWith(400, client.queue({ queueName: unique("queue") }).upsert({ parallelism: 0 }));
  await rejectsWith(400, client.queue({ queueName: "a name" }).enqueue({ url: `${receiverUrl}/ok` }));
  await rejectsWith(404, client.queue({ queueName: unique("queue") }).enqueue({ urlGroup: "no-such-group" }));
  await assert.rejects(client.queue().get(), /queue name/);
});
