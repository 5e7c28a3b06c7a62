// Schedules, but for their runs, which have a script of their own.

import assert from "node:assert/strict";
import test from "node:test";

import { client, isTime, plain, receiverUrl, rejectsWith, unique } from "./support.mjs";

const destination = `${receiverUrl}/ok?a=1`;

test("a schedule is read back with exactly what was set", async () => {
  const scheduleId = unique("schedule");
  const created = await client.schedules.create({
    destination,
    cron: " 0 4 * * * ",
    scheduleId,
    body: '{"hello":"wörld"}',
    headers: { "Test-Header": "test-value", "bypass-tunnel-reminder": "1" },
    method: "PUT",
    delay: 10,
    timeout: 30,
    retries: 1,
    retryDelay: "1000",
    callback: `${receiverUrl}/callback`,
    failureCallback: `${receiverUrl}/failure`,
    queueName: unique("queue"),
    flowControl: { key: "schedules", parallelism: 2, rate: 5, period: "1d" },
    label: ["first", "second"],
  });
  assert.deepEqual(created, { scheduleId });
  const schedule = await client.schedules.get(scheduleId);
  const { createdAt, nextScheduleTime, queueName } = schedule;
  isTime(createdAt);
  assert(Number.isInteger(nextScheduleTime) && nextScheduleTime > createdAt);
  assert.equal(nextScheduleTime % 86_400_000, 4 * 3_600_000);
  const expected = {
    scheduleId,
    cron: "0 4 * * *",
    destination,
    createdAt,
    nextScheduleTime,
    method: "PUT",
    header: {
      "Content-Type": ["application/json"],
      "Test-Header": ["test-value"],
      "Bypass-Tunnel-Reminder": ["1"],
    },
    body: '{"hello":"wörld"}',
    retries: 1,
    delay: 10,
    timeout: 30,
    callback: `${receiverUrl}/callback`,
    failureCallback: `${receiverUrl}/failure`,
    queueName,
    flowControlKey: "schedules",
    parallelism: 2,
    rate: 5,
    ratePerSecond: 5,
    period: 86_400,
    retryDelayExpression: "1000",
    label: "first",
    labels: ["first", "second"],
    isPaused: false,
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
  };
  assert.match(queueName, /^js-queue/);
  assert.deepEqual(plain(schedule), expected);
  const listed = (await client.schedules.list()).filter((s) => s.scheduleId === scheduleId);
  assert.deepEqual(plain(listed), [expected]);
  await client.schedules.delete(scheduleId);
});

test("a schedule with nothing set has the defaults", async () => {
  const { scheduleId } = await client.schedules.create({ destination, cron: "CRON_TZ=Europe/Berlin 0 4 * * *" });
  assert.match(scheduleId, /^scd_/);
  const schedule = plain(await client.schedules.get(scheduleId));
  assert.deepEqual(schedule, {
    scheduleId,
    cron: "CRON_TZ=Europe/Berlin 0 4 * * *",
    destination,
    createdAt: schedule.createdAt,
    nextScheduleTime: schedule.nextScheduleTime,
    method: "POST",
    header: { "Content-Type": ["application/json"] },
    retries: 3,
    isPaused: false,
    callerIP: "127.0.0.1",
    callerIp: "127.0.0.1",
  });
  await client.schedules.delete(scheduleId);
});

test("a schedule is replaced entirely", async () => {
  const scheduleId = unique("schedule");
  await client.schedules.create({ destination, cron: "0 4 * * *", scheduleId, body: "first", retries: 7, label: "l" });
  await client.schedules.pause({ schedule: scheduleId });
  await client.schedules.create({ destination, cron: "0 5 * * *", scheduleId });
  const { cron, body, retries, label, isPaused } = await client.schedules.get(scheduleId);
  assert.deepEqual([cron, body, retries, label, isPaused], ["0 5 * * *", undefined, 3, undefined, false]);
  assert.equal((await client.schedules.list()).filter((s) => s.scheduleId === scheduleId).length, 1);
  await client.schedules.delete(scheduleId);
});

test("a schedule is paused, resumed and deleted", async () => {
  const { scheduleId } = await client.schedules.create({ destination, cron: "0 4 * * *" });
  const isPaused = async () => (await client.schedules.get(scheduleId)).isPaused;
  for (const [act, paused] of [["pause", true], ["pause", true], ["resume", false], ["resume", false]]) {
    await client.schedules[act]({ schedule: scheduleId });
    assert.equal(await isPaused(), paused);
  }
  await client.schedules.delete(scheduleId);
  await rejectsWith(404, client.schedules.get(scheduleId));
  await rejectsWith(404, client.schedules.pause({ schedule: scheduleId }));
  await rejectsWith(404, client.schedules.resume({ schedule: scheduleId }));
  await client.schedules.delete(scheduleId);
});

test("a schedule for a group, and redaction", async () => {
  const name = unique("group");
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: `${receiverUrl}/a` }] });
  const { scheduleId } = await client.schedules.create({
    destination: name, cron: "@daily", body: "secret", headers: { "Content-Type": "text/x", "X-S": "s" },
    redact: { body: true, header: ["X-S"] },
  });
  const schedule = await client.schedules.get(scheduleId);
  assert.equal(schedule.destination, name);
  assert.match(schedule.body, /^REDACTED:[0-9a-f]{64}$/);
  assert.match(schedule.header["X-S"][0], /^REDACTED:[0-9a-f]{64}$/);
  assert.deepEqual(schedule.header["Content-Type"], ["text/x"]);
  await client.schedules.delete(scheduleId);
});

test("what is wrong is refused", async () => {
  for (const cron of ["", "never", "* * * *", "* * * * * *", "61 * * * *", "CRON_TZ=Nowhere/Never * * * * *"]) {
    await rejectsWith(400, client.schedules.create({ destination, cron }));
  }
  await rejectsWith(400, client.schedules.create({ destination: "nowhere:", cron: "@daily" }));
  await rejectsWith(400, client.schedules.create({ destination, cron: "@daily", scheduleId: "a name" }));
  await rejectsWith(400, client.schedules.create({ destination, cron: "@daily", delay: "5x" }));
  await rejectsWith(404, client.schedules.get("scd_unknown"));
  await assert.rejects(client.schedules.get(""), { name: "QstashError" });
  await assert.rejects(client.schedules.delete(""), { name: "QstashError" });
});
