"""Publishing a message, and reading it back."""

import json
import re
import time

from qstash import AsyncQStash
from qstash.chat import custom, openai
from support import (
    RECEIVER, Sdk, check, deliveries, delivery, is_time, raises, shown, unique,
)

HASH = re.compile("REDACTED:[0-9a-f]{64}")


@check
def a_message_is_read_back_with_exactly_what_was_set(sdk):
    result = sdk.message.publish_json(
        url=f"{RECEIVER}/ok?a=1&b=%20",
        body={"hello": "wörld"},
        headers={"Test-Header": "test-value", "bypass-tunnel-reminder": "1"},
        callback_headers={"X-Callback": "c"},
        failure_callback_headers={"X-Failure": "f"},
        method="PUT",
        delay="1h30m",
        retries=2,
        retry_delay="1000 * (1 + retried)",
        timeout=30,
        callback=f"{RECEIVER}/callback",
        failure_callback=f"{RECEIVER}/failure",
        label="sdk-label",
    )
    assert result.deduplicated is False
    message = sdk.message.get(result.message_id)
    is_time(message.created_at)
    assert shown(message) == {
        "message_id": result.message_id,
        "url": f"{RECEIVER}/ok?a=1&b=%20",
        "method": "PUT",
        "headers": {
            "Content-Type": ["application/json"],
            "Test-Header": ["test-value"],
            "Bypass-Tunnel-Reminder": ["1"],
        },
        "body": json.dumps({"hello": "wörld"}),
        "callback": f"{RECEIVER}/callback",
        "callback_headers": {"X-Callback": ["c"]},
        "failure_callback": f"{RECEIVER}/failure",
        "failure_callback_headers": {"X-Failure": ["f"]},
        "max_retries": 2,
        "retry_delay_expression": "1000 * (1 + retried)",
        "created_at": message.created_at,
        "not_before": message.created_at + 5_400_000,
        "caller_ip": "127.0.0.1",
        "label": "sdk-label",
    }
    sdk.message.cancel(result.message_id)


@check
def a_message_with_nothing_set_has_the_defaults_and_can_be_read_right_after(sdk):
    result = sdk.message.publish(url=f"{RECEIVER}/ok")
    message = sdk.message.get(result.message_id)
    assert shown(message) == {
        "message_id": result.message_id,
        "url": f"{RECEIVER}/ok",
        "method": "POST",
        "headers": {},
        "max_retries": 3,
        "created_at": message.created_at,
        "not_before": message.created_at,
        "caller_ip": "127.0.0.1",
    }
    # Exactly one DELIVERED entry.
    sdk.ended(result.message_id, "CREATED ACTIVE DELIVERED")
    assert sdk.message.get(result.message_id) == message


@check
def headers_are_forwarded_whatever_their_names(sdk):
    # The SDK puts Upstash-Forward- before all of them.
    headers = {"Content-Type": "text/x", "Upstash-Mine": "m", "Upstash-Retries": "9", "Upstash-Forward-X": "x"}
    result = sdk.message.publish(url=f"{RECEIVER}/ok", body="plain", headers=headers)
    message = sdk.message.get(result.message_id)
    assert message.headers == {
        "Content-Type": ["text/x"],
        "Upstash-Mine": ["m"],
        "Upstash-Retries": ["9"],
        "X": ["x"],
    }, message.headers
    assert message.max_retries == 3
    delivered = delivery(result.message_id)["headers"]
    assert delivered["content-type"] == "text/x"
    assert (delivered["upstash-mine"], delivered["x"]) == ("m", "x")
    assert "authorization" not in delivered
    # Over the one that the SDK sets itself.
    result = sdk.message.publish_json(url=f"{RECEIVER}/ok", body={}, headers={"content-type": "application/x+json"})
    assert sdk.message.get(result.message_id).headers == {"Content-Type": ["application/x+json"]}


@check
def delays_and_times(sdk):
    not_before = int(time.time()) + 7200
    for options, wait in [
        ({"delay": 90}, 90_000),
        ({"delay": "10d"}, 864_000_000),
        ({"delay": "1d10h30m", "timeout": "1h30m"}, 124_200_000),
        ({"delay": "0s", "not_before": not_before}, None),
    ]:
        message_id = sdk.waiting(**options)
        message = sdk.message.get(message_id)
        if wait is None:
            assert message.not_before == not_before * 1000
        else:
            assert message.not_before - message.created_at == wait, options
        sdk.message.cancel(message_id)


@check
def bodies_arrive_byte_for_byte(sdk):
    for body in ["", "ünï✓ \r\n\0", b"\x00\xff\xfe\n"]:
        result = sdk.message.publish(url=f"{RECEIVER}/ok", body=body, content_type="text/x")
        expected = body if isinstance(body, bytes) else body.encode()
        assert delivery(result.message_id)["bytes"] == expected
        message = sdk.message.get(result.message_id)
        if isinstance(body, bytes):
            assert (message.body, message.body_base64) == (None, "AP/+Cg==")
        else:
            assert (message.body, message.body_base64) == (body or None, None)


@check
def a_repeat_is_the_first_message(sdk):
    by_id = {"url": f"{RECEIVER}/ok", "deduplication_id": unique("dedup")}
    # The SDK writes this boolean as "True".
    by_content = {"url": f"{RECEIVER}/ok", "body": unique("content"), "content_based_deduplication": True}
    for options in [by_id, by_content]:
        original, repeat = sdk.message.publish(**options), sdk.message.publish(**options)
        assert original.deduplicated is False
        assert repeat.deduplicated is True and repeat.message_id == original.message_id
        sdk.ended(original.message_id, "CREATED ACTIVE DELIVERED")
        assert len(deliveries(original.message_id)) == 1
    off = {"url": f"{RECEIVER}/ok", "body": unique("content"), "content_based_deduplication": False}
    assert sdk.message.publish(**off).message_id != sdk.message.publish(**off).message_id


@check
def redacted_fields_are_shown_as_a_hash_and_delivered_as_they_are(sdk):
    for redact, body, secret, open_ in [
        ({"body": True, "header": ["X-Secret"]}, True, True, False),
        ({"header": True}, False, True, True),
    ]:
        headers = {"X-Secret": "s3cret", "X-Open": "open"}
        result = sdk.message.publish(url=f"{RECEIVER}/ok", body="secret body", headers=headers, redact=redact)
        message = sdk.message.get(result.message_id)
        assert bool(HASH.fullmatch(message.body)) == body
        assert bool(HASH.fullmatch(message.headers["X-Secret"][0])) == secret
        assert bool(HASH.fullmatch(message.headers["X-Open"][0])) == open_
        request = delivery(result.message_id)
        assert (request["body"], request["headers"]["x-secret"]) == ("secret body", "s3cret")


@check
def a_model_gets_its_message(sdk):
    api = {"name": "llm", "provider": custom(RECEIVER, "provider-token")}
    body = {"model": "m"}
    result = sdk.message.publish_json(api=api, body=body, callback=f"{RECEIVER}/callback")
    request = delivery(result.message_id)
    assert request["target"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == "Bearer provider-token"
    # It waits until it is cancelled, and is never sent.
    api = {"name": "llm", "provider": openai("t")}
    result = sdk.message.publish_json(api=api, body=body, delay="1d")
    message = sdk.message.get(result.message_id)
    sdk.message.cancel(result.message_id)
    assert message.url == "https://api.openai.com/v1/chat/completions"
    assert message.headers == {"Content-Type": ["application/json"], "Authorization": ["Bearer t"]}


@check
def what_is_wrong_is_refused_with_its_reason(sdk):
    url = f"{RECEIVER}/ok"
    invalid_scheme = "invalid destination url: endpoint has invalid scheme, add http:// or https://"
    raises(lambda: sdk.message.get("msg_unknown"), "404", '"error"')
    raises(lambda: sdk.message.publish(url="ftp://example.com"), "400", invalid_scheme)
    raises(lambda: sdk.message.publish(url=url, delay="5x"), "400")
    raises(lambda: sdk.message.publish(url=url, retries=-1), "400")
    raises(lambda: sdk.message.publish(url=url, callback="example.com"), "400")
    raises(lambda: sdk.message.publish(url=""), "400", "a non-empty destination must be provided")
    wrong = Sdk(sdk.client_class, token="wrong")
    raises(lambda: wrong.message.publish(url=url), "401", '"error"')


@check
def the_clients_own_requests(sdk):
    keys = sdk.http.request(path="/v2/keys", method="GET")
    assert set(keys) == {"current", "next"}
    response = sdk.http.stream(path="/v2/keys", method="GET")
    assert response.status_code == 200
    if sdk.client_class is AsyncQStash:
        sdk.loop.run_until_complete(response.aclose())
    else:
        response.close()
