"""The log."""

from qstash.log import LogState
from support import RECEIVER, check, is_time, raises, shown, unique


def listed(sdk, **options):
    return sorted({log.message_id for log in sdk.log.list(**options).logs})


@check
def entries_show_the_whole_message(sdk):
    flow_control = {"key": unique("key"), "parallelism": 5}
    result = sdk.message.publish(
        url=f"{RECEIVER}/ok?logged",
        body="x",
        headers={"X-A": "1"},
        callback=f"{RECEIVER}/callback",
        callback_headers={"X-C": "c"},
        failure_callback=f"{RECEIVER}/failure",
        failure_callback_headers={"X-F": "f"},
        retries=2,
        retry_delay="1000",
        timeout=30,
        flow_control=flow_control,
        label="logged",
    )
    sdk.ended(result.message_id, "CREATED ACTIVE DELIVERED")
    page = sdk.log.list(filter={"message_id": result.message_id})
    assert page.cursor is None, page.cursor
    assert [log.state for log in page.logs] == [LogState.DELIVERED, LogState.ACTIVE, LogState.CREATED]
    for log in page.logs:
        is_time(log.time)
        entry = {key: value for key, value in shown(log).items() if key != "response_headers"}
        status = {"response_status": 200} if log.state is LogState.DELIVERED else {}
        assert entry == {
            "time": log.time,
            "message_id": result.message_id,
            "state": log.state,
            "url": f"{RECEIVER}/ok?logged",
            "method": "POST",
            "headers": {"X-A": ["1"]},
            "body_base64": "eA==",
            "callback": f"{RECEIVER}/callback",
            "callback_headers": {"X-C": ["c"]},
            "failure_callback": f"{RECEIVER}/failure",
            "failure_callback_headers": {"X-F": ["f"]},
            "max_retries": 2,
            "retry_delay_expression": "1000",
            "timeout": 30_000,
            "flow_control": {"key": flow_control["key"], "parallelism": 5, "rate": None, "period": 1},
            "label": "logged",
            **status,
        }, entry


@check
def a_failure_is_told_with_its_response(sdk):
    letter = sdk.failed()
    logs = sdk.log.list(filter={"message_id": letter.message_id}).logs
    assert [log.state.value for log in logs] == ["FAILED", "ERROR", "ACTIVE", "CREATED"]
    error = logs[1]
    assert (error.response_status, error.response_body) == (404, "NDA0IE5vdCBGb3VuZA==")
    assert error.response_headers["Content-Type"] == ["text/plain"]
    assert error.error and logs[0].error


@check
def pages_until_there_is_no_cursor(sdk):
    letter = sdk.failed()
    filter = {"message_id": letter.message_id}
    seen, cursor = [], None
    while True:
        page = sdk.log.list(count=3, cursor=cursor, filter=filter)
        seen += page.logs
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == sdk.log.list(filter=filter).logs
    assert len(seen) == 4


@check
def each_filter_by_itself(sdk):
    group, queue, label = unique("group"), unique("queue"), unique("label")
    url = f"{RECEIVER}/{unique('path')}?a=1,2"
    sdk.url_group.upsert_endpoints(group, [{"url": url}])
    (sent,) = sdk.message.enqueue(queue=queue, url_group=group, label=label)
    sdk.ended(sent.message_id, "CREATED ACTIVE DELIVERED")
    one, other = sent.message_id, sdk.failed().message_id
    for filter, expected in [
        ({"message_id": one}, [one]),
        ({"message_ids": [one, other]}, sorted([one, other])),
        ({"url": url}, [one]),
        ({"url_group": group}, [one]),
        ({"queue": queue}, [one]),
        ({"label": label}, [one]),
        ({"schedule_id": "none"}, []),
        ({"state": LogState.DELIVERED, "label": label}, [one]),
        ({"state": LogState.FAILED, "label": label}, []),
        ({"state": LogState.IN_PROGRESS, "label": label}, [one]),
        ({"from_time": 1, "to_time": 4_000_000_000_000, "label": label}, [one]),
        ({"from_time": 4_000_000_000_000}, []),
        ({"to_time": 1}, []),
    ]:
        assert listed(sdk, filter=filter) == expected, filter
    log = sdk.log.list(filter={"label": label}).logs[0]
    assert (log.url_group, log.queue) == (group, queue)


@check
def every_state_in_the_whole_log_is_known(sdk):
    # The SDK raises on others, and cancelled messages are the ones to be spelt wrong.
    sdk.message.cancel(sdk.waiting())
    states = {log.state for log in sdk.log.list().logs}
    assert {LogState.CANCELED, LogState.CANCEL_REQUESTED, LogState.CREATED} <= states
    raises(lambda: sdk.log.list(cursor="nonsense"), "400")
