"""Failures in a row, and how they are counted if no success is reported."""

from __future__ import annotations

from worker_guard.backoff import Backoff
from worker_guard.events import Event, PartFailed


def test_failures_that_lie_far_apart_are_not_in_a_row() -> None:
    """A hook reports failures only: after one further pause without any, the count starts again."""
    events: list[Event] = []
    hooks = Backoff("hooks", first_pause_s=10.0, report=events.append)
    for now in (0.0, 10.0, 49.0, 90.0, 1000.0):
        hooks.lapse(now)
        hooks.failed(OSError("broken"), now)
    counted = [e.consecutive_failures for e in events if isinstance(e, PartFailed)]
    assert counted == [1, 2, 3, 4, 1]
