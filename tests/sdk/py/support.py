"""What the checks stand on: where everything is, the SDK's two clients in one form, and waiting."""

import asyncio
import base64
import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import os
import time
import traceback
import urllib.request

from qstash import AsyncQStash, QStash, Receiver
from qstash.errors import QStashError

TOKEN = os.environ["QSTASH_TOKEN"]
SERVER = os.environ["QSTASH_URL"]
CURRENT = os.environ["QSTASH_CURRENT_SIGNING_KEY"]
NEXT = os.environ["QSTASH_NEXT_SIGNING_KEY"]
RECEIVER = os.environ["RECEIVER_URL"]
RECEIVED = os.environ["RECEIVED_URL"]

receiver = Receiver(current_signing_key=CURRENT, next_signing_key=NEXT)


class Api:
    """One of the client's APIs: notes what is called, and waits for it if the client is the asynchronous one."""

    def __init__(self, sdk, name, api):
        self._sdk, self._name, self._api = sdk, name, api
        for method, _ in inspect.getmembers(type(api), inspect.isfunction):
            if not method.startswith("_"):
                sdk.methods.add(f"{name}.{method}")

    def __getattr__(self, name):
        method = getattr(self._api, name)

        def call(*args, **kwargs):
            self._sdk.called.add(f"{self._name}.{name}")
            result = method(*args, **kwargs)
            return self._sdk.loop.run_until_complete(result) if inspect.isawaitable(result) else result

        return call


class Sdk:
    """A client, synchronous or not, with the same methods, and what checks ask it again and again."""

    def __init__(self, client_class, token=TOKEN):
        self.client_class = client_class
        self.methods, self.called = set(), set()
        self.loop = asyncio.new_event_loop()
        for name, api in vars(client_class(token, base_url=SERVER)).items():
            setattr(self, name, Api(self, name, api))

    def states(self, message_id):
        logs = self.log.list(filter={"message_id": message_id}).logs
        return " ".join(log.state.value for log in reversed(logs))

    def ended(self, message_id, expected):
        eventually(f"{message_id}: {expected}", lambda: self.states(message_id) == expected)

    def dead_letter(self, message_id):
        return eventually(
            f"{message_id} is in the DLQ",
            lambda: first(self.dlq.list(filter={"message_id": message_id}).messages),
        )

    def waiting(self, **options):
        """The id of a message that waits for a day, or what else is said about it."""
        options = {"url": f"{RECEIVER}/waits", "body": "waits", "delay": "1d", **options}
        return self.message.publish(**options).message_id

    def failed(self, **options):
        """A message that has failed for good; its entry."""
        options = {"url": f"{RECEIVER}/fails", "body": "fails", "retries": 0, **options}
        return self.dead_letter(self.message.publish(**options).message_id)


CHECKS = []


def check(function):
    """Makes a function that gets an `Sdk` one of the checks."""
    CHECKS.append(function)
    return function


def run(client_class):
    """Runs all checks; whether one failed."""
    sdk = Sdk(client_class)
    failed = False
    for function in [*CHECKS, every_public_method_was_called]:
        name = f"{function.__module__}.{function.__name__}"
        # The SDK prints every page of the log.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                function(sdk)
                result = "ok"
            except Exception:
                result, failed = f"FAILED\n{traceback.format_exc()}", True
        print(f"{client_class.__name__} {name}: {result}", flush=True)
    return failed


def every_public_method_was_called(sdk):
    missing = sorted(sdk.methods - sdk.called)
    assert not missing, missing


# --- waiting ---


def eventually(what, ask, seconds=20):
    """Asks until there is an answer, 20 s at most."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.03)


def received():
    """What the receiver has got."""
    with urllib.request.urlopen(RECEIVED) as response:
        requests = json.load(response)
    for request in requests:
        request["url"] = RECEIVER + request["target"]
        request["bytes"] = base64.b64decode(request["body"])
        request["body"] = request["bytes"].decode(errors="replace")
        request["message_id"] = request["headers"]["upstash-message-id"]
    return requests


def first(items):
    return next(iter(items), None)


def deliveries(message_id):
    return [request for request in received() if request["message_id"] == message_id]


def delivery(message_id):
    return eventually(f"{message_id} is delivered", lambda: first(deliveries(message_id)))


def callback_of(message_id, path):
    def find():
        on_path = (r for r in received() if r["target"] == path)
        return first(r for r in on_path if json.loads(r["body"])["sourceMessageId"] == message_id)

    return eventually(f"{message_id} has a callback on {path}", find)


# --- making and comparing ---

_sequence = itertools.count()


def unique(what):
    """A name that no other check uses."""
    return f"py-{what}-{next(_sequence)}"


def shown(value):
    """A dataclass of the SDK as a dict of what it has."""
    return {key: value for key, value in dataclasses.asdict(value).items() if value is not None}


def is_time(value):
    assert isinstance(value, int), f"{value!r} is no integer"
    assert abs(value / 1000 - time.time()) < 3600, f"{value} is not about now, in milliseconds"


def raises(call, *texts, error=QStashError):
    """The call fails with this error, whose text contains these."""
    try:
        result = call()
    except error as e:
        for text in texts:
            assert text in str(e), f"{text!r} is not in {e}"
        return e
    raise AssertionError(f"{error.__name__} was not raised; the result was {result!r}")


def verify(by, request, **changes):
    given = {"body": request["body"], "url": request["url"], **changes}
    by.verify(signature=request["headers"]["upstash-signature"], **given)


CLIENTS = {"sync": QStash, "async": AsyncQStash}
