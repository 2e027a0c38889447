"""The tests' app for what the audit claims: a Beat schedule, and tasks that count their runs."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import redis

from tests.harness.app import app

__all__ = ["app"]

#: The entry that Beat sends each half second (or ``every_s``), as JSON: its options. ``expires``
#: can be an object:
#: ``{"at": seconds from import, "naive": bool}`` or ``{"timedelta": seconds}``; so can
#: ``countdown``. ``entry`` holds keys of the entry itself, to add to it or put in place of its own.
ENTRY = "WORKER_GUARD_TEST_ENTRY"
COUNTS = "WORKER_GUARD_TEST_COUNTS"
#: Have an entry added when the app is finalized, and say so on stdout.
PERIODIC = "WORKER_GUARD_TEST_PERIODIC"


def _time(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "timedelta" in value:
        return timedelta(seconds=value["timedelta"])
    now = datetime.now() if value.get("naive") else datetime.now(timezone.utc)  # noqa: DTZ005
    return now + timedelta(seconds=value["at"])


if ENTRY in os.environ:
    options = json.loads(os.environ[ENTRY])
    options |= {key: _time(options[key]) for key in ("expires", "countdown") if key in options}
    given = options.pop("entry", {})
    every_s = options.pop("every_s", 0.5)
    entry = {"task": "harness.add", "args": (1, 2), "schedule": every_s, "options": options}
    app.conf.beat_schedule = {"entry": {**entry, **given}}


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
        sender.add_periodic_task(60, count.s(), name="late", expires=60)
