"""Cancelling: one message, some, all."""

import json

from support import RECEIVER, check, delivery, raises


@check
def one_message(sdk):
    message_id = sdk.waiting()
    sdk.message.cancel(message_id)
    sdk.ended(message_id, "CREATED CANCEL_REQUESTED CANCELED")
    raises(lambda: sdk.message.cancel(message_id), "404")
    raises(lambda: sdk.message.cancel("msg_unknown"), "404")


@check
def a_message_in_flight(sdk):
    result = sdk.message.publish(url=f"{RECEIVER}/held", body="x")
    delivery(result.message_id)
    sdk.message.cancel(result.message_id)


@check
def messages_by_their_ids_each_once(sdk):
    ids = [sdk.waiting() for _ in range(3)]
    assert sdk.message.cancel_many(ids[:1]) == 1
    assert sdk.message.cancel_many([*ids, ids[1], "msg_unknown"]) == 2
    assert sdk.message.cancel_many(ids) == 0
    for message_id in ids:
        sdk.ended(message_id, "CREATED CANCEL_REQUESTED CANCELED")


@check
def no_ids_are_not_all(sdk):
    message_id = sdk.waiting()
    raises(lambda: sdk.message.cancel(""), "400")
    assert sdk.message.cancel_many([]) == 0
    assert sdk.states(message_id) == "CREATED"
    sdk.message.cancel(message_id)


@check
def all_of_them(sdk):
    sdk.message.cancel_all()
    ids = [sdk.waiting() for _ in range(3)]
    assert sdk.message.cancel_all() == 3
    for message_id in ids:
        sdk.ended(message_id, "CREATED CANCEL_REQUESTED CANCELED")
    assert sdk.message.cancel_all() == 0


@check
def filters_in_a_body(sdk):
    """As older programs send them, with the client's own request."""
    ids = [sdk.waiting(label="by-body"), sdk.waiting(label="another")]

    def cancel(body):
        headers = {"Content-Type": "application/json"}
        return sdk.http.request(path="/v2/messages", method="DELETE", headers=headers, body=json.dumps(body))

    raises(lambda: cancel({"labeel": "x"}), "400", "labeel")
    assert cancel({"label": "by-body"}) == {"cancelled": 1}
    assert cancel({"messageIds": ids}) == {"cancelled": 1}
