"""Plays workflow apps on the official Python SDK, unmodified, on Flask, against the server.

Started by tests/it/workflows.rs, or by hand, with QSTASH_URL, QSTASH_TOKEN, QSTASH_CURRENT_SIGNING_KEY and
QSTASH_NEXT_SIGNING_KEY set: `python main.py [PART OF A NAME…]`. The SDK has no parallel steps, no events and no client:
runs start at the endpoint, or by a plain message to it.
"""

import base64
import concurrent.futures
import hashlib
import itertools
import json
import logging
import os
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import uuid

import jwt
from flask import Flask, request
from qstash import QStash, Receiver
from upstash_workflow.flask import Serve
from werkzeug.serving import make_server

SERVER = os.environ["QSTASH_URL"]
TOKEN = os.environ["QSTASH_TOKEN"]
# Without them the SDK would verify nothing.
CURRENT = os.environ["QSTASH_CURRENT_SIGNING_KEY"]
NEXT = os.environ["QSTASH_NEXT_SIGNING_KEY"]
# Above the server's setting for the largest log that it sends; its default is 3 MiB.
LARGE_BYTES = int(os.environ.get("LARGE_BYTES", 5 * 1024 * 1024))

# The SDK and the app's server tell of every error and request.
logging.disable(logging.CRITICAL)

client = QStash(TOKEN, base_url=SERVER)
receiver = Receiver(current_signing_key=CURRENT, next_signing_key=NEXT)

# --- the app ---

# Flask takes no routes once it has answered a request: each path has an app of its own.
apps = {}
names = itertools.count(1)
received = []


def dispatch(environ, start_response):
    """The WSGI application: the app of the request's path."""
    return apps[environ["PATH_INFO"]](environ, start_response)


def app_at(path):
    """An app for this path, which notes what comes to it."""
    apps[path] = app = Flask(path)
    app.before_request(before_request)
    app.after_request(after_request)
    return app


class Request:
    """What came to the app, and how it was answered."""

    def __init__(self):
        self.path, self.method = request.path, request.method
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.body = request.get_data()
        self.status = self.answer = None
        self.at = time.time()

    @property
    def kind(self):
        if "upstash-workflow-is-failure" in self.headers:
            return "failure"
        if "upstash-workflow-callback" in self.headers:
            return "result"
        return "step" if "upstash-workflow-sdk-version" in self.headers else "direct"

    def __repr__(self):
        return f"{self.method} {self.path}, {self.kind}: {self.status} {(self.answer or b'')[:300]}"


def before_request():
    request.environ["noted"] = noted = Request()
    received.append(noted)


def after_request(response):
    noted = request.environ["noted"]
    noted.answer, noted.status = response.get_data(), response.status_code
    return response


class Flow:
    """A workflow's endpoint; `function(context, did)`, where `did(name, value)` notes that a step was executed."""

    def __init__(self, function, *, failure_function=None, **options):
        self.path = f"/flow-{next(names)}"
        self.url = ORIGIN + self.path
        self.executed, self.returned, self.failures = {}, [], []

        def did(name, value=None):
            self.executed[name] = self.executed.get(name, 0) + 1
            return value

        def route(context):
            result = function(context, did)
            # While authorization is checked, the first step would end the function.
            if "Disabled" not in type(context).__name__:
                self.returned.append(result)

        def failure(context, status, response, headers):
            self.failures.append((context, status, response, headers))
            return failure_function(context)

        route.__name__ = self.path
        options = {"retries": 0, **options}
        if failure_function:
            options["failure_function"] = failure
        Serve(app_at(self.path)).route(self.path, **options)(route)

    @property
    def requests(self):
        return [one for one in list(received) if one.path == self.path]

    def start(self, body="", headers=None):
        """Starts a run by a request straight to the endpoint; its id."""
        content_type = {"Content-Type": "application/json"}
        signature = {"Upstash-Signature": sign(self.url, body.encode())}
        status, answer = ask(self.url, "POST", body.encode(), {**content_type, **(headers or {}), **signature})
        assert status == 200, (status, answer)
        return json.loads(answer)["workflowRunId"]

    def result(self):
        """What the function has returned, when the run has ended; it ends once."""
        eventually(lambda: f"the run ends: {self.requests}", lambda: self.returned and self.quiet())
        assert len(self.returned) == 1, self.returned
        return self.returned[0]

    def failure(self):
        """What the failure function was given; it is called once."""
        eventually(lambda: f"the run fails: {self.requests}", lambda: self.failures and self.quiet())
        assert len(self.failures) == 1, self.failures
        assert not self.returned, self.returned
        return self.failures[0]

    def quiet(self):
        return all(one.status is not None for one in self.requests)

    def counted(self, **expected):
        """How many requests of each kind there were; from now on there may be no more."""
        counts = {}
        for one in self.requests:
            counts[one.kind] = counts.get(one.kind, 0) + 1
        assert counts == expected, (counts, expected, self.requests)
        checked.append((self, len(self.requests)))
        self.check_logs()

    def check_logs(self):
        """All logs that were sent are prefixes of one, and each ends with what it was sent for."""
        longest = []
        for one in self.requests:
            if one.kind != "step":
                continue
            # This SDK can't fetch a log.
            assert one.body, "a delivery without a log"
            log = json.loads(one.body)
            if len(log) > 1:
                assert log[-1]["messageId"] == one.headers["upstash-message-id"]
            shorter, longer = sorted((longest, log), key=len)
            assert longer[: len(shorter)] == shorter, "two logs that differ"
            longest = longer


class ThirdParty:
    """A place to call that gives these replies, (status, body), the last of them for all that follow."""

    def __init__(self, *replies):
        self.path = f"/third-party-{next(names)}"
        self.url = ORIGIN + self.path
        replies = list(replies)

        def reply():
            status, body = replies.pop(0) if len(replies) > 1 else replies[0]
            return body, status

        app_at(self.path).add_url_rule(self.path, view_func=reply, methods=["GET", "POST"])

    @property
    def requests(self):
        return [one for one in list(received) if one.path == self.path]


def sign(url, body):
    """The signature of a request that the server didn't make."""
    now = int(time.time())
    digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
    claims = {"iss": "Upstash", "sub": url, "exp": now + 300, "nbf": now - 60, "iat": now, "jti": str(uuid.uuid4())}
    return jwt.encode({**claims, "body": digest}, CURRENT, algorithm="HS256")


def ask(url, method, body=None, headers=None):
    """A request and its answer: status and text."""
    try:
        asked = urllib.request.Request(url, body, headers or {}, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask_server(method, path, value=None):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    status, answer = ask(SERVER + path, method, None if value is None else json.dumps(value).encode(), headers)
    return status, json.loads(answer) if answer else None


def eventually(what, question, seconds=60):
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.02)
    return answer


def ended(run_id, state):
    """The log of a run that has come to this state."""

    def question():
        runs = ask_server("GET", f"/v2/workflows/logs?workflowRunId={run_id}")[1]["runs"]
        return runs and runs[0]["workflowState"] == state and runs[0]

    return eventually(f"{run_id} is {state}", question)


# --- the scenarios ---

AT_ONCE = 8

scenarios, checked = [], []


def scenario(part):
    """Adds a scenario; `part`: the part of Workflow that it is about."""

    def add(function):
        scenarios.append((f"{part}: {function.__name__.replace('_', ' ')}", function))
        return function

    return add


@scenario("runs")
def three_steps_after_a_request_straight_to_the_endpoint():
    tenants = set()

    def function(context, did):
        tenants.add(context.headers.get("X-Tenant"))
        one = context.run("step1", lambda: did("one", f"processed '{context.request_payload}'"))
        two = context.run("step2", lambda: did("two", f"processed '{one}'"))
        three = context.run("step3", lambda: did("three", {"a": [1, None, True]}))
        return two, three

    flow = Flow(function)
    status, _ = ask(flow.url, "POST", b"unsigned", {})
    assert status == 500, status
    run_id = flow.start("“unicode-quotes”", {"X-Tenant": "acme"})
    assert flow.result() == ("processed 'processed '“unicode-quotes”''", {"a": [1, None, True]})
    flow.counted(direct=2, step=4)
    assert flow.executed == {"one": 1, "two": 1, "three": 1}
    # Not sent to the app when it was called without.
    assert tenants == {"acme"}, tenants
    for one in flow.requests[2:]:
        assert one.headers["upstash-workflow-runid"] == run_id
        assert one.headers["x-tenant"] == "acme"
    ended(run_id, "RUN_SUCCESS")


@scenario("runs")
def a_plain_message_to_the_endpoint():
    flow = Flow(lambda context, did: context.run("one", lambda: did("one", context.request_payload["order"])))
    client.message.publish_json(url=flow.url, body={"order": 7}, headers={"X-Tenant": "acme"})
    assert flow.result() == 7
    flow.counted(direct=1, step=2)
    ended(flow.requests[-1].headers["upstash-workflow-runid"], "RUN_SUCCESS")


@scenario("runs")
def sleeps():
    def function(context, did):
        start = context.run("start", lambda: did("start", time.time()))
        context.sleep("sleep", 1)
        middle = context.run("middle", lambda: did("middle", time.time()))
        context.sleep("text", "1s")
        context.sleep_until("until", middle + 3)
        end = context.run("end", lambda: did("end", time.time()))
        return middle - start, end - middle

    flow = Flow(function)
    run_id = flow.start()
    first, second = flow.result()
    # The unit of sleep_until is a second, to which the SDK rounds.
    assert first >= 0.99 and second >= 2.4, (first, second)
    flow.counted(direct=1, step=7)
    assert flow.executed == {"start": 1, "middle": 1, "end": 1}
    ended(run_id, "RUN_SUCCESS")


@scenario("runs")
def a_step_that_fails_once():
    attempts = itertools.count(1)

    def function(context, did):
        context.run("one", lambda: did("one"))

        def two():
            did("two")
            if next(attempts) == 1:
                raise RuntimeError("not yet")
            return 2

        return context.run("two", two)

    flow = Flow(function, retries=1)
    flow.start()
    assert flow.result() == 2
    flow.counted(direct=1, step=4)
    assert flow.executed == {"one": 1, "two": 2}


@scenario("runs")
def authorization_that_is_refused_starts_nothing():
    def function(context, did):
        if context.headers.get("Authentication") != "Bearer secret":
            return
        context.run("one", lambda: did("one"))

    flow = Flow(function)
    wrong = {"Authentication": "Bearer wrong", "Upstash-Signature": sign(flow.url, b"x")}
    assert ask(flow.url, "POST", b"x", wrong)[0] == 400
    flow.start("x", {"Authentication": "Bearer secret"})
    flow.result()
    flow.counted(direct=2, step=2)
    assert flow.executed == {"one": 1}


@scenario("calls")
def calls_of_all_endings():
    good = ThirdParty((201, "ünïcode ✓"))
    bad = ThirdParty((401, '{"error": "no"}'))

    def function(context, did):
        post = context.call(
            "post", url=good.url, method="POST", body={"from": "EUR"}, headers={"X-Key": "k"}, timeout=30
        )
        get = context.call("get", url=bad.url)
        return (post.status, post.body), (get.status, get.body)

    flow = Flow(function)
    run_id = flow.start("{}", {"X-Tenant": "acme"})
    assert flow.result() == ((201, "ünïcode ✓"), (401, {"error": "no"}))
    flow.counted(direct=1, step=3, result=2)
    (post,), (get,) = good.requests, bad.requests
    assert (post.method, json.loads(post.body), post.headers["x-key"]) == ("POST", {"from": "EUR"}, "k")
    assert get.method == "GET"
    # The third party is told nothing of the run, but it can verify that the server called it.
    assert "x-tenant" not in post.headers and "upstash-workflow-runid" not in post.headers
    receiver.verify(signature=post.headers["upstash-signature"], body=post.body.decode(), url=good.url)
    ended(run_id, "RUN_SUCCESS")


@scenario("calls")
def a_call_whose_third_party_fails_once():
    other = ThirdParty((503, "one"), (200, "two"))

    def function(context, did):
        answer = context.call("call", url=other.url, retries=1)
        return answer.status, answer.body

    flow = Flow(function)
    flow.start()
    assert flow.result() == (200, "two")
    assert len(other.requests) == 2
    flow.counted(direct=1, step=2, result=1)


@scenario("calls")
def a_call_of_another_workflow():
    called = Flow(lambda context, did: context.run("one", lambda: did("one", context.request_payload)))

    def function(context, did):
        answer = context.call("call", url=called.url, method="POST", body={"from": "caller"})
        return answer.status, answer.body["workflowRunId"]

    flow = Flow(function)
    flow.start()
    status, run_id = flow.result()
    assert (status, run_id[:4]) == (200, "wfr_")
    assert called.result() == {"from": "caller"}
    flow.counted(direct=1, step=2, result=1)
    called.counted(direct=1, step=2)


def fails(context, did):
    context.run("one", lambda: did("one"))

    def two():
        did("two")
        raise RuntimeError("kaput")

    context.run("two", two)


@scenario("calls")
def a_failure_function():
    flow = Flow(fails, failure_function=lambda context: "told", retries=1)
    run_id = flow.start('{"order": 7}', {"X-Tenant": "acme"})
    context, status, response, headers = flow.failure()
    assert (status, response) == (500, "kaput")
    assert context.request_payload == {"order": 7}
    assert context.workflow_run_id == run_id
    assert context.headers.get("X-Tenant") == "acme"
    assert isinstance(headers, dict)
    flow.counted(direct=1, step=3, failure=1)
    assert flow.executed == {"one": 1, "two": 2}
    ended(run_id, "RUN_FAILED")


@scenario("calls")
def a_failure_url():
    other = ThirdParty((200, "thanks"))
    flow = Flow(fails, failure_url=other.url)
    run_id = flow.start("payload")
    eventually("the failure callback", lambda: other.requests)
    ended(run_id, "RUN_FAILED")
    (told,) = other.requests
    payload = json.loads(told.body)
    assert payload["workflowRunId"] == run_id
    assert json.loads(base64.b64decode(payload["body"]))["message"] == "kaput"
    assert base64.b64decode(payload["sourceBody"]).decode() == "payload"
    flow.counted(direct=1, step=2)


@scenario("calls")
def a_failure_that_nobody_is_told_of():
    flow = Flow(fails)
    run_id = flow.start()
    eventually("the failure", lambda: len(flow.requests) == 3 and flow.quiet())
    ended(run_id, "RUN_FAILED")
    flow.counted(direct=1, step=2)


@scenario("calls")
def a_call_that_fails_is_no_failure_of_the_run():
    other = ThirdParty((500, "no"))
    flow = Flow(
        lambda context, did: context.call("call", url=other.url).status, failure_function=lambda context: "never"
    )
    flow.start()
    assert flow.result() == 500
    flow.counted(direct=1, step=2, result=1)
    assert not flow.failures


@scenario("invoke")
def cancelled_while_it_sleeps():
    def function(context, did):
        context.run("one", lambda: did("one"))
        context.sleep("long", 3600)
        context.run("never", lambda: did("never"))

    flow = Flow(function, failure_function=lambda context: "never")
    run_id = flow.start()
    eventually("it sleeps", lambda: len(flow.requests) == 3 and flow.quiet())
    status, answer = ask_server("DELETE", "/v2/workflows/runs", {"workflowRunIds": [run_id]})
    assert (status, answer) == (200, {"cancelled": 1}), (status, answer)
    ended(run_id, "RUN_CANCELED")
    flow.counted(direct=1, step=2)
    assert flow.executed == {"one": 1} and not flow.failures


@scenario("runs")
def a_large_result():
    large = "x" * LARGE_BYTES

    def function(context, did):
        one = context.run("one", lambda: did("one", large))
        return context.run("two", lambda: did("two", len(one)))

    flow = Flow(function)
    flow.start()
    assert flow.result() == LARGE_BYTES
    flow.counted(direct=1, step=3)


def nothing_came_after_the_ends():
    for flow, count in checked:
        assert len(flow.requests) == count, flow.requests


def play(name, function):
    """Plays one; whether it failed."""
    start = time.monotonic()
    try:
        function()
        result = "ok"
    except Exception:
        result = f"FAILED\n{traceback.format_exc()}"
    print(f"{name}: {result} ({time.monotonic() - start:.1f} s)", flush=True)
    return result != "ok"


if __name__ == "__main__":
    web_server = make_server("127.0.0.1", 0, dispatch, threaded=True)
    ORIGIN = f"http://127.0.0.1:{web_server.port}"
    threading.Thread(target=web_server.serve_forever, daemon=True).start()
    wanted = [one for one in scenarios if not sys.argv[1:] or any(part in one[0] for part in sys.argv[1:])]
    # Most wait for a retry, whose delay this SDK can't set.
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda one: play(*one), wanted))
    failed = [name for (name, _), has_failed in zip(wanted, results) if has_failed]
    if play("nothing came after the ends", nothing_came_after_the_ends):
        failed.append("nothing came after the ends")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print("all checks were made")
