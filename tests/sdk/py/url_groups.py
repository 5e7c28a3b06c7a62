"""URL groups, formerly topics."""

from support import RECEIVER, check, delivery, is_time, raises, shown, unique

A, B, C = (f"{RECEIVER}/{path}" for path in "abc")


@check
def a_group_is_made_changed_and_deleted(sdk):
    name = unique("group")
    sdk.url_group.delete(name)
    raises(lambda: sdk.url_group.get(name), "404", f"topic {name} not found")
    sdk.url_group.upsert_endpoints(name, [{"name": "First endpoint", "url": A}, {"url": B}])
    group = sdk.url_group.get(name)
    is_time(group.created_at)
    is_time(group.updated_at)
    assert group.name == name
    assert [(e.name, e.url) for e in group.endpoints] == [("First endpoint", A), (None, B)]
    assert [g for g in sdk.url_group.list() if g.name == name] == [group]

    sdk.url_group.upsert_endpoints(name, [{"name": "First endpoint", "url": C}, {"name": "Second", "url": B}])
    endpoints = sdk.url_group.get(name).endpoints
    assert [(e.name, e.url) for e in endpoints] == [("First endpoint", C), ("Second", B)]
    sdk.url_group.remove_endpoints(name, [{"name": "Second"}, {"url": "http://unknown.example"}])
    assert [shown(e) for e in sdk.url_group.get(name).endpoints] == [{"name": "First endpoint", "url": C}]
    sdk.url_group.remove_endpoints(name, [{"url": C}])
    raises(lambda: sdk.url_group.get(name), "404")
    raises(lambda: sdk.url_group.remove_endpoints(name, [{"url": C}]), "404")
    sdk.url_group.delete(name)


@check
def a_message_for_a_group_is_one_for_each_endpoint(sdk):
    name, queue = unique("group"), unique("queue")
    sdk.url_group.upsert_endpoints(name, [{"name": "the first", "url": A}, {"url": B}])
    for send in [
        lambda **options: sdk.message.publish(**options),
        lambda **options: sdk.message.publish_json(**options),
        lambda **options: sdk.message.enqueue(queue=queue, **options),
        lambda **options: sdk.message.enqueue_json(queue=queue, **options),
    ]:
        options = {"url_group": name, "body": "to all", "deduplication_id": unique("dedup")}
        results = send(**options)
        assert [result.url for result in results] == [A, B]
        assert not any(result.deduplicated for result in results)
        message = sdk.message.get(results[0].message_id)
        assert (message.url, message.url_group, message.endpoint) == (A, name, "the first")
        for result in results:
            request = delivery(result.message_id)
            assert request["url"] == result.url
            assert request["headers"]["upstash-topic-name"] == name
        again = send(**options)
        assert [r.message_id for r in again] == [r.message_id for r in results]
        assert all(result.deduplicated for result in again)


@check
def what_is_wrong_is_refused(sdk):
    name = unique("group")
    raises(lambda: sdk.message.publish(url_group=name), "404", f"topic {name} not found")
    raises(lambda: sdk.url_group.upsert_endpoints(name, []), "400")
    raises(lambda: sdk.url_group.upsert_endpoints(name, [{"url": "nowhere"}]), "400")
    raises(lambda: sdk.url_group.get(name), "404")
