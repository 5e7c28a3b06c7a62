"""The limits of the API itself, on a server that has some: the SDK chooses its error by the answer's headers."""

import contextlib
import io
import os
import time

from qstash.errors import DailyMessageLimitExceededError, QStashError, RateLimitExceededError
from support import CLIENTS, RECEIVER, Sdk, raises


def refused(call):
    """The error that the call comes to when it is made again and again."""
    for _ in range(1000):
        try:
            call()
        except QStashError as error:
            return error
    raise AssertionError("it was never refused")


for client_class in CLIENTS.values():
    sdk = Sdk(client_class)
    # The SDK prints every page of the log.
    with contextlib.redirect_stdout(io.StringIO()):
        burst = refused(lambda: sdk.log.list(count=1))
    daily = refused(lambda: sdk.message.publish(url=f"{RECEIVER}/ok"))
    for error, kind, limit in [
        (burst, RateLimitExceededError, "REQUESTS_PER_SECOND"),
        (daily, DailyMessageLimitExceededError, "MESSAGES_PER_DAY"),
    ]:
        assert type(error) is kind, error
        assert (error.limit, error.remaining) == (os.environ[limit], "0"), error
        assert -60 < int(error.reset) - time.time() <= 86_400, error
    raises(lambda: sdk.message.batch([{"url": f"{RECEIVER}/ok"}]), error=DailyMessageLimitExceededError)
    raises(lambda: sdk.message.enqueue(queue="q", url=f"{RECEIVER}/ok"), error=DailyMessageLimitExceededError)
print("all checks were made")
