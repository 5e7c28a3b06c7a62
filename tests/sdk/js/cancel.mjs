// Cancelling: one message, some, those that fit, all.

import assert from "node:assert/strict";
import test from "node:test";
import { QstashEmptyArrayError, QstashError } from "@upstash/qstash";

import {
  client, deliveries, delivery, ended, ids, receiverUrl, rejectsWith, states, unique, waiting,
} from "./support.mjs";

const cancelAll = async () => {
  while ((await client.messages.cancel({ all: true })).cancelled > 0);
};

test("one message", async () => {
  const { messageId } = await waiting();
  assert.deepEqual(await client.messages.cancel(messageId), { cancelled: 1 });
  await ended(messageId, "CREATED CANCEL_REQUESTED CANCELED");
  await rejectsWith(404, client.messages.cancel(messageId));
  await rejectsWith(404, client.messages.cancel("msg_unknown"));
  const other = await waiting();
  assert.equal(await client.messages.delete(other.messageId), undefined);
  await ended(other.messageId, "CREATED CANCEL_REQUESTED CANCELED");
  await rejectsWith(404, client.messages.delete(other.messageId));
});

test("a message in flight", async () => {
  const { messageId } = await client.publish({ url: `${receiverUrl}/held`, body: "x" });
  await delivery(messageId);
  assert.deepEqual(await client.messages.cancel(messageId), { cancelled: 1 });
});

test("messages by their ids, each once", async () => {
  const messages = [await waiting(), await waiting(), await waiting()];
  const delivered = await client.publish({ url: `${receiverUrl}/ok` });
  await ended(delivered.messageId, "CREATED ACTIVE DELIVERED");
  const [first, ...others] = ids(messages);
  assert.deepEqual(await client.messages.cancel({ messageIds: [first] }), { cancelled: 1 });
  const all = [first, first, ...others, delivered.messageId, "msg_unknown"];
  assert.deepEqual(await client.messages.cancel(all), { cancelled: 2 });
  assert.deepEqual(await client.messages.cancel(all), { cancelled: 0 });
  const more = [await waiting(), await waiting()];
  assert.equal(await client.messages.deleteMany(ids(more)), 2);
});

test("no ids are not all", async () => {
  const { messageId } = await waiting();
  assert.deepEqual(await client.messages.cancel([]), { cancelled: 0 });
  await assert.rejects(client.messages.cancel(""), QstashError);
  await assert.rejects(client.messages.cancel({ messageIds: [] }), QstashError);
  await assert.rejects(client.messages.cancel({ filter: { label: [] } }), QstashEmptyArrayError);
  assert.equal(await states(messageId), "CREATED");
  await client.messages.cancel(messageId);
});

test("a filter that nobody knows cancels nothing", async () => {
  const { messageId } = await waiting();
  await rejectsWith(400, client.messages.cancel({ filter: { labeel: "x" } }), "labeel");
  await rejectsWith(400, client.messages.cancel({ filter: { messageId } }), "messageId");
  await rejectsWith(400, client.messages.cancel({ filter: { label: "x" }, count: 0 }));
  await rejectsWith(400, client.messages.cancel({ filter: { label: "x" }, count: 501 }));
  assert.equal(await states(messageId), "CREATED");
  await client.messages.cancel(messageId);
});

test("messages by what they have in common", async () => {
  await cancelAll();
  const group = unique("group");
  const queueName = unique("queue");
  const key = unique("key");
  await client.urlGroups.addEndpoints({ name: group, endpoints: [{ url: `${receiverUrl}/of-group` }] });
  const { host } = new URL(receiverUrl);
  const before = Date.now();
  const make = {
    label: () => waiting({ label: ["one", "two"] }),
    comma: () => waiting({ url: `${receiverUrl}/comma?a=1,2` }),
    path: () => waiting({ url: `${receiverUrl}/some/path?query` }),
    flow: () => waiting({ flowControl: { key, parallelism: 1 } }),
    queue: () => client.queue({ queueName }).enqueue({ url: `${receiverUrl}/waits`, delay: "1d" }),
    group: async () => (await waiting({ url: undefined, urlGroup: group }))[0],
  };
  const everything = Object.keys(make);
  for (const [filter, fitting] of [
    [{ label: "two" }, ["label"]],
    [{ label: ["none", "one"] }, ["label"]],
    [{ label: "none" }, []],
    [{ url: `${receiverUrl}/comma?a=1,2` }, ["comma"]],
    [{ url: [`${receiverUrl}/comma?a=1,2`, `${receiverUrl}/some/path?query`] }, ["comma", "path"]],
    [{ path: "/some/path" }, ["path"]],
    [{ path: ["/some/path", "/of-group"] }, ["path", "group"]],
    [{ path: "some/path" }, []],
    [{ host }, everything],
    [{ host: "example.com" }, []],
    [{ flowControlKey: key }, ["flow"]],
    [{ queueName }, ["queue"]],
    [{ urlGroup: group }, ["group"]],
    [{ scheduleId: "none" }, []],
    [{ callerIp: "127.0.0.1" }, everything],
    [{ callerIp: "192.0.2.1" }, []],
    [{ fromDate: new Date(before - 60_000), toDate: Date.now() + 60_000 }, everything],
    [{ toDate: before - 60_000 }, []],
    [{ label: "one", path: "/some/path" }, []],
    [{ label: "one", path: "/waits" }, ["label"]],
  ]) {
    const made = {};
    for (const name of everything) made[name] = (await make[name]()).messageId;
    const text = JSON.stringify(filter);
    assert.deepEqual(await client.messages.cancel({ filter }), { cancelled: fitting.length }, text);
    for (const [name, messageId] of Object.entries(made)) {
      const state = fitting.includes(name) ? "CREATED CANCEL_REQUESTED CANCELED" : "CREATED";
      assert.equal(await states(messageId), state, `${text}: ${name}`);
    }
    await client.messages.cancel(Object.values(made));
  }
});

test("as many as were asked for", async () => {
  await cancelAll();
  const label = unique("label");
  for (let i = 0; i < 3; i++) await waiting({ label });
  assert.deepEqual(await client.messages.cancel({ filter: { label }, count: 1 }), { cancelled: 1 });
  assert.deepEqual(await client.messages.cancel({ all: true, count: 1 }), { cancelled: 1 });
  assert.deepEqual(await client.messages.cancel({ filter: { label } }), { cancelled: 1 });
});

test("all", async () => {
  await cancelAll();
  for (let i = 0; i < 3; i++) await waiting();
  assert.deepEqual(await client.messages.cancel({ all: true }), { cancelled: 3 });
  await waiting();
  assert.equal(await client.messages.deleteAll(), 1);
  assert.deepEqual(await client.messages.cancel({ all: true }), { cancelled: 0 });
});

test("what was cancelled makes no callback and no dead letter", async () => {
  const { messageId } = await waiting({
    callback: `${receiverUrl}/never`,
    failureCallback: `${receiverUrl}/never`,
  });
  await client.messages.cancel(messageId);
  await ended(messageId, "CREATED CANCEL_REQUESTED CANCELED");
  assert.deepEqual((await client.dlq.listMessages({ filter: { messageId } })).messages, []);
  assert.equal((await deliveries(messageId)).length, 0);
});
