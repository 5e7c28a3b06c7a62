"""Schedules, but for their runs, which have a script of their own."""

import re

from support import RECEIVER, check, is_time, raises, shown, unique

DESTINATION = f"{RECEIVER}/ok?a=1"


@check
def a_schedule_is_read_back_with_exactly_what_was_set(sdk):
    schedule_id, queue = unique("schedule"), unique("queue")
    created = sdk.schedule.create_json(
        destination=DESTINATION,
        cron="0 4 * * *",
        schedule_id=schedule_id,
        body={"hello": 1},
        headers={"Test-Header": "test-value"},
        callback_headers={"X-Callback": "c"},
        failure_callback_headers={"X-Failure": "f"},
        method="PUT",
        delay="1m",
        timeout=30,
        retries=1,
        retry_delay="1000",
        callback=f"{RECEIVER}/callback",
        failure_callback=f"{RECEIVER}/failure",
        queue=queue,
        flow_control={"key": "schedules", "rate": 5},
        label="l",
    )
    assert created == schedule_id
    schedule = sdk.schedule.get(schedule_id)
    is_time(schedule.created_at)
    assert schedule.next_schedule_time > schedule.created_at
    assert schedule.next_schedule_time % 86_400_000 == 4 * 3_600_000
    assert shown(schedule) == {
        "schedule_id": schedule_id,
        "destination": DESTINATION,
        "cron": "0 4 * * *",
        "created_at": schedule.created_at,
        "next_schedule_time": schedule.next_schedule_time,
        "body": '{"hello": 1}',
        "method": "PUT",
        "headers": {"Content-Type": ["application/json"], "Test-Header": ["test-value"]},
        "callback": f"{RECEIVER}/callback",
        "callback_headers": {"X-Callback": ["c"]},
        "failure_callback": f"{RECEIVER}/failure",
        "failure_callback_headers": {"X-Failure": ["f"]},
        "retries": 1,
        "retry_delay_expression": "1000",
        "queue": queue,
        "delay": 60,
        "timeout": 30,
        "caller_ip": "127.0.0.1",
        "paused": False,
        "flow_control": {"key": "schedules", "parallelism": None, "rate": 5, "period": 1},
        "label": "l",
    }
    assert [s for s in sdk.schedule.list() if s.schedule_id == schedule_id] == [schedule]
    sdk.schedule.delete(schedule_id)


@check
def a_schedule_with_nothing_set_has_the_defaults(sdk):
    schedule_id = sdk.schedule.create(destination=DESTINATION, cron="@daily", body=b"\xff", content_type="text/x")
    assert schedule_id.startswith("scd_")
    schedule = sdk.schedule.get(schedule_id)
    assert shown(schedule) == {
        "schedule_id": schedule_id,
        "destination": DESTINATION,
        "cron": "@daily",
        "created_at": schedule.created_at,
        "next_schedule_time": schedule.next_schedule_time,
        "body_base64": "/w==",
        "method": "POST",
        "headers": {"Content-Type": ["text/x"]},
        "retries": 3,
        "caller_ip": "127.0.0.1",
        "paused": False,
    }
    sdk.schedule.delete(schedule_id)


@check
def a_schedule_is_replaced_paused_resumed_and_deleted(sdk):
    schedule_id = unique("schedule")
    given = {"destination": DESTINATION, "schedule_id": schedule_id}
    sdk.schedule.create(**given, cron="0 4 * * *", body="first", retries=7, redact={"body": True})
    assert re.fullmatch("REDACTED:[0-9a-f]{64}", sdk.schedule.get(schedule_id).body)
    sdk.schedule.pause(schedule_id)
    assert sdk.schedule.get(schedule_id).paused is True
    sdk.schedule.resume(schedule_id)
    assert sdk.schedule.get(schedule_id).paused is False
    sdk.schedule.create(**given, cron="0 5 * * *")
    schedule = sdk.schedule.get(schedule_id)
    assert (schedule.cron, schedule.body, schedule.retries) == ("0 5 * * *", None, 3)
    sdk.schedule.delete(schedule_id)
    for call in [sdk.schedule.get, sdk.schedule.pause, sdk.schedule.resume]:
        raises(lambda: call(schedule_id), "404")
    sdk.schedule.delete(schedule_id)


@check
def what_is_wrong_is_refused(sdk):
    for cron in ["never", "* * * *", "* * * * * *", "61 * * * *"]:
        raises(lambda: sdk.schedule.create(destination=DESTINATION, cron=cron), "400")
    raises(lambda: sdk.schedule.create(destination="nowhere:", cron="@daily"), "400")
    raises(lambda: sdk.schedule.create(destination=DESTINATION, cron="@daily", schedule_id="a name"), "400")
