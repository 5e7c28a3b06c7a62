"""Flow control."""

from support import RECEIVER, check, deliveries, delivery, eventually, raises, shown, unique


@check
def a_key_is_read_right_after_the_message_that_brings_it(sdk):
    key = unique("key")
    message_id = sdk.waiting(flow_control={"key": key, "parallelism": 2, "rate": 5, "period": "1h30m3s"})
    info = sdk.flow_control.get(key)
    assert shown(info) == {
        "key": key,
        "wait_list_size": 0,
        "parallelism_max": 2,
        "parallelism_count": 0,
        "rate_max": 5,
        "rate_count": 0,
        "rate_period": 5403,
        "rate_period_start": info.rate_period_start,
        "is_paused": False,
        "is_pinned_parallelism": False,
        "is_pinned_rate": False,
    }
    flow = sdk.message.get(message_id).flow_control
    assert (flow.key, flow.parallelism, flow.rate, flow.period) == (key, 2, 5, 5403)
    sdk.message.cancel(message_id)


@check
def a_message_says_only_the_limits_that_it_has(sdk):
    for limits, expected in [
        ({"parallelism": 3}, (3, None, 1)),
        ({"rate": 4}, (None, 4, 1)),
        ({"rate": 4, "period": 90}, (None, 4, 90)),
    ]:
        # Sent at once, and read right after.
        key = unique("key")
        result = sdk.message.publish(url=f"{RECEIVER}/ok", flow_control={"key": key, **limits})
        flow = sdk.message.get(result.message_id).flow_control
        assert (flow.key, flow.parallelism, flow.rate, flow.period) == (key, *expected)
        assert sdk.flow_control.get(key).key == key


@check
def a_paused_key_starts_nothing(sdk):
    key = unique("key")
    sdk.flow_control.pause(key)
    assert sdk.flow_control.get(key).is_paused is True
    result = sdk.message.publish(url=f"{RECEIVER}/ok", flow_control={"key": key, "parallelism": 10})
    eventually("it waits", lambda: sdk.flow_control.get(key).wait_list_size == 1)
    assert deliveries(result.message_id) == []
    sdk.flow_control.resume(key)
    assert sdk.flow_control.get(key).is_paused is False
    delivery(result.message_id)


@check
def limits_are_pinned_and_the_rate_is_reset(sdk):
    key = unique("key")
    sdk.flow_control.pin(key, {"parallelism": 7, "rate": 8, "period": 9})

    def limits():
        info = sdk.flow_control.get(key)
        return info.parallelism_max, info.rate_max, info.rate_period, info.is_pinned_parallelism, info.is_pinned_rate

    assert limits() == (7, 8, 9, True, True)
    sdk.message.publish(url=f"{RECEIVER}/ok", flow_control={"key": key, "parallelism": 1, "rate": 100, "period": "1d"})
    assert limits() == (7, 8, 9, True, True)
    sdk.flow_control.unpin(key, {"parallelism": True, "rate": True})
    assert limits() == (7, 8, 9, False, False)
    message = {"url": f"{RECEIVER}/ok", "flow_control": {"key": key, "rate": 100, "period": "1d"}}
    delivery(sdk.message.publish(**message).message_id)
    assert limits() == (0, 100, 86_400, False, False)
    eventually("it is counted", lambda: sdk.flow_control.get(key).rate_count > 0)
    sdk.flow_control.reset_rate(key)
    assert sdk.flow_control.get(key).rate_count == 0


@check
def the_whole_servers_attempts(sdk):
    info = sdk.flow_control.get_global_parallelism()
    assert info.parallelism_max > 0 and info.parallelism_count >= 0, info


@check
def what_is_wrong_is_refused(sdk):
    key = unique("key")
    raises(lambda: sdk.flow_control.get(key), "404")
    raises(lambda: sdk.flow_control.pin(key, {}), "400")
    # The SDK sends the key without a value.
    raises(lambda: sdk.message.publish(url=f"{RECEIVER}/ok", flow_control={"key": key}), "400")
