"""Many messages in one request."""

from qstash.chat import custom
from support import RECEIVER, check, delivery, raises, unique


@check
def one_answer_for_each_message_in_their_order_and_a_list_for_a_group(sdk):
    group, queue = unique("group"), unique("queue")
    urls = [f"{RECEIVER}/a", f"{RECEIVER}/b"]
    sdk.url_group.upsert_endpoints(group, [{"url": url} for url in urls])
    results = sdk.message.batch(
        [
            {"url": f"{RECEIVER}/ok?first", "body": "one", "headers": {"X-A": "1"}, "method": "PUT"},
            {"url_group": group, "body": "two"},
            {"url": f"{RECEIVER}/ok", "queue": queue, "label": "l", "body": "three"},
        ]
    )
    one, two, three = results
    assert isinstance(two, list) and [item.url for item in two] == urls
    ids = [one.message_id, *(item.message_id for item in two), three.message_id]
    assert len(set(ids)) == 4
    assert not any(item.deduplicated for item in [one, *two, three])
    request = delivery(one.message_id)
    assert (request["method"], request["body"], request["headers"]["x-a"]) == ("PUT", "one", "1")
    message = sdk.message.get(three.message_id)
    assert (message.queue, message.label, message.body) == (queue, "l", "three")
    for message_id in ids:
        delivery(message_id)


@check
def json_bodies_and_each_messages_own_options(sdk):
    flow_control = {"key": unique("key"), "rate": 2, "period": "1h30m3s"}
    results = sdk.message.batch_json(
        [
            {"url": f"{RECEIVER}/ok", "body": {"n": 1}},
            {"url": f"{RECEIVER}/ok", "body": [2], "delay": "1d", "retries": 0, "flow_control": flow_control},
            {"api": {"name": "llm", "provider": custom(RECEIVER, "t")}, "body": {"model": "m"}},
        ]
    )
    request = delivery(results[0].message_id)
    assert (request["body"], request["headers"]["content-type"]) == ('{"n": 1}', "application/json")
    message = sdk.message.get(results[1].message_id)
    assert (message.body, message.max_retries) == ("[2]", 0)
    assert message.not_before - message.created_at == 86_400_000
    flow = message.flow_control
    assert (flow.key, flow.parallelism, flow.rate, flow.period) == (flow_control["key"], None, 2, 5403)
    sdk.message.cancel(message.message_id)
    assert delivery(results[2].message_id)["headers"]["authorization"] == "Bearer t"


@check
def a_body_and_a_queue_may_be_null(sdk):
    # The SDK sends null for both.
    (result,) = sdk.message.batch([{"url": f"{RECEIVER}/ok"}])
    assert delivery(result.message_id)["body"] == ""
    message = sdk.message.get(result.message_id)
    assert (message.body, message.queue, message.headers) == (None, None, {})


@check
def repeats(sdk):
    message = {"url": f"{RECEIVER}/ok", "deduplication_id": unique("dedup")}
    original, repeat = sdk.message.batch([message, message])
    assert (original.deduplicated, repeat.deduplicated) == (False, True)
    assert original.message_id == repeat.message_id
    content = {"url": f"{RECEIVER}/ok", "body": unique("content"), "content_based_deduplication": True}
    original, repeat = sdk.message.batch([content, content])
    assert (repeat.message_id, repeat.deduplicated) == (original.message_id, True)


@check
def all_or_none(sdk):
    label = unique("label")
    good = {"url": f"{RECEIVER}/ok", "label": label}
    raises(lambda: sdk.message.batch([good, {"url": "nowhere:"}]), "400")
    raises(lambda: sdk.message.batch([good, {"url_group": "no-such-group"}]), "topic no-such-group not found")
    assert sdk.log.list(filter={"label": label}).logs == []
    assert sdk.message.batch([]) == []
