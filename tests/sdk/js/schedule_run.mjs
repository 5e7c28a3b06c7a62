// A schedule's run. It may take a minute to come, so this has a server of its own.

import assert from "node:assert/strict";
import test from "node:test";
import { isDeepStrictEqual } from "node:util";

import { client, eventually, ids, isTime, received, receiver, receiverUrl, sorted, unique } from "./support.mjs";

test("a schedule publishes, and tells what became of it", async () => {
  const name = unique("group");
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: `${receiverUrl}/a` }, { url: `${receiverUrl}/fails` }] });
  const scheduleId = unique("schedule");
  await client.schedules.create({
    destination: name, cron: "* * * * *", scheduleId, body: "tick", retries: 0, label: "l", headers: { "X-A": "1" },
  });
  const sent = await eventually(
    "both endpoints get a message",
    async () => {
      const found = (await received()).filter(({ headers }) => headers["upstash-schedule-id"] === scheduleId);
      return found.length >= 2 && found.slice(0, 2);
    },
    70
  );
  for (const request of sent) {
    assert.deepEqual([request.body, request.headers["x-a"]], ["tick", "1"]);
    const signature = request.headers["upstash-signature"];
    assert.equal(await receiver.verify({ signature, body: request.body, url: request.url }), true);
    const message = await client.messages.get(request.messageId);
    assert.deepEqual([message.scheduleId, message.urlGroup, message.label], [scheduleId, name, "l"]);
  }
  const expected = Object.fromEntries(sent.map(({ messageId, target }) => [messageId, target === "/a" ? "SUCCESS" : "FAIL"]));
  const { lastScheduleTime, nextScheduleTime } = await eventually("both ends are told", async () => {
    const schedule = await client.schedules.get(scheduleId);
    return isDeepStrictEqual(schedule.lastScheduleStates, expected) && schedule;
  });
  isTime(lastScheduleTime);
  assert.equal(nextScheduleTime % 60_000, 0);
  assert(nextScheduleTime > lastScheduleTime, `${nextScheduleTime} after ${lastScheduleTime}`);
  await client.schedules.pause({ schedule: scheduleId });
  const { logs } = await client.logs({ filter: { scheduleId } });
  assert.deepEqual(sorted(new Set(ids(logs))), sorted(Object.keys(expected)));
  assert(logs.every((log) => log.scheduleId === scheduleId));
  const { messages } = await client.dlq.listMessages({ filter: { scheduleId } });
  assert.deepEqual(ids(messages), Object.keys(expected).filter((id) => expected[id] === "FAIL"));
});

test("all checks were made", () => {});
