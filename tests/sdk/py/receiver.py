"""Signatures, and callbacks."""

from qstash import Receiver
from qstash.errors import SignatureError
from support import NEXT, CURRENT, RECEIVER, callback_of, check, delivery, raises, receiver, verify

OTHER = "sig_other_key_of_thirty_three_bytes"


def fails(*args, **kwargs):
    raises(lambda: verify(*args, **kwargs), error=SignatureError)


@check
def deliveries_of_every_method_verify_and_nothing_else_does(sdk):
    for method, body in [("POST", "ünïcode ✓"), ("GET", "a body"), ("DELETE", "a body"), ("PUT", "")]:
        result = sdk.message.publish(url=f"{RECEIVER}/ok?of={method}", method=method, body=body)
        request = delivery(result.message_id)
        assert (request["method"], request["body"]) == (method, body)
        verify(receiver, request)
        verify(receiver, request, url=None, clock_tolerance=5)
        verify(Receiver(current_signing_key=OTHER, next_signing_key=CURRENT), request)
        fails(receiver, request, body=body + " ")
        fails(receiver, request, url=request["url"] + "/")
        fails(Receiver(current_signing_key=NEXT, next_signing_key=OTHER), request)


@check
def callbacks_verify(sdk):
    result = sdk.message.publish(
        url=f"{RECEIVER}/recovers",
        body="x",
        retry_delay="10",
        callback=f"{RECEIVER}/callback?of=py",
        callback_headers={"X-Callback": "c", "Retries": "7"},
    )
    sdk.ended(result.message_id, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED")
    callback = callback_of(result.message_id, "/callback?of=py")
    verify(receiver, callback)
    # The SDK puts Upstash-Callback- before all of them; what isn't an option is a header.
    assert callback["headers"]["x-callback"] == "c"
    assert "retries" not in callback["headers"]
    assert sdk.message.get(callback["message_id"]).max_retries == 7
    fails(receiver, callback, body=callback["body"].replace('"', "'"))
