"""The Celery app that the tests' workers run. Its configuration comes as JSON by environment."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task

CONFIGURATION = "WORKER_GUARD_TEST_CONFIGURATION"
UNGUARDED = "WORKER_GUARD_TEST_UNGUARDED"

#: Seconds after which a sweep that was asked for answers before it has ended. Here more than
#: anywhere else, so that no answer depends on how busy the machine is.
ASKED = "WORKER_GUARD_TEST_ASKED_S"

app = Celery("harness")
app.conf.update(
    {
        "broker_connection_retry_on_startup": True,
        "task_default_queue": "work",
        **json.loads(os.environ.get(CONFIGURATION, "{}")),
    }
)

if not os.environ.get(UNGUARDED):
    from worker_guard import WorkerGuard
    from worker_guard.revoked import part

    app.steps["worker"].add(WorkerGuard)
    vars(part)["_ASKED_S"] = float(os.environ.get(ASKED, "10"))


@app.task(name="harness.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="harness.sleep")
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task(name="harness.retry_once", bind=True, max_retries=1)
def retry_once(self: Task, value: Any) -> Any:
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return value


@app.task(name="harness.retry_later", bind=True)
def retry_later(self: Task, countdown: float) -> None:
    raise self.retry(countdown=countdown)


@app.task(name="harness.pid")
def pid() -> int:
    return os.getpid()


@app.task(name="harness.push")
def push(url: str, key: str) -> None:
    """Tell a bench that all tasks before this one are done."""
    import redis

    with redis.Redis.from_url(url) as client:
        client.lpush(key, b"done")
