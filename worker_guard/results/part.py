"""The part that cleans the results by schedule, and keeps the history of sweeps and cleanups."""

from __future__ import annotations

import random
from functools import partial
from typing import Any, ClassVar

from worker_guard import celery_internals
from worker_guard.part import Context, Part, PartOff
from worker_guard.results.backend import ResultBackend, open_result_backend
from worker_guard.results.cleanup import actor_for, open_history, open_lease
from worker_guard.results.history import History
from worker_guard.results.history_writer import HistoryWriter
from worker_guard.results.scheduled_cleanup import ScheduledCleanup, celery_schedule, spread
from worker_guard.scheduler import run_to_end
from worker_guard.settings import PREFIX

#: Seconds that the history may take of a warm shutdown.
_AT_STOP_S = 1.0


class ResultsPart(Part):
    """Deletes old results by schedule, in one worker at a time, and keeps the history."""

    name: ClassVar[str] = "results"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        worker, settings = context.worker, context.settings
        backend = open_result_backend(
            worker.app, settings, timeout_s=celery_internals.REDIS_TIMEOUT_S
        )
        self._cleanup: ScheduledCleanup | None = None
        try:
            self._cleanup = _scheduled_cleanup(context, backend)
            self.jobs.append(self._cleanup)
        except PartOff as exc:
            self.states[self.name] = str(exc)
        self._writer: HistoryWriter | None = None
        if not settings.dry_run:
            self._writer = HistoryWriter(
                interval_s=settings.interval,
                history=History(backend.client, backend.own_prefix),
                by=worker.hostname,
                now=context.now,
            )
            self.jobs.append(self._writer)
            context.activity.listeners.append(self._writer.note)

    def stop(self, *, cold: bool) -> None:
        """Write what is pending, and give the lease back."""
        if cold:
            return
        if (writer := self._writer) is not None:
            until = self.context.monotonic() + _AT_STOP_S
            is_late = partial(self._is_over, until)
            self.context.attempt(writer.name, lambda: run_to_end(writer.run(), until=is_late))
        if self._cleanup is not None:
            self._cleanup.give_back()

    def _is_over(self, until_mono: float) -> bool:
        return self.context.monotonic() >= until_mono


def _scheduled_cleanup(context: Context, backend: ResultBackend) -> ScheduledCleanup:
    """Make the job. Connects to nothing yet.

    Raises:
        PartOff: a setting says that results stay.
    """
    settings, worker = context.settings, context.worker
    if settings.results_schedule is None:
        raise PartOff(f"{PREFIX}results_schedule is None")
    if backend.configured_max_age_s is None:
        raise PartOff(
            "results are meant to stay: worker_guard_results_max_age and result_expires give no age"
        )
    dry_run = settings.dry_run
    schedule: Any = celery_schedule(settings.results_schedule, worker.app)
    if dry_run:
        share = random.random()  # noqa: S311 - no secret
        schedule = spread(schedule, monotonic=context.monotonic, share=share)
    return ScheduledCleanup(
        longest_wait_s=settings.interval,
        max_age_s=backend.configured_max_age_s,
        schedule=schedule,
        backend=backend,
        actor=actor_for(dry_run=dry_run),
        dry_run=dry_run,
        lease=open_lease(backend, worker.hostname, dry_run=dry_run),
        history=open_history(backend, dry_run=dry_run),
        by=worker.hostname,
        report=context.report,
        monotonic=context.monotonic,
        now=context.now,
    )
