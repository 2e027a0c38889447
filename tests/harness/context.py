"""What a part is given, without a worker around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from worker_guard.activity import Activity
from worker_guard.events import Event
from worker_guard.part import Context
from worker_guard.scheduler import Scheduler
from worker_guard.settings import Settings
from worker_guard.status_model import GuardStatus


def make_context(
    worker: Any,
    settings: Settings | None = None,
    *,
    heard: Callable[[Event], None] = lambda _event: None,
    monotonic: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    status: Callable[[], GuardStatus] = lambda: GuardStatus(version="0"),
    before_statedb: Collection[str] = (),
) -> Context:
    """A context whose scheduler never ticks; ``heard`` is told each event."""
    settings = settings or Settings()
    activity = Activity(dry_run=settings.dry_run, monotonic=monotonic, now=now)

    def report(event: Event) -> None:
        activity.note(event)
        heard(event)

    return Context(
        worker=worker,
        settings=settings,
        report=report,
        preview=heard,
        scheduler=Scheduler(report=report, monotonic=monotonic),
        activity=activity,
        status=status,
        status_of=lambda name: {name: getattr(status(), name)},
        before_statedb=before_statedb,
        monotonic=monotonic,
        now=now,
    )
