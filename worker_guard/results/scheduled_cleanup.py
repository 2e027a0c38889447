"""The job that cleans the results by schedule, in one worker at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from worker_guard.events import Event, Trigger
from worker_guard.lease import Lease, SeenLease
from worker_guard.results.backend import ResultBackend
from worker_guard.results.cleanup_run import IN_WORKER, CleanupCounts, Pace, ResultsActor
from worker_guard.results.history import History, Outcome, PrivateHistory
from worker_guard.scheduler import run_to_end

#: For each second that a slice takes, the event loop gets this many for other work.
_FREE_FOR_ONE = 4.0

#: A slice that has taken this long makes no further call.
_ENOUGH_S = 0.001

#: The longest time by which a dry run is put off.
_LONGEST_PUT_OFF_S = 600.0

#: The shortest time between two looks at the schedule.
_SHORTEST_WAIT_S = 1.0


class Schedule(Protocol):
    """What the job needs of a Celery schedule."""

    def __call__(self, last_run_at: float) -> tuple[bool, float]:
        """Whether a run is due, and the seconds until the next look."""


@dataclass(kw_only=True)
class ScheduledCleanup:
    """Cleans the results when the schedule says so, unless another process does.

    Each slice is one call to Redis, or a few quick ones. So the loop waits only once for a server
    that hangs.
    """

    name: ClassVar[str] = "results"

    #: The longest time between two looks at the schedule.
    longest_wait_s: float
    max_age_s: float
    schedule: Schedule
    backend: ResultBackend
    actor: ResultsActor
    dry_run: bool
    lease: Lease | SeenLease
    history: History | PrivateHistory
    by: str
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    now: Callable[[], float]
    pace: Pace = IN_WORKER
    _wait_s: float | None = field(default=None, init=False)
    _checked: bool = field(default=False, init=False)

    @property
    def interval_s(self) -> float:
        """Seconds until the next look at the schedule."""
        return self.longest_wait_s if self._wait_s is None else self._wait_s

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Clean if a run is due."""
        # Until the schedule says otherwise, and if anything fails: look as rarely as allowed.
        self._wait_s = self.longest_wait_s
        if not self._checked:
            self.backend.check()
            self._checked = True
            yield
        if not (yield from self._due()):
            return
        yield
        yield from self.lease.take()
        if not self.lease.held:
            return
        yield
        refused: Exception | None = None
        # Look again, now that nobody else can clean: another worker may just have finished.
        if (yield from self._due()):
            yield
            refused = yield from self._clean()
            yield
            yield from self._due()
        yield
        # After a failure the lease runs out by itself: don't ask a Redis that hangs twice.
        yield from self.lease.release()
        if refused is not None:
            # Only now: a refusal is no reason to clean again before the schedule says so.
            raise refused

    def give_back(self) -> None:
        """Give the lease back when the worker stops, so that another worker can clean."""
        run_to_end(self.lease.release())

    def _due(self) -> Generator[None, None, bool]:
        now = self.now()
        last_run = self.history.last_run(now)
        if last_run is None:
            # The first worker that asks begins the count.
            yield
            self.history.ran(now)
            last_run = now
        due, wait_s = self.schedule(last_run)
        self._wait_s = min(max(wait_s, _SHORTEST_WAIT_S), self.longest_wait_s)
        return due

    def _clean(self) -> Generator[None, None, Exception | None]:
        """Clean to the end; returns the first change that the server refused, if any."""
        at, started = self.now(), self.monotonic()
        cleanup = self.backend.begin(max_age_s=self.max_age_s, actor=self.actor, pace=self.pace)
        yield
        try:
            while not cleanup.finished:
                yield from self.lease.renew()
                slice_started = self.monotonic()
                while True:
                    cleanup.step()
                    if cleanup.finished or self.monotonic() - slice_started >= _ENOUGH_S:
                        break
                yield from self._rest(slice_started)
        finally:
            # Also if the cleanup is cut short: report what it did.
            counts = cleanup.counts
            duration_s = round(self.monotonic() - started, 6)
            outcome = Outcome(
                at=at,
                by=self.by,
                dry_run=self.dry_run,
                complete=cleanup.finished,
                max_age_s=self.max_age_s,
                event=counts.event(trigger="schedule", duration_s=duration_s),
            )
            if outcome.complete or counts != CleanupCounts():
                self.report(outcome.event)
        self.history.ran(at)
        yield
        self.history.add(outcome)
        return cleanup.refused

    def _rest(self, slice_started: float) -> Iterator[None]:
        """Give the event loop its share of time after a slice."""
        now = self.monotonic()
        until = now + (now - slice_started) * _FREE_FOR_ONE
        yield
        while self.monotonic() < until:
            yield


def celery_schedule(value: Any, app: Any) -> Schedule:
    """A schedule of Celery's, or a number of seconds, as a :class:`Schedule`."""
    from datetime import datetime, timezone

    from celery.schedules import maybe_schedule

    schedule = maybe_schedule(value, app=app)

    def ask(last_run_at: float) -> tuple[bool, float]:
        due, wait_s = schedule.is_due(datetime.fromtimestamp(last_run_at, timezone.utc))
        return bool(due), float(wait_s)

    return ask


def spread(schedule: Schedule, *, monotonic: Callable[[], float], share: float) -> Schedule:
    """The schedule, with each run put off by a share (0 to 1) of the time until the next one.

    For dry runs, which hold no lease: without it, a whole fleet reads at once.
    """
    put_off_until: float | None = None

    def ask(last_run_at: float) -> tuple[bool, float]:
        nonlocal put_off_until
        due, wait_s = schedule(last_run_at)
        if not due:
            put_off_until = None
            return False, wait_s
        now = monotonic()
        if put_off_until is None:
            put_off_until = now + share * min(_LONGEST_PUT_OFF_S, wait_s / 2)
        left_s = put_off_until - now
        return (False, left_s) if left_s > 0 else (True, wait_s)

    return ask
