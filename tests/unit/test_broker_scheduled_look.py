"""When a worker looks at the broker, and how it shares the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from worker_guard.broker.look import Found
from worker_guard.broker.notes import LastLook
from worker_guard.broker.scheduled_look import ScheduledLook
from worker_guard.events import CleanupCompleted, Event, PartFailed
from worker_guard.lease import LeaseLostError
from worker_guard.scheduler import Scheduler

HOUR_S = 3600.0


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.at = 10_000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class FakeLook:
    """So many round trips, each of which takes so long."""

    clock: Clock
    trips: int = 3
    trip_s: float = 0.002
    fails_at: int = -1
    finished: bool = False
    found: Found = field(default_factory=lambda: Found(lists=3, deleted=2, unread=1))

    def run(self) -> Iterator[None]:
        for trip in range(self.trips):
            if trip == self.fails_at:
                raise ConnectionError("gone")
            self.clock.at += self.trip_s
            yield
        self.finished = True


@dataclass
class FakeBroker:
    clock: Clock
    made: list[FakeLook] = field(default_factory=list)
    next_look: Callable[[], FakeLook] | None = None

    def now(self) -> float:
        return self.clock.at

    def look(self, notes: Any, *, dry_run: bool) -> Any:
        self.made.append((self.next_look or (lambda: FakeLook(self.clock)))())
        return self.made[-1]


@dataclass
class FakeNotes:
    """When the last look was, and whose."""

    last: LastLook = field(default_factory=LastLook)

    def last_look(self) -> LastLook:
        return self.last


class FakeLease:
    """Free or not; ``taken`` is called when it is taken, before anything else."""

    def __init__(self) -> None:
        self.free, self.lost, self.held = True, False, False
        self.log: list[str] = []
        self.taken: Callable[[], None] = lambda: None

    def take(self) -> Iterator[None]:
        self.held = self.free
        self.log.append("take")
        self.taken()
        yield from ()

    def renew(self) -> Iterator[None]:
        self.log.append("renew")
        if self.lost:
            raise LeaseLostError("lost")
        yield from ()

    def release(self) -> Iterator[None]:
        self.log.append("release")
        self.held = False
        yield from ()


class Site:
    """The job, and what it works with."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.broker, self.notes, self.lease = FakeBroker(self.clock), FakeNotes(), FakeLease()
        self.reported: list[Event] = []
        self.job = ScheduledLook(
            schedule_s=HOUR_S,
            broker=self.broker,  # type: ignore[arg-type]
            notes=self.notes,  # type: ignore[arg-type]
            lease=self.lease,  # type: ignore[arg-type]
            dry_run=False,
            by="w@test",
            report=self.reported.append,
            monotonic=self.clock,
        )

    def run(self) -> list[float]:
        """Run it to its end; returns the time of each slice's end."""
        ends = []
        for _ in self.job.run():
            ends.append(self.clock.at)
            self.clock.at += 0.001
        return ends


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_first_worker_looks_at_once(site: Site) -> None:
    """No look is known."""
    site.run()
    assert [look.finished for look in site.broker.made] == [True]
    (event,) = site.reported
    assert isinstance(event, CleanupCompleted)
    assert (event.target, event.trigger, event.level) == ("broker", "schedule", "info")
    assert (event.broker_keys_cleaned, event.keys_scanned) == (2, 3)
    assert event.duration_s > 0
    assert site.lease.log[0] == "take"
    assert site.lease.log[-1] == "release"
    assert site.job.found == site.broker.made[0].found


def test_it_waits_until_a_look_is_due(site: Site) -> None:
    """Whoever looked last."""
    site.notes.last = LastLook(site.clock.at - 600, "other@test")
    site.run()
    assert site.broker.made == []
    assert site.lease.log == []
    assert site.job.interval_s == pytest.approx(HOUR_S - 600, abs=1)
    site.clock.at += HOUR_S - 600
    site.run()
    assert len(site.broker.made) == 1
    assert site.job.interval_s == HOUR_S


def test_a_look_of_the_future_is_none(site: Site) -> None:
    """A clock was wrong; it must not stop all looks until then."""
    site.notes.last = LastLook(site.clock.at + 10, "other@test")
    site.run()
    assert len(site.broker.made) == 1


def test_another_holds_the_lease(site: Site) -> None:
    """Then that one looks."""
    site.lease.free = False
    site.run()
    assert site.broker.made == []
    assert site.lease.log == ["take"]


def test_another_has_just_looked(site: Site) -> None:
    """Between the look at the notes and the lease."""

    def looked() -> None:
        site.notes.last = LastLook(site.clock.at, "other@test")

    site.lease.taken = looked
    site.run()
    assert site.broker.made == []
    assert site.lease.log == ["take", "release"]


def test_what_it_found_holds_until_another_looks(site: Site) -> None:
    """What is without an index holds for all: the worker knows it from whoever looked."""
    site.run()
    site.notes.last = LastLook(site.clock.at, "w@test", 4)
    site.run()
    assert site.job.found is not None
    site.notes.last = LastLook(site.clock.at, "cli@test", 5)
    site.run()
    assert site.job.found is None
    assert site.job.last.without_index == 5


def test_a_worker_that_starts_reads_the_notes_soon(site: Site) -> None:
    """A look can be due, and the worker may not live for half a schedule."""
    assert site.job.interval_s == 60.0
    site.run()
    assert site.job.interval_s == HOUR_S


def test_the_loop_gets_four_times_as_long(site: Site) -> None:
    """After each slice that took a millisecond; quick round trips are one slice."""
    site.broker.next_look = lambda: FakeLook(site.clock, trips=40, trip_s=0.0003)
    before = site.clock.at
    site.run()
    assert site.clock.at - before > 5 * 40 * 0.0003
    assert "renew" in site.lease.log


def test_a_lost_lease_ends_the_look(site: Site) -> None:
    """And reports what it did."""
    site.lease.lost = True
    with pytest.raises(LeaseLostError):
        site.run()
    assert [type(event) for event in site.reported] == [CleanupCompleted]
    assert site.job.found is None


def test_a_failure_gives_no_second_call_to_a_server_that_hangs(site: Site) -> None:
    """The lease runs out; what was deleted before it is reported."""
    site.broker.next_look = lambda: FakeLook(site.clock, fails_at=2)
    with pytest.raises(ConnectionError):
        site.run()
    assert "release" not in site.lease.log
    assert len(site.reported) == 1
    site.broker.next_look = lambda: FakeLook(site.clock, fails_at=0, found=Found())
    with pytest.raises(ConnectionError):
        site.run()
    assert len(site.reported) == 1


def test_pauses_after_failures_grow() -> None:
    """From half a minute on, not from an hour."""
    site = Site()
    reported: list[Event] = []
    scheduler = Scheduler(report=reported.append, monotonic=site.clock, uniform=lambda low, _: low)
    site.broker.next_look = lambda: FakeLook(site.clock, fails_at=0)
    scheduler.add(site.job)
    ticks: list[tuple[float, Callable[[], None]]] = []
    scheduler.arm(lambda delay_s, tick: ticks.append((site.clock.at + delay_s, tick)))
    while len(reported) < 3:
        at, tick = ticks.pop()
        site.clock.at = max(site.clock.at, at)
        tick()
    pauses = [event.retry_in_s for event in reported if isinstance(event, PartFailed)]
    assert pauses == [30.0, 60.0, 120.0]
