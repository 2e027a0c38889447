"""The job that looks at the broker by schedule, in one worker at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from worker_guard.broker.look import Found
from worker_guard.broker.notes import LastLook, Notes
from worker_guard.broker.server import Broker
from worker_guard.events import Event, Trigger
from worker_guard.lease import Lease, SeenLease

#: For each second that a slice takes, the event loop gets this many for other work.
_FREE_FOR_ONE = 4.0

#: A slice that has taken this long makes no further round trip.
_ENOUGH_S = 0.001

#: The shortest time between two looks at the notes.
_SHORTEST_WAIT_S = 1.0

#: A worker that has started reads the notes within this time. A look can be due long since, and
#: the worker may not live for long.
_AT_START_S = 60.0


@dataclass(kw_only=True)
class ScheduledLook:
    """Looks at the broker when no worker has for ``schedule_s``.

    Each slice is one round trip to Redis, or a few quick ones. So the loop waits only once for a
    server that hangs.
    """

    name: ClassVar[str] = "broker"
    first_pause_s: ClassVar[float] = 30.0

    schedule_s: float
    broker: Broker
    notes: Notes
    lease: Lease | SeenLease
    dry_run: bool
    by: str
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    #: What the last look found if it was this worker's, and when it ended.
    found: Found | None = field(default=None, init=False)
    found_mono: float = field(default=0.0, init=False)
    #: The last look that this worker knows of, by any worker or by hand.
    last: LastLook = field(default_factory=LastLook, init=False)
    _wait_s: float | None = field(default=None, init=False)

    @property
    def interval_s(self) -> float:
        """Seconds until a look may be due."""
        return min(self.schedule_s, _AT_START_S) if self._wait_s is None else self._wait_s

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look if a look is due."""
        self._wait_s = self.schedule_s
        if not (yield from self._due()):
            return
        yield
        yield from self.lease.take()
        if not self.lease.held:
            return
        yield
        # Look again, now that nobody else can: another worker may just have finished.
        if (yield from self._due()):
            yield
            yield from self._look()
        yield
        # After a failure the lease runs out by itself: don't ask a Redis that hangs twice.
        yield from self.lease.release()

    def _due(self) -> Generator[None, None, bool]:
        self.last = last = self.notes.last_look()
        yield
        if last.at is None:
            return True
        if last.by != self.by:
            self.found = None  # another worker knows better
        left_s = last.at + self.schedule_s - self.broker.now()
        if not 0 < left_s <= self.schedule_s:
            return True
        self._wait_s = max(_SHORTEST_WAIT_S, left_s)
        return False

    def _look(self) -> Iterator[None]:
        look = self.broker.look(self.notes, dry_run=self.dry_run)
        started = self.monotonic()
        try:
            yield from self._paced(look.run())
        finally:
            # Also if it is cut short: report what it did.
            if look.finished or look.found.deleted:
                duration_s = round(self.monotonic() - started, 6)
                self.report(look.found.event(trigger="schedule", duration_s=duration_s))
        self.found, self.found_mono = look.found, self.monotonic()
        self.last = LastLook(self.broker.now(), self.by, look.found.without_index)

    def _paced(self, round_trips: Iterator[None]) -> Iterator[None]:
        """Give the event loop its share of time after each slice, and keep the lease."""
        started = self.monotonic()
        for _ in round_trips:
            now = self.monotonic()
            if now - started < _ENOUGH_S:
                continue
            until = now + (now - started) * _FREE_FOR_ONE
            yield
            while self.monotonic() < until:
                yield
            yield from self.lease.renew()
            started = self.monotonic()
