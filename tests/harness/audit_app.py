"""The tests' app for what the audit claims: a Beat schedule, and tasks that count their runs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import redis

from tests.harness.app import app
from tests.harness.audit_entry import ENTRY, given_schedule

__all__ = ["ENTRY", "app"]

COUNTS = "WORKER_GUARD_TEST_COUNTS"
#: Have an entry added when the app is finalized, and say so on stdout.
PERIODIC = "WORKER_GUARD_TEST_PERIODIC"


schedule = given_schedule()
if schedule is not None:
    app.conf.beat_schedule = schedule


def _count(key: str) -> int:
    with redis.Redis.from_url(os.environ[COUNTS]) as client:
        return int(client.incr(key))


@app.task(name="harness.die_once", bind=True)
def die_once(self: Any) -> int:
    """Kill the process that runs this, the first time."""
    runs = _count(f"runs:{self.request.id}")
    if runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return runs


@app.task(name="harness.count", bind=True)
def count(self: Any, seconds: float = 0) -> int:
    """Count the run, and take so long."""
    runs = _count(f"runs:{self.request.id}")
    time.sleep(seconds)
    return runs


@app.task(name="harness.hold")
def hold() -> None:
    """Run until the test lets it end."""
    with redis.Redis.from_url(os.environ[COUNTS]) as client:
        client.set("holding", 1)
        while not client.exists("free"):
            time.sleep(0.02)


if PERIODIC in os.environ:

    @app.on_after_finalize.connect
    def add_entries(sender: Any, **kwargs: Any) -> None:
        print("finalized")
        sender.add_periodic_task(60, count.s(), name="late", expires=30)
