"""Queues."""

from support import RECEIVER, check, deliveries, delivery, eventually, is_time, raises, received, shown, unique


@check
def a_queue_is_made_changed_and_deleted(sdk):
    name = unique("queue")
    sdk.queue.delete(name)
    raises(lambda: sdk.queue.get(name), "404")
    sdk.queue.upsert(name, parallelism=2)
    queue = sdk.queue.get(name)
    is_time(queue.created_at)
    is_time(queue.updated_at)
    assert shown(queue) == {
        "name": name,
        "parallelism": 2,
        "created_at": queue.created_at,
        "updated_at": queue.updated_at,
        "lag": 0,
        "paused": False,
    }
    assert [q for q in sdk.queue.list() if q.name == name] == [queue]
    sdk.queue.pause(name)
    assert sdk.queue.get(name).paused is True
    sdk.queue.resume(name)
    assert sdk.queue.get(name).paused is False
    sdk.queue.upsert(name, parallelism=5, paused=True)
    assert (sdk.queue.get(name).parallelism, sdk.queue.get(name).paused) == (5, True)
    sdk.queue.delete(name)
    sdk.queue.delete(name)
    for call in [sdk.queue.get, sdk.queue.pause, sdk.queue.resume]:
        raises(lambda: call(name), "404")


@check
def the_list_is_empty_when_all_are_deleted(sdk):
    sdk.queue.upsert(unique("queue"))
    for queue in sdk.queue.list():
        sdk.queue.delete(queue.name)
    assert sdk.queue.list() == []


@check
def messages_go_one_after_the_other_and_wait_while_it_is_paused(sdk):
    name = unique("queue")
    sdk.queue.upsert(name, parallelism=1, paused=True)
    sent = [sdk.message.enqueue(queue=name, url=f"{RECEIVER}/ok", body=str(n)).message_id for n in range(4)]
    message = sdk.message.get(sent[0])
    assert (message.queue, message.body) == (name, "0")
    assert sdk.queue.get(name).lag == 4
    assert not any(deliveries(message_id) for message_id in sent)
    sdk.queue.resume(name)
    for message_id in sent:
        delivery(message_id)
    assert [r["message_id"] for r in received() if r["message_id"] in sent] == sent
    eventually("nothing is left", lambda: sdk.queue.get(name).lag == 0)


@check
def a_message_makes_the_queue_that_is_not_there_and_has_all_options(sdk):
    name = unique("queue")
    result = sdk.message.enqueue_json(
        queue=name,
        url=f"{RECEIVER}/ok?a=1&b=//x",
        body={"x": 1},
        method="PATCH",
        headers={"X-A": "1"},
        callback_headers={"X-C": "c"},
        failure_callback_headers={"X-F": "f"},
        retries=1,
        retry_delay="10",
        callback=f"{RECEIVER}/callback",
        failure_callback=f"{RECEIVER}/failure",
        content_based_deduplication=True,
        timeout=5,
        label="l",
        redact={"header": ["X-A"]},
    )
    assert result.deduplicated is False
    queue = sdk.queue.get(name)
    assert (queue.parallelism, queue.paused) == (1, False)
    message = sdk.message.get(result.message_id)
    assert (message.queue, message.url, message.method) == (name, f"{RECEIVER}/ok?a=1&b=//x", "PATCH")
    assert (message.max_retries, message.label, message.retry_delay_expression) == (1, "l", "10")
    assert (message.callback_headers, message.failure_callback_headers) == ({"X-C": ["c"]}, {"X-F": ["f"]})
    request = delivery(result.message_id)
    assert (request["target"], request["headers"]["x-a"]) == ("/ok?a=1&b=//x", "1")


@check
def what_is_wrong_is_refused(sdk):
    raises(lambda: sdk.queue.upsert("a name"), "400")
    raises(lambda: sdk.queue.upsert(unique("queue"), parallelism=0), "400")
    raises(lambda: sdk.message.enqueue(queue="a name", url=f"{RECEIVER}/ok"), "400")
    raises(lambda: sdk.message.enqueue(queue=unique("queue"), url="nowhere:"), "400")
