"""Calls everything that the official Python SDK can do, with the client that the argument names: sync or async.

Started by tests/it/sdk.rs, which says where everything is.
"""

import sys

import support

# The order of these is that of the checks; the last one rotates the keys.
import messages  # noqa: I001
import cancel
import batch
import url_groups
import queues
import schedules
import flow_control
import dlq
import logs
import receiver
import keys

failed = support.run(support.CLIENTS[sys.argv[1]])
print("all checks were made")
sys.exit(failed)
