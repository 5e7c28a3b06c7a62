"""The signing keys. Last, since it rotates them."""

from qstash import Receiver
from qstash.errors import SignatureError
from support import CURRENT, NEXT, RECEIVER, check, delivery, raises, receiver, verify


@check
def receivers_that_know_both_keys_verify_across_a_rotation(sdk):
    keys = sdk.signing_key.get()
    assert (keys.current, keys.next) == (CURRENT, NEXT)
    rotated = sdk.signing_key.rotate()
    assert rotated.current == NEXT and rotated.next not in (CURRENT, NEXT)
    assert sdk.signing_key.get() == rotated
    result = sdk.message.publish(url=f"{RECEIVER}/ok", body="after the rotation")
    request = delivery(result.message_id)
    verify(receiver, request)
    verify(Receiver(current_signing_key=rotated.current, next_signing_key=rotated.next), request)
    raises(lambda: verify(receiver, request, body="tampered"), error=SignatureError)
