"""The tests' app with a worker that answers ``inspect guard`` in a way of its own."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery.worker.control import inspect_command

import worker_guard.remote  # noqa: F401 - so that the command below replaces the guard's
from tests.harness.app import app

__all__ = ["app"]

#: What to answer, as JSON; and the file that is to be there before.
ANSWER = "WORKER_GUARD_TEST_ANSWER"
AFTER = "WORKER_GUARD_TEST_ANSWER_AFTER"


@inspect_command(name="guard")
def odd(state: Any, **_: Any) -> Any:
    """Answer as the test says."""
    while AFTER in os.environ and not os.path.exists(os.environ[AFTER]):
        time.sleep(0.02)
    return json.loads(os.environ[ANSWER])
