// The oldest version of the SDK that is served, 2.7.0: every method that calls the server, and each of its filters.

import assert from "node:assert/strict";
import test from "node:test";
import { Client, Receiver } from "qstash-2-7";

import {
  currentSigningKey, delivery, eventually, ids, isTime, nextSigningKey, receiverUrl, server, sorted, token,
} from "./support.mjs";

// Base URLs end in a slash, at times in more of them; the SDK takes one away.
const client = new Client({ baseUrl: `${server}///`, token });
const receiver = new Receiver({ currentSigningKey, nextSigningKey });
const group = "js-2-7";

const states = async (messageId) =>
  (await client.events({ filter: { messageId } })).events.map(({ state }) => state).reverse().join(" ");

const ended = (messageId, expected) =>
  eventually(`${messageId}: ${expected}`, async () => (await states(messageId)) === expected);

/** The promise fails, and the error's text is in the one form and contains `text`. */
const rejects = (promise, text) => assert.rejects(promise, ({ message }) => JSON.parse(message).error.includes(text));

const letterOf = (messageId) =>
  eventually(`${messageId} is in the DLQ`, async () => (await client.dlq.listMessages({ filter: { messageId } })).messages[0]);

test("publish with everything that it can say", async () => {
  const { messageId, url } = await client.publishJSON({
    url: `${receiverUrl}/grüße?x=ü y`,
    body: { hello: "wörld" },
    headers: { "X-A": "1" },
    method: "PUT",
    delay: 0,
    retries: 1,
    timeout: 30,
    deduplicationId: "js-2-7",
    callback: `${receiverUrl}/callback`,
    failureCallback: `${receiverUrl}/failure`,
  });
  assert.equal(url, `${receiverUrl}/gr%C3%BC%C3%9Fe?x=%C3%BC%20y`);
  const { method, body, headers } = await delivery(messageId);
  assert.deepEqual([method, body, headers["x-a"]], ["PUT", '{"hello":"wörld"}', "1"]);
  assert.equal(await receiver.verify({ signature: headers["upstash-signature"], body, url }), true);
  await ended(messageId, "CREATED ACTIVE DELIVERED");
  const message = await client.messages.get(messageId);
  assert.deepEqual([message.url, message.maxRetries, message.callback], [url, 1, `${receiverUrl}/callback`]);
  isTime(message.createdAt);
  const again = await client.publish({ url: `${receiverUrl}/`, deduplicationId: "js-2-7" });
  assert.deepEqual([again.messageId, again.deduplicated], [messageId, true]);
  const content = { url: `${receiverUrl}/`, body: "x", contentBasedDeduplication: true };
  assert.equal((await client.publish(content)).messageId, (await client.publish(content)).messageId);
  await rejects(client.publish({ url: `${receiverUrl}/`, notBefore: Date.now() + 60_000 }), "Unix time in seconds");
});

test("URL groups", async () => {
  await client.topics.delete(group);
  const endpoints = [{ name: "one", url: `${receiverUrl}/ok` }, { url: `${receiverUrl}/fails` }];
  await client.urlGroups.addEndpoints({ name: group, endpoints });
  assert.deepEqual((await client.urlGroups.get(group)).endpoints, endpoints);
  assert((await client.urlGroups.list()).some(({ name }) => name === group));
  for (const destination of [{ urlGroup: group }, { topic: group }]) {
    const published = await client.publishJSON({ ...destination, body: 1, retries: 0 });
    assert.deepEqual(published.map(({ url }) => url), endpoints.map(({ url }) => url));
    const [delivered, failed] = ids(published);
    await ended(delivered, "CREATED ACTIVE DELIVERED");
    assert.equal((await letterOf(failed)).urlGroup, group);
  }
});

test("dead letters by each filter", async () => {
  const { messages: [letter] } = await client.dlq.listMessages({ filter: { urlGroup: group }, count: 1 });
  const { messageId, createdAt, url } = letter;
  assert.equal(letter.responseStatus, 404);
  for (const filter of [
    { urlGroup: group }, { topicName: group }, { messageId }, { url }, { responseStatus: 404 },
    { callerIp: "127.0.0.1" }, { fromDate: createdAt - 1, toDate: Date.now() + 1000 }, { urlGroup: group, url },
  ]) {
    const { messages, cursor } = await client.dlq.listMessages({ filter });
    assert(ids(messages).includes(messageId), JSON.stringify(filter));
    assert.equal(cursor, undefined);
  }
  for (const filter of [{ urlGroup: "none" }, { queueName: "none" }, { scheduleId: "none" }]) {
    assert.deepEqual(await client.dlq.listMessages({ filter }), { messages: [], cursor: undefined });
  }
  const page = await client.dlq.listMessages({ count: 1 });
  assert(!ids((await client.dlq.listMessages({ cursor: page.cursor })).messages).includes(page.messages[0].messageId));
  await client.dlq.delete(letter.dlqId);
  const { messages } = await client.dlq.listMessages({ filter: { urlGroup: group } });
  assert.deepEqual(await client.dlq.deleteMany({ dlqIds: messages.map(({ dlqId }) => dlqId) }), { deleted: 1 });
});

test("the log by each filter", async () => {
  const { events: [event] } = await client.events({ filter: { urlGroup: group, state: "DELIVERED", count: 1 } });
  const { messageId, time, url } = event;
  assert.deepEqual([event.urlGroup, url], [group, `${receiverUrl}/ok`]);
  for (const filter of [
    { urlGroup: group }, { topicName: group }, { messageId }, { url }, { state: "DELIVERED" },
    { fromDate: time, toDate: time }, { fromDate: -1, urlGroup: group },
  ]) {
    const { events } = await client.events({ filter });
    assert(ids(events).includes(messageId), JSON.stringify(filter));
  }
  for (const filter of [{ queueName: "none" }, { scheduleId: "none" }]) {
    assert.deepEqual((await client.events({ filter })).events, []);
  }
  assert(ids((await client.events({ cursor: Date.now() + 1000, filter: { url } })).events).includes(messageId));
});

test("batches and queues", async () => {
  const queue = client.queue({ queueName: "js-2-7" });
  await queue.upsert({ parallelism: 2 });
  const [, , , { messageId: enqueued }] = await client.batchJSON([
    { url: `${receiverUrl}/ok`, body: { x: 1 } },
    { url: `${receiverUrl}/grüße y`, body: { x: 2 } },
    { urlGroup: group, body: { x: 3 }, retries: 0 },
    { url: `${receiverUrl}/ok`, body: { x: 4 }, queueName: "js-2-7" },
  ]);
  assert.equal((await delivery(enqueued)).body, '{"x":4}');
  const { messageId } = await queue.enqueueJSON({ url: `${receiverUrl}/ok`, body: { x: 5 } });
  assert.equal((await delivery(messageId)).body, '{"x":5}');
  await queue.pause();
  assert.deepEqual([(await queue.get()).paused, (await queue.get()).parallelism], [true, 2]);
  await queue.resume();
  assert.deepEqual((await queue.list()).map(({ name }) => name), ["js-2-7"]);
  await queue.delete();
});

test("schedules", async () => {
  const { scheduleId } = await client.schedules.create({
    destination: `${receiverUrl}/grüße`,
    cron: "0 0 1 1 *",
    body: "x",
    delay: 10,
    retries: 2,
    timeout: 5,
    method: "PUT",
    callback: `${receiverUrl}/callback`,
    failureCallback: `${receiverUrl}/failure`,
    scheduleId: "js-2-7",
  });
  const schedule = await client.schedules.get(scheduleId);
  assert.deepEqual(
    [scheduleId, schedule.destination, schedule.cron, schedule.delay, schedule.retries, schedule.method],
    ["js-2-7", `${receiverUrl}/gr%C3%BC%C3%9Fe`, "0 0 1 1 *", 10, 2, "PUT"],
  );
  await client.schedules.pause({ schedule: scheduleId });
  assert.equal((await client.schedules.list())[0].isPaused, true);
  await client.schedules.resume({ schedule: scheduleId });
  await client.schedules.delete(scheduleId);
  assert.deepEqual(await client.schedules.list(), []);
});

test("cancelling", async () => {
  const waiting = async () => (await client.publish({ url: `${receiverUrl}/waits`, delay: 86_400 })).messageId;
  const [one, two, three] = [await waiting(), await waiting(), await waiting()];
  await client.messages.delete(one);
  assert.equal(await client.messages.deleteMany([two, one]), 1);
  assert.equal(await client.messages.deleteAll(), 1);
  assert.deepEqual(
    sorted([await states(one), await states(two), await states(three)]),
    Array(3).fill("CREATED CANCEL_REQUESTED CANCELED"),
  );
  await client.urlGroups.removeEndpoints({ name: group, endpoints: [{ name: "one" }, { url: `${receiverUrl}/fails` }] });
  await rejects(client.urlGroups.get(group), `topic ${group} not found`);
});

test("all checks were made", () => {});
