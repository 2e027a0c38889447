"""The tests' app, with a stopwatch on all that the guard does in the worker's loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.worker.control import inspect_command

from tests.harness.app import app
from worker_guard.revoked.part import RevokedPart
from worker_guard.scheduler import Scheduler

__all__ = ["app"]

#: The longest hold by the clock and by the processor, in seconds, at the start and later.
_longest = {"start": (0.0, 0.0), "later": (0.0, 0.0)}


def _timed(which: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began, worked = time.perf_counter(), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            held = time.perf_counter() - began, time.thread_time() - worked
            _longest[which] = max(_longest[which], held)

    return timed


RevokedPart.connected = _timed("start", RevokedPart.connected)  # type: ignore[method-assign]
Scheduler._tick = _timed("later", Scheduler._tick)  # type: ignore[method-assign]


@inspect_command()
def holds(panel: Any) -> dict[str, list[float]]:
    """The longest holds until now."""
    return {which: list(held) for which, held in _longest.items()}
