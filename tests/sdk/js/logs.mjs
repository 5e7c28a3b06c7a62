// The log.

import assert from "node:assert/strict";
import test from "node:test";

import { client, ended, failed, ids, isTime, plain, receiverUrl, rejectsWith, sorted, unique, waiting } from "./support.mjs";

const listed = async (options) => sorted(new Set(ids((await client.logs(options)).logs)));

test("entries show the whole message", async () => {
  const { messageId } = await client.publish({
    url: `${receiverUrl}/ok?logged`,
    body: "ünï",
    headers: { "X-A": "1" },
    label: ["first", "second"],
    timeout: 30,
    retries: 2,
    retryDelay: "1000",
    callback: `${receiverUrl}/callback`,
  });
  await ended(messageId, "CREATED ACTIVE DELIVERED");
  const { logs, events, cursor } = await client.logs({ messageIds: [messageId] });
  assert.deepEqual(logs, events);
  assert.equal(cursor, undefined);
  assert.deepEqual(logs.map(({ state }) => state), ["DELIVERED", "ACTIVE", "CREATED"]);
  const common = {
    messageId,
    url: `${receiverUrl}/ok?logged`,
    method: "POST",
    header: { "Content-Type": ["text/plain;charset=UTF-8"], "X-A": ["1"] },
    body: Buffer.from("ünï").toString("base64"),
    maxRetries: 2,
    label: "first",
    labels: ["first", "second"],
    callback: `${receiverUrl}/callback`,
    timeout: 30_000,
    retryDelayExpr: "1000",
    retryDelayExpression: "1000",
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
  };
  for (const entry of plain(logs)) {
    const { time, state, responseStatus, responseBody, responseHeader, responseHeaders, ...rest } = entry;
    isTime(time);
    assert.deepEqual(rest, common, state);
    assert.equal(responseStatus, state === "DELIVERED" ? 200 : undefined);
    assert.deepEqual(responseHeader, responseHeaders);
  }
  for (const [later, earlier] of [[logs[0], logs[1]], [logs[1], logs[2]]]) assert(later.time >= earlier.time);
  assert.deepEqual(await client.events({ messageIds: [messageId] }), await client.logs({ messageIds: [messageId] }));
});

test("a failure is told with its response", async () => {
  const { messageId } = await failed();
  const { logs } = await client.logs({ messageIds: [messageId] });
  assert.deepEqual(logs.map(({ state }) => state), ["FAILED", "ERROR", "ACTIVE", "CREATED"]);
  const error = logs.find(({ state }) => state === "ERROR");
  assert.equal(error.responseStatus, 404);
  assert.equal(Buffer.from(error.responseBody, "base64").toString(), "404 Not Found");
  assert.deepEqual(error.responseHeader["Content-Type"], ["text/plain"]);
  assert.deepEqual(error.responseHeaders, error.responseHeader);
  assert(error.error.length > 0 && logs[0].error.length > 0);
});

test("what is to come is told with its time", async () => {
  const { messageId } = await waiting();
  const { notBefore } = await client.messages.get(messageId);
  const { logs } = await client.logs({ messageIds: [messageId] });
  assert.deepEqual(logs.map(({ nextDeliveryTime }) => nextDeliveryTime), [notBefore]);
  await client.messages.cancel(messageId);
  const retried = await client.publish({ url: `${receiverUrl}/fails`, retryDelay: "86400000" });
  await ended(retried.messageId, "CREATED ACTIVE ERROR RETRY");
  const [retry] = (await client.logs({ messageIds: [retried.messageId] })).logs;
  assert(retry.nextDeliveryTime - retry.time >= 86_000_000, JSON.stringify(retry));
  await client.messages.cancel(retried.messageId);
});

test("pages", async () => {
  const { messageId } = await failed();
  const whole = (await client.logs({ filter: { messageId } })).logs;
  const pages = [];
  let cursor;
  do {
    const page = await client.logs({ count: 3, cursor, filter: { messageId } });
    pages.push(...page.logs);
    cursor = page.cursor;
  } while (cursor);
  assert.deepEqual(pages, whole);
  assert.equal((await client.logs({ count: 1 })).logs.length, 1);
  // Older programs begin with the time as a number, and pass on what they get.
  const from = await client.logs({ cursor: Date.now() + 60_000, filter: { messageId } });
  assert.deepEqual(from.logs, whole);
  const before = await client.logs({ cursor: whole.at(-1).time - 60_000, filter: { messageId } });
  assert.deepEqual(before.logs, []);
});

test("each filter by itself", async () => {
  const group = unique("group");
  const queueName = unique("queue");
  const key = unique("key");
  const endpoint = `${receiverUrl}/${unique("path")}`;
  await client.urlGroups.addEndpoints({ name: group, endpoints: [{ url: `${endpoint}?a=1,2` }] });
  const label = [unique("label"), unique("label")];
  const flowControl = { key, parallelism: 5 };
  const [{ messageId }] = await client.queue({ queueName }).enqueue({ urlGroup: group, label, flowControl });
  await ended(messageId, "CREATED ACTIVE DELIVERED");
  const other = await failed();
  const both = sorted([messageId, other.messageId]);
  const { host, pathname } = new URL(endpoint);
  for (const [filter, expected] of [
    [{ messageId }, [messageId]],
    [{ label: label[0] }, [messageId]],
    [{ label: ["none", label[1]] }, [messageId]],
    [{ url: `${endpoint}?a=1,2` }, [messageId]],
    [{ url: [`${endpoint}?a=1,2`, "http://none.example"] }, [messageId]],
    [{ path: pathname }, [messageId]],
    [{ path: [pathname, "/none"] }, [messageId]],
    [{ host, path: pathname }, [messageId]],
    [{ host: "none.example" }, []],
    [{ urlGroup: group }, [messageId]],
    [{ topicName: group }, [messageId]],
    [{ queueName }, [messageId]],
    [{ flowControlKey: key }, [messageId]],
    [{ scheduleId: "none" }, []],
    [{ callerIp: "192.0.2.1" }, []],
    [{ callerIp: "127.0.0.1", label: label[0] }, [messageId]],
    [{ state: "DELIVERED", label: label[0] }, [messageId]],
    [{ state: "FAILED", label: label[0] }, []],
    [{ state: "IN_PROGRESS", label: label[0] }, [messageId]],
    [{ fromDate: new Date(Date.now() - 3_600_000), label: label[0] }, [messageId]],
    [{ toDate: Date.now() - 3_600_000, label: label[0] }, []],
    [{ api: "llm", label: label[0] }, [messageId]],
  ]) {
    assert.deepEqual(await listed({ filter }), expected, JSON.stringify(filter));
  }
  assert.deepEqual(await listed({ messageIds: both }), both);
  const { logs } = await client.logs({ filter: { host } });
  assert(both.every((id) => ids(logs).includes(id)));
  const entry = plain(logs.find((log) => log.messageId === messageId && log.state === "CREATED"));
  assert.deepEqual(
    [entry.topicName, entry.queueName, entry.flowControlKey, entry.parallelism, entry.period],
    [group, queueName, key, 5, 1]
  );
});

test("what is wrong is refused", async () => {
  await rejectsWith(400, client.logs({ filter: { labeel: "x" } }), "labeel");
  await rejectsWith(400, client.logs({ filter: { state: "NO_SUCH_STATE" } }));
  await rejectsWith(400, client.logs({ cursor: "nonsense" }));
  await assert.rejects(client.logs({ messageIds: [] }), { name: "QstashEmptyArrayError" });
});
