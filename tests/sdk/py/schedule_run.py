"""A schedule's run. It may take a minute to come, so this has a server of its own."""

from qstash import QStash
from qstash.schedule import ScheduleState
from support import RECEIVER, Sdk, eventually, is_time, received, receiver, unique, verify

sdk = Sdk(QStash)
schedule_id = sdk.schedule.create(
    destination=f"{RECEIVER}/ok", cron="* * * * *", schedule_id=unique("schedule"), body="tick", retries=0, label="l"
)


def sent():
    return [r for r in received() if r["headers"].get("upstash-schedule-id") == schedule_id]


request = eventually("a message is sent", sent, seconds=70)[0]
assert request["body"] == "tick"
verify(receiver, request)
message = sdk.message.get(request["message_id"])
assert (message.schedule_id, message.label, message.max_retries) == (schedule_id, "l", 0)


def succeeded():
    schedule = sdk.schedule.get(schedule_id)
    return schedule.last_schedule_states == {message.message_id: ScheduleState.SUCCESS} and schedule


schedule = eventually("its end is told", succeeded)
is_time(schedule.last_schedule_time)
assert schedule.next_schedule_time % 60_000 == 0
assert schedule.next_schedule_time > schedule.last_schedule_time
sdk.schedule.pause(schedule_id)
assert sdk.schedule.get(schedule_id).paused is True
logs = sdk.log.list(filter={"schedule_id": schedule_id}).logs
assert {(log.message_id, log.schedule_id) for log in logs} == {(message.message_id, schedule_id)}
print("all checks were made")
