"""Puts the parts of a cleanup together: for the worker, for the task, for the command line."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from typing import Any

from worker_guard.errors import WorkerGuardError
from worker_guard.events import Event, Trigger
from worker_guard.results.backend import IN_WORKER_TIMEOUT_S, ResultBackend, open_result_backend
from worker_guard.results.cleanup_run import CleanupRun
from worker_guard.results.history import History, Outcome, PrivateHistory
from worker_guard.results.lease import Lease, SeenLease
from worker_guard.results.scheduled_cleanup import ScheduledCleanup, Totals, celery_schedule, spread
from worker_guard.results.strategy import DRY_RUN, FULL_SPEED, REAL, ResultsActor
from worker_guard.settings import Settings


class ResultsOffError(WorkerGuardError):
    """The results are not swept by schedule; the message says by which setting."""


class NoAgeError(WorkerGuardError):
    """Nothing says how old a result may get, so that nothing may be deleted.

    Give an age (``--max-age``), or set ``worker_guard_results_max_age`` or ``result_expires``.
    """


def actor_for(*, dry_run: bool) -> ResultsActor:
    """What a cleanup changes with."""
    return DRY_RUN if dry_run else REAL


def open_lease(target: ResultBackend, by: str, *, dry_run: bool) -> Lease | SeenLease:
    """The lease on this result backend, for one holder."""
    key = f"{target.own_prefix}results-lease"
    if dry_run:
        return SeenLease(target.client, key)
    return Lease(target.client, key, f"{by}/{uuid.uuid4()}", monotonic=time.monotonic)


def open_history(target: ResultBackend, *, dry_run: bool) -> History | PrivateHistory:
    """The history of this result backend."""
    return PrivateHistory() if dry_run else History(target.client, target.own_prefix)


def open_scheduled_cleanup(
    app: Any,
    settings: Settings,
    *,
    by: str,
    totals: Totals,
    report: Callable[[Event], None],
    monotonic: Callable[[], float],
) -> ScheduledCleanup:
    """The worker's part. Connects to nothing yet.

    Raises:
        WorkerGuardError: it is off; the message is the reason, for the start event.
    """
    target = open_result_backend(app, settings, timeout_s=IN_WORKER_TIMEOUT_S)
    if settings.results_schedule is None:
        raise ResultsOffError("worker_guard_results_schedule is None")
    if target.configured_max_age_s is None:
        raise ResultsOffError(
            "results are meant to stay: worker_guard_results_max_age and result_expires give no age"
        )
    dry_run = settings.dry_run
    schedule = celery_schedule(settings.results_schedule, app)
    if dry_run:
        schedule = spread(schedule, monotonic=monotonic, share=random.random())  # noqa: S311 - no secret
    return ScheduledCleanup(
        longest_wait_s=settings.interval,
        max_age_s=target.configured_max_age_s,
        schedule=schedule,
        target=target,
        actor=actor_for(dry_run=dry_run),
        dry_run=dry_run,
        lease=open_lease(target, by, dry_run=dry_run),
        history=open_history(target, dry_run=dry_run),
        by=by,
        totals=totals,
        report=report,
        monotonic=monotonic,
        now=time.time,
    )


class FullSpeedCleanup:
    """One cleanup at full speed, in a process that has nothing else to do."""

    def __init__(
        self,
        target: ResultBackend,
        *,
        max_age_s: float | None,
        dry_run: bool,
        by: str,
        trigger: Trigger,
        ignore_ttl: bool = False,
    ) -> None:
        age = target.configured_max_age_s if max_age_s is None else max_age_s
        if age is None:
            raise NoAgeError(
                "nothing says how old a result may get: worker_guard_results_max_age and "
                "result_expires are both unset or 0"
            )
        self._target, self._max_age_s, self._dry_run = target, age, dry_run
        self._by, self._trigger, self._ignore_ttl = by, trigger, ignore_ttl
        self._at = time.time()
        self._duration_s = 0.0
        self._stopping = False
        self._sweep: CleanupRun | None = None

    def run(self, progress: Callable[[int], None] = lambda _scanned: None) -> None:
        """CleanupRun to the end, or until :meth:`stop`.

        ``progress`` is told of the keys that were scanned since it was last.

        What was done until an error stands in :meth:`outcome`.
        """
        # Not from when it was put together: a question may have been asked in between.
        self._at, started = time.time(), time.monotonic()
        try:
            self._target.check()
            actor = actor_for(dry_run=self._dry_run)
            self._sweep = sweep = self._target.begin(
                max_age_s=self._max_age_s,
                actor=actor,
                pace=FULL_SPEED,
                ignore_ttl=self._ignore_ttl,
            )
            while not sweep.finished and not self._stopping:
                before = sweep.counts.keys_scanned
                sweep.step()
                progress(sweep.counts.keys_scanned - before)
        finally:
            self._duration_s = round(time.monotonic() - started, 6)

    def stop(self) -> None:
        """End the sweep after the call that is under way, so that what it does is counted."""
        self._stopping = True

    @property
    def refused(self) -> Exception | None:
        """The first change that the server's user may not make; all others were made."""
        return None if self._sweep is None else self._sweep.refused

    def outcome(self) -> Outcome | None:
        """What it came to by now; None where it never began."""
        sweep = self._sweep
        if sweep is None:
            return None
        return Outcome(
            at=self._at,
            by=self._by,
            trigger=self._trigger,
            dry_run=self._dry_run,
            complete=sweep.finished,
            strategy=sweep.strategy,
            max_age_s=self._max_age_s,
            duration_s=self._duration_s,
            counts=sweep.counts,
        )
