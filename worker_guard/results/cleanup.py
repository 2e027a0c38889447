"""A cleanup at full speed, for the task and the command line; and what every cleanup opens."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from worker_guard.errors import WorkerGuardError
from worker_guard.events import Trigger
from worker_guard.lease import Lease, SeenLease
from worker_guard.results.backend import ResultBackend
from worker_guard.results.cleanup_run import (
    DRY_RUN,
    FULL_SPEED,
    REAL,
    CleanupCounts,
    CleanupRun,
    ResultsActor,
)
from worker_guard.results.history import History, Outcome, PrivateHistory


class NoAgeError(WorkerGuardError):
    """No setting says how old a result may get, so nothing may be deleted.

    Give an age (``--max-age``), or set ``worker_guard_results_max_age`` or ``result_expires``.
    """


def actor_for(*, dry_run: bool) -> ResultsActor:
    """The actor that changes keys, or in a dry run only counts."""
    return DRY_RUN if dry_run else REAL


def open_lease(backend: ResultBackend, by: str, *, dry_run: bool) -> Lease | SeenLease:
    """The lease on this result backend, for one holder."""
    key = f"{backend.own_prefix}results-lease"
    if dry_run:
        return SeenLease(backend.client, key)
    return Lease(backend.client, key, f"{by}/{uuid.uuid4()}", monotonic=time.monotonic)


def open_history(backend: ResultBackend, *, dry_run: bool) -> History | PrivateHistory:
    """The history of this result backend."""
    return PrivateHistory() if dry_run else History(backend.client, backend.own_prefix)


class FullSpeedCleanup:
    """One cleanup at full speed, in a process that does nothing else."""

    def __init__(
        self,
        backend: ResultBackend,
        *,
        max_age_s: float | None,
        dry_run: bool,
        by: str,
        trigger: Trigger,
        ignore_ttl: bool = False,
    ) -> None:
        age = backend.configured_max_age_s if max_age_s is None else max_age_s
        if age is None:
            raise NoAgeError(
                "nothing says how old a result may get: worker_guard_results_max_age and "
                "result_expires are both unset or 0"
            )
        self.backend, self._max_age_s, self._dry_run = backend, age, dry_run
        self._by, self._trigger, self._ignore_ttl = by, trigger, ignore_ttl
        self._at = time.time()
        self._duration_s = 0.0
        #: Whether :meth:`stop` was called.
        self.stopped = False
        self._run: CleanupRun | None = None

    def run(self, progress: Callable[[int], None] = lambda _scanned: None) -> None:
        """Clean to the end, or until :meth:`stop`.

        Calls ``progress`` with the number of keys that were scanned since its last call. After an
        error :meth:`outcome` says what was done before it.
        """
        # Not in __init__: the command may ask a question in between.
        self._at, started = time.time(), time.monotonic()
        try:
            self.backend.check()
            actor = actor_for(dry_run=self._dry_run)
            self._run = run = self.backend.begin(
                max_age_s=self._max_age_s,
                actor=actor,
                pace=FULL_SPEED,
                ignore_ttl=self._ignore_ttl,
            )
            while not run.finished and not self.stopped:
                before = run.counts.keys_scanned
                run.step()
                progress(run.counts.keys_scanned - before)
        finally:
            self._duration_s = round(time.monotonic() - started, 6)

    def stop(self) -> None:
        """End the cleanup after the current call, so that its counts are kept."""
        self.stopped = True

    @property
    def refused(self) -> Exception | None:
        """The first change that the server refused to this user; it made all that it allowed."""
        return None if self._run is None else self._run.refused

    @property
    def counts(self) -> CleanupCounts:
        """What was done so far."""
        return CleanupCounts() if self._run is None else self._run.counts

    def outcome(self) -> Outcome | None:
        """The outcome so far; None if the cleanup did not begin."""
        run = self._run
        if run is None:
            return None
        return Outcome(
            at=self._at,
            by=self._by,
            dry_run=self._dry_run,
            complete=run.finished,
            max_age_s=self._max_age_s,
            event=run.counts.event(trigger=self._trigger, duration_s=self._duration_s),
        )
