// Flow control.

import assert from "node:assert/strict";
import test from "node:test";

import { client, deliveries, delivery, eventually, plain, receiverUrl, rejectsWith, unique, waiting } from "./support.mjs";

/** A message under the key that is sent at once. */
const publish = (key, limits) => client.publish({ url: `${receiverUrl}/ok`, flowControl: { key, ...limits } });

test("a key is read right after the message that brings it", async () => {
  // As long as it waits, nothing has been counted.
  const key = unique("key");
  const { messageId } = await waiting({ flowControl: { key, parallelism: 2, rate: 5, period: "1d" } });
  const info = await client.flowControl.get(key);
  assert(Number.isInteger(info.ratePeriodStart));
  assert.deepEqual(info, {
    flowControlKey: key,
    waitListSize: 0,
    parallelismMax: 2,
    parallelismCount: 0,
    rateMax: 5,
    rateCount: 0,
    ratePeriod: 86_400,
    ratePeriodStart: info.ratePeriodStart,
    isPaused: false,
    isPinnedParallelism: false,
    isPinnedRate: false,
  });
  const message = plain(await client.messages.get(messageId));
  assert.deepEqual(
    [message.flowControlKey, message.parallelism, message.rate, message.ratePerSecond, message.period],
    [key, 2, 5, 5, 86_400]
  );
  await client.messages.cancel(messageId);
});

test("a message says only the limits that it has", async () => {
  for (const [limits, expected] of [
    [{ parallelism: 3 }, { parallelism: 3, period: 1 }],
    [{ rate: 4 }, { rate: 4, ratePerSecond: 4, period: 1 }],
    [{ ratePerSecond: 5 }, { rate: 5, ratePerSecond: 5, period: 1 }],
    [{ rate: 6, period: 90 }, { rate: 6, ratePerSecond: 6, period: 90 }],
  ]) {
    const { messageId } = await waiting({ flowControl: { key: unique("key"), ...limits } });
    const { parallelism, rate, ratePerSecond, period } = await client.messages.get(messageId);
    assert.deepEqual(plain({ parallelism, rate, ratePerSecond, period }), expected);
    await client.messages.cancel(messageId);
  }
});

test("what was started is counted", async () => {
  const key = unique("key");
  for (let i = 0; i < 2; i++) await delivery((await publish(key, { rate: 100, period: "7d" })).messageId);
  const info = await eventually("both are counted", async () => {
    const info = await client.flowControl.get(key);
    return info.rateCount === 2 && info;
  });
  assert(Math.abs(info.ratePeriodStart - Date.now() / 1000) < 3600, "in seconds");
  await client.flowControl.resetRate(key);
  assert.equal((await client.flowControl.get(key)).rateCount, 0);
});

test("a paused key starts nothing", async () => {
  const key = unique("key");
  await client.flowControl.pause(key);
  await client.flowControl.pause(key);
  assert.equal((await client.flowControl.get(key)).isPaused, true);
  const { messageId } = await publish(key, { parallelism: 10 });
  await eventually("it waits", async () => (await client.flowControl.get(key)).waitListSize === 1);
  assert.deepEqual(await deliveries(messageId), []);
  await client.flowControl.resume(key);
  assert.equal((await client.flowControl.get(key)).isPaused, false);
  await delivery(messageId);
});

test("what is pinned holds whatever messages say", async () => {
  const key = unique("key");
  const limits = async () => {
    const info = await client.flowControl.get(key);
    return [info.parallelismMax, info.rateMax, info.ratePeriod, info.isPinnedParallelism, info.isPinnedRate];
  };
  await publish(key, { parallelism: 1, rate: 2, period: 3 });
  assert.deepEqual(await limits(), [1, 2, 3, false, false]);
  await client.flowControl.pin(key, { parallelism: 7, rate: 8, period: 9 });
  assert.deepEqual(await limits(), [7, 8, 9, true, true]);
  await publish(key, { parallelism: 1, rate: 2, period: 3 });
  assert.deepEqual(await limits(), [7, 8, 9, true, true]);
  await client.flowControl.unpin(key, { rate: true });
  assert.deepEqual(await limits(), [7, 8, 9, true, false]);
  await publish(key, { parallelism: 1, rate: 2, period: 3 });
  assert.deepEqual(await limits(), [7, 2, 3, true, false]);
  await client.flowControl.unpin(key, { parallelism: true });
  await publish(key, { parallelism: 4 });
  const [parallelismMax, rateMax, , ...pinned] = await limits();
  assert.deepEqual([parallelismMax, rateMax, ...pinned], [4, 0, false, false]);
});

test("a key is any text", async () => {
  for (const key of [`${unique("key")}/a b/c:d`, unique("ü key"), `https://example.com/${unique("key")}?x=1`]) {
    const { messageId } = await waiting({ flowControl: { key, parallelism: 2 } });
    assert.equal((await client.messages.get(messageId)).flowControlKey, key);
    await client.messages.cancel(messageId);
  }
  // The SDK puts it into the path as it is, but for what a URL can't hold, and a query.
  for (const key of [`${unique("key")}/a b/c:d`, unique("ü key"), `https://example.com/${unique("key")}`]) {
    await client.flowControl.pin(key, { parallelism: 5 });
    const info = await client.flowControl.get(key);
    assert.deepEqual([info.flowControlKey, info.parallelismMax], [key, 5]);
  }
});

test("the whole server's attempts", async () => {
  const { parallelismMax, parallelismCount } = await client.flowControl.getGlobalParallelism();
  assert(Number.isInteger(parallelismMax) && parallelismMax > 0, `${parallelismMax}`);
  assert(Number.isInteger(parallelismCount) && parallelismCount >= 0, `${parallelismCount}`);
});

test("what is wrong is refused", async () => {
  const key = unique("key");
  await rejectsWith(404, client.flowControl.get(key));
  await rejectsWith(400, client.flowControl.pin(key, {}));
  await rejectsWith(400, client.flowControl.pin(key, { parallelism: 0 }));
  await rejectsWith(400, client.flowControl.pin(key, { rate: 1, period: 700_000 }));
  await rejectsWith(400, publish(key, { rate: 0.5 }));
  await rejectsWith(400, publish(key, { rate: 5, period: "8d" }));
  await rejectsWith(404, client.flowControl.get(key));
  await assert.rejects(client.flowControl.get(""), { name: "QstashError" });
});
