"""Dead letters."""

import json

from support import RECEIVER, callback_of, check, raises, receiver, shown, unique, verify


def delete_all(sdk):
    while letters := sdk.dlq.list().messages:
        sdk.dlq.delete_many([letter.dlq_id for letter in letters])


def listed(sdk, **options):
    return [letter.message_id for letter in sdk.dlq.list(**options).messages]


@check
def a_message_that_failed_for_good_is_there_with_its_last_response(sdk):
    result = sdk.message.publish(
        url=f"{RECEIVER}/fails",
        body="never",
        headers={"X-A": "1"},
        callback=f"{RECEIVER}/callback",
        callback_headers={"X-C": "c"},
        failure_callback=f"{RECEIVER}/failure",
        failure_callback_headers={"X-F": "f"},
        retries=0,
        retry_delay="1000",
        label="dead",
    )
    letter = sdk.dead_letter(result.message_id)
    assert letter.response_headers["Content-Type"] == ["text/plain"]
    expected = {
        "message_id": result.message_id,
        "dlq_id": letter.dlq_id,
        "url": f"{RECEIVER}/fails",
        "method": "POST",
        "headers": {"X-A": ["1"]},
        "body": "never",
        "callback": f"{RECEIVER}/callback",
        "callback_headers": {"X-C": ["c"]},
        "failure_callback": f"{RECEIVER}/failure",
        "failure_callback_headers": {"X-F": ["f"]},
        "max_retries": 0,
        "retry_delay_expression": "1000",
        "created_at": letter.created_at,
        "not_before": letter.created_at,
        "caller_ip": "127.0.0.1",
        "label": "dead",
        "response_status": 404,
        "response_headers": letter.response_headers,
        "response_body": "404 Not Found",
    }
    assert shown(letter) == expected
    assert shown(sdk.dlq.get(letter.dlq_id)) == expected
    sdk.ended(result.message_id, "CREATED ACTIVE ERROR FAILED")
    failure = callback_of(result.message_id, "/failure")
    verify(receiver, failure)
    assert json.loads(failure["body"])["dlqId"] == letter.dlq_id


@check
def pages_until_there_is_no_cursor(sdk):
    delete_all(sdk)
    page = sdk.dlq.list()
    assert (page.messages, page.cursor) == ([], None)
    expected = [sdk.failed().message_id for _ in range(3)]
    seen, cursor = [], None
    while True:
        page = sdk.dlq.list(count=2, cursor=cursor)
        seen += [letter.message_id for letter in page.messages]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == expected
    assert sdk.dlq.list().cursor is None


@check
def each_filter_by_itself(sdk):
    delete_all(sdk)
    group, queue, label = unique("group"), unique("queue"), unique("label")
    sdk.url_group.upsert_endpoints(group, [{"url": f"{RECEIVER}/fails?a=1,2"}])
    (sent,) = sdk.message.enqueue(queue=queue, url_group=group, retries=0, label=label)
    sdk.dead_letter(sent.message_id)
    one, other = sent.message_id, sdk.failed().message_id
    for filter, expected in [
        ({"message_id": one}, [one]),
        ({"url": f"{RECEIVER}/fails?a=1,2"}, [one]),
        ({"url_group": group}, [one]),
        ({"queue": queue}, [one]),
        ({"label": label}, [one]),
        ({"response_status": 404}, [one, other]),
        ({"response_status": 500}, []),
        ({"caller_ip": "127.0.0.1"}, [one, other]),
        ({"caller_ip": "192.0.2.1"}, []),
        ({"schedule_id": "none"}, []),
        ({"from_time": 1, "to_time": 4_000_000_000_000}, [one, other]),
        ({"from_time": 4_000_000_000_000}, []),
        ({"to_time": 1}, []),
        ({"label": label, "response_status": 500}, []),
    ]:
        assert sorted(listed(sdk, filter=filter)) == sorted(expected), filter


@check
def letters_are_deleted_once(sdk):
    delete_all(sdk)
    first, second, third = (sdk.failed().dlq_id for _ in range(3))
    sdk.dlq.delete(first)
    raises(lambda: sdk.dlq.delete(first), "404")
    raises(lambda: sdk.dlq.get(first), "404")
    assert sdk.dlq.delete_many([first, second, third, third, "1-0"]) == 2
    assert sdk.dlq.delete_many([second]) == 0
    assert listed(sdk) == []


@check
def no_ids_are_not_all(sdk):
    letter = sdk.failed()
    raises(lambda: sdk.dlq.delete(""), "400")
    assert sdk.dlq.delete_many([]) == 0
    assert sdk.dlq.get(letter.dlq_id).message_id == letter.message_id


@check
def a_retry_is_a_new_message_and_the_letter_is_gone(sdk):
    # The SDK has no retry, but its own client can make the call.
    letter = sdk.failed(body="again")
    answer = sdk.http.request(path=f"/v2/dlq/retry/{letter.dlq_id}", method="POST")
    again = sdk.dead_letter(answer["messageId"])
    assert again.body == "again" and again.message_id != letter.message_id
    raises(lambda: sdk.dlq.get(letter.dlq_id), "404")
