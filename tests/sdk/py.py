"""Drives a server with the official Python SDK. Started by tests/it/sdk.rs, which says where everything is."""

import base64
import json
import os
import re
import time
import urllib.request

from qstash import QStash, Receiver
from qstash.errors import QStashError, SignatureError
from qstash.log import LogState

TOKEN = os.environ["QSTASH_TOKEN"]
SERVER = os.environ["QSTASH_URL"]
CURRENT = os.environ["QSTASH_CURRENT_SIGNING_KEY"]
NEXT = os.environ["QSTASH_NEXT_SIGNING_KEY"]
RECEIVER = os.environ["RECEIVER_URL"]
RECEIVED = os.environ["RECEIVED_URL"]

client = QStash(TOKEN, base_url=SERVER)
receiver = Receiver(current_signing_key=CURRENT, next_signing_key=NEXT)


def eventually(what, ask):
    """Asks until there is an answer, 20 s at most."""
    deadline = time.monotonic() + 20
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        time.sleep(0.03)


def received():
    with urllib.request.urlopen(RECEIVED) as response:
        requests = json.load(response)
    for request in requests:
        request["url"] = RECEIVER + request["target"]
        request["body"] = base64.b64decode(request["body"]).decode()
        request["message_id"] = request["headers"]["upstash-message-id"]
    return requests


def first(requests):
    return next(iter(requests), None)


def delivery(message_id):
    return eventually(
        f"{message_id} is delivered",
        lambda: first(r for r in received() if r["message_id"] == message_id),
    )


def callback_of(message_id, path):
    def find():
        on_path = (r for r in received() if r["target"] == path)
        return first(r for r in on_path if json.loads(r["body"])["sourceMessageId"] == message_id)

    return eventually(f"{message_id} has a callback on {path}", find)


def verify(by, request, **changes):
    given = {"body": request["body"], "url": request["url"], **changes}
    by.verify(signature=request["headers"]["upstash-signature"], **given)


def raises(error, call, text=""):
    try:
        call()
    except error as e:
        assert text in str(e), f"{text!r} is not in {e}"
        return
    raise AssertionError(f"{error.__name__} was not raised")


def states(message_id):
    logs = client.log.list(filter={"message_id": message_id}).logs
    return [log.state.value for log in reversed(logs)]


def ended(message_id, expected):
    eventually(f"{message_id}: {expected}", lambda: " ".join(states(message_id)) == expected)


def dead_letter(message_id):
    return eventually(
        f"{message_id} is in the DLQ",
        lambda: first(client.dlq.list(filter={"message_id": message_id}).messages),
    )


def publishing():
    result = client.message.publish_json(
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
    assert result.message_id.startswith("msg_"), result
    message = client.message.get(result.message_id)
    assert message.message_id == result.message_id
    assert message.url == f"{RECEIVER}/ok?a=1&b=%20", message.url
    assert message.method == "PUT"
    assert json.loads(message.body) == {"hello": "wörld"}
    assert message.headers == {
        "Content-Type": ["application/json"],
        "Test-Header": ["test-value"],
        "Bypass-Tunnel-Reminder": ["1"],
    }, message.headers
    assert message.callback_headers == {"X-Callback": ["c"]}, message.callback_headers
    assert message.failure_callback_headers == {"X-Failure": ["f"]}, message.failure_callback_headers
    assert message.max_retries == 2
    assert message.retry_delay_expression == "1000 * (1 + retried)"
    assert message.callback == f"{RECEIVER}/callback"
    assert message.failure_callback == f"{RECEIVER}/failure"
    assert message.label == "sdk-label"
    assert message.not_before - message.created_at == 5_400_000

    client.message.cancel(result.message_id)
    ended(result.message_id, "CREATED CANCEL_REQUESTED CANCELED")
    raises(QStashError, lambda: client.message.cancel(result.message_id), "404")

    plain = client.message.publish(url=f"{RECEIVER}/ok", body="plain", headers={"Content-Type": "text/x"})
    message = client.message.get(plain.message_id)
    assert (message.body, message.max_retries, message.headers) == ("plain", 3, {"Content-Type": ["text/x"]})
    ended(plain.message_id, "CREATED ACTIVE DELIVERED")
    assert delivery(plain.message_id)["headers"]["content-type"] == "text/x"

    raises(QStashError, lambda: client.message.get("msg_unknown"), "404")
    raises(QStashError, lambda: client.message.cancel(""), "400")
    raises(QStashError, lambda: client.message.publish(url="ftp://example.com", body="x"), "invalid scheme")
    wrong = QStash("wrong", base_url=SERVER)
    raises(QStashError, lambda: wrong.message.publish(url=RECEIVER, body="x"), "401")


def deduplication():
    def publish():
        return client.message.publish(url=f"{RECEIVER}/ok", body="once", deduplication_id="py-1")

    original, repeat = publish(), publish()
    assert not original.deduplicated
    assert repeat.deduplicated and repeat.message_id == original.message_id

    def publish_content():
        # The SDK writes this boolean as "True".
        return client.message.publish(url=f"{RECEIVER}/ok", body="content", content_based_deduplication=True)

    original, repeat = publish_content(), publish_content()
    assert repeat.deduplicated and repeat.message_id == original.message_id


def redaction():
    result = client.message.publish(
        url=f"{RECEIVER}/ok",
        body="secret body",
        headers={"X-Secret": "s3cret", "X-Open": "open"},
        redact={"body": True, "header": ["X-Secret"]},
    )
    message = client.message.get(result.message_id)
    assert re.fullmatch("REDACTED:[0-9a-f]{64}", message.body), message.body
    assert re.fullmatch("REDACTED:[0-9a-f]{64}", message.headers["X-Secret"][0]), message.headers
    assert message.headers["X-Open"] == ["open"]
    request = delivery(result.message_id)
    assert (request["body"], request["headers"]["x-secret"]) == ("secret body", "s3cret")


def signatures():
    result = client.message.publish_json(
        url=f"{RECEIVER}/recovers",
        body={"text": "ünïcode ✓"},
        retry_delay="50",
        callback=f"{RECEIVER}/callback?of=py",
        callback_headers={"X-Callback": "c"},
    )
    request = delivery(result.message_id)
    verify(receiver, request)
    raises(SignatureError, lambda: verify(receiver, request, body=request["body"] + " "))
    raises(SignatureError, lambda: verify(receiver, request, url=request["url"] + "/"))
    others = Receiver(current_signing_key=NEXT, next_signing_key="sig_other_key_of_thirty_three_bytes")
    raises(SignatureError, lambda: verify(others, request))
    ended(result.message_id, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED")
    callback = callback_of(result.message_id, "/callback?of=py")
    verify(receiver, callback)
    assert callback["headers"]["x-callback"] == "c"
    raises(SignatureError, lambda: verify(receiver, callback, body=callback["body"].replace('"', "'")))


def dead_letters():
    result = client.message.publish(
        url=f"{RECEIVER}/fails",
        body="never",
        retries=0,
        label="dead",
        retry_delay="1000",
        failure_callback=f"{RECEIVER}/failure",
    )
    ended(result.message_id, "CREATED ACTIVE ERROR FAILED")
    letter = dead_letter(result.message_id)
    for entry in [letter, client.dlq.get(letter.dlq_id)]:
        assert entry.dlq_id == letter.dlq_id
        assert (entry.response_status, entry.response_body) == (404, "404 Not Found"), entry
        assert entry.response_headers["Content-Type"] == ["text/plain"]
        assert (entry.body, entry.max_retries, entry.retry_delay_expression) == ("never", 0, "1000")
    failure = callback_of(result.message_id, "/failure")
    verify(receiver, failure)
    assert json.loads(failure["body"])["dlqId"] == letter.dlq_id

    for filter in [
        {"message_id": result.message_id},
        {"from_time": 1, "to_time": 4_000_000_000_000},
    ]:
        page = client.dlq.list(filter=filter)
        assert [m.message_id for m in page.messages] == [result.message_id], filter
        assert page.cursor is None, page.cursor

    other = client.message.publish(url=f"{RECEIVER}/fails", body="second", retries=0)
    dead_letter(other.message_id)
    seen, cursor = [], None
    while True:
        page = client.dlq.list(count=1, cursor=cursor)
        seen += [m.message_id for m in page.messages]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [result.message_id, other.message_id], seen

    # The SDK has no retry, but its own client can make the call.
    answer = client.http.request(path=f"/v2/dlq/retry/{letter.dlq_id}", method="POST")
    again = dead_letter(answer["messageId"])
    assert again.body == "never" and again.message_id != result.message_id
    raises(QStashError, lambda: client.dlq.get(letter.dlq_id), "404")
    client.dlq.delete(again.dlq_id)
    raises(QStashError, lambda: client.dlq.delete(again.dlq_id), "404")


def log():
    result = client.message.publish(url=f"{RECEIVER}/ok?logged", body="x", label="logged", timeout=30)
    ended(result.message_id, "CREATED ACTIVE DELIVERED")
    page = client.log.list(filter={"message_id": result.message_id})
    assert page.cursor is None, page.cursor
    assert [entry.state for entry in page.logs] == [LogState.DELIVERED, LogState.ACTIVE, LogState.CREATED]
    for entry in page.logs:
        assert (entry.url, entry.method) == (f"{RECEIVER}/ok?logged", "POST")
        assert (entry.body_base64, entry.timeout, entry.label) == ("eA==", 30_000, "logged"), entry
    begin = client.log.list(count=2, filter={"message_id": result.message_id})
    rest = client.log.list(count=2, cursor=begin.cursor, filter={"message_id": result.message_id})
    assert begin.logs + rest.logs == page.logs
    assert rest.cursor is None
    delivered = client.log.list(filter={"message_id": result.message_id, "state": LogState.DELIVERED})
    assert [entry.state for entry in delivered.logs] == [LogState.DELIVERED]
    # Every state in the whole log is one that the SDK knows; it raises on others.
    client.log.list()


def keys():
    keys = client.signing_key.get()
    assert (keys.current, keys.next) == (CURRENT, NEXT)
    rotated = client.signing_key.rotate()
    assert rotated.current == NEXT and rotated.next not in (CURRENT, NEXT)
    assert client.signing_key.get() == rotated
    # A receiver that still has the old pair goes on verifying: what is current now was its next key.
    result = client.message.publish(url=f"{RECEIVER}/ok", body="after the rotation")
    request = delivery(result.message_id)
    verify(receiver, request)
    verify(Receiver(current_signing_key=rotated.current, next_signing_key=rotated.next), request)
    raises(SignatureError, lambda: verify(receiver, request, body="tampered"))


for check in [publishing, deduplication, redaction, signatures, dead_letters, log, keys]:
    check()
print("all checks passed")
