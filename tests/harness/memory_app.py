"""The tests' app with tasks that hold memory, and with a ledger in Redis of who ran how often."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import redis
from celery.exceptions import WorkerShutdown
from celery.worker.control import control_command

from tests.harness.app import app
from worker_guard.celery_internals import PoolChildren

__all__ = ["app"]

#: Megabytes that the main process allocates before it forks.
PRELOAD = "WORKER_GUARD_TEST_PRELOAD_MB"
LEDGER = "WORKER_GUARD_TEST_LEDGER"
#: Shut down warmly when an idle child was woken, before anything that it answers can be read; the
#: value is the signal that the child is sent before (0: none).
STOP_AT_WAKE = "WORKER_GUARD_TEST_STOP_AT_WAKE"

STARTED, FINISHED, FREE = "ledger:started", "ledger:finished", "ledger:free"

_MB = 1_000_000

preloaded = bytearray(os.urandom(4096)) * (int(os.environ.get(PRELOAD, "0")) * _MB // 4096)
held: list[bytearray] = []


@cache
def _ledger(pid: int) -> Any:
    # By process: a connection must not be shared with the child that is forked later.
    return redis.Redis.from_url(os.environ[LEDGER])


def ledger() -> Any:
    return _ledger(os.getpid())


def hold(megabytes: int) -> None:
    held.append(bytearray(b"x") * (megabytes * _MB))


@app.task(name="harness.work", bind=True)
def work(self: Any, seconds: float, megabytes: int = 0) -> int:
    """Leak so much, sleep so long, and write down that it was done."""
    ledger().hincrby(STARTED, self.request.id, 1)
    if megabytes:
        hold(megabytes)
    time.sleep(seconds)
    ledger().hincrby(FINISHED, self.request.id, 1)
    return os.getpid()


@app.task(name="harness.fill")
def fill(megabytes: int) -> int:
    """Let this process hold so much in all, and no more."""
    held.clear()
    hold(megabytes)
    return os.getpid()


@app.task(name="harness.leak")
def leak(megabytes: int) -> int:
    hold(megabytes)
    return os.getpid()


@app.task(name="harness.clean")
def clean() -> int:
    bytearray(b"x") * (5 * _MB)
    return os.getpid()


@app.task(name="harness.spike")
def spike(megabytes: int) -> int:
    """Use much, and give it back."""
    bytearray(b"x") * (megabytes * _MB)
    return os.getpid()


@app.task(name="harness.wait")
def wait(megabytes: int) -> int:
    """Leak so much, then run until the test lets it go on."""
    hold(megabytes)
    ledger().hset(STARTED, f"pid:{os.getpid()}", 1)
    while not ledger().exists(FREE):
        time.sleep(0.02)
    return os.getpid()


@app.task(name="harness.stamp")
def stamp(megabytes: int, seconds: float) -> tuple[int, float, float]:
    """Hold so much in all for so long; returns the process and when it began and ended."""
    began_at = time.time()
    held.clear()
    hold(megabytes)
    time.sleep(seconds)
    return os.getpid(), began_at, time.time()


@control_command(args=[("megabytes", int)])
def grow_parent(state: Any, megabytes: int) -> dict[str, str]:
    """Let the main process hold so much more."""
    hold(megabytes)
    return {"ok": "grown"}


def stop_at_wake(signum: int) -> None:
    wake = PoolChildren.wake

    def wake_and_stop(self: PoolChildren, pid: int) -> None:
        was_busy = self.is_busy(pid)
        wake(self, pid)
        if not was_busy and self.is_busy(pid):
            print(f"woken: {pid}", flush=True)
            os.kill(pid, signum)
            # What a signal leads to when the loop next looks; so nothing is read between.
            raise WorkerShutdown(0)

    PoolChildren.wake = wake_and_stop  # type: ignore[method-assign]


if STOP_AT_WAKE in os.environ:
    stop_at_wake(int(os.environ[STOP_AT_WAKE]))
