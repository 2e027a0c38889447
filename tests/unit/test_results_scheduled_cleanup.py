"""When the worker's job cleans, and how it shares the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.harness.results import DAY_S
from worker_guard.events import CleanupCompleted, Event
from worker_guard.lease import LeaseLostError
from worker_guard.results.cleanup_run import (
    DRY_RUN,
    REAL,
    CleanupCounts,
    Pace,
    ResultsActor,
)
from worker_guard.results.history import History, Outcome, PrivateHistory
from worker_guard.results.scheduled_cleanup import ScheduledCleanup, spread
from worker_guard.scheduler import Scheduler


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class FakeRun:
    """Ends after so many steps, each of which takes so long."""

    clock: Clock
    steps: int = 3
    step_s: float = 0.002
    fails_at: int = -1
    counts: CleanupCounts = field(default_factory=CleanupCounts)
    refused: Exception | None = None

    @property
    def finished(self) -> bool:
        return self.steps == 0

    def step(self) -> None:
        if self.steps == self.fails_at:
            raise ConnectionError("gone")
        self.clock.at += self.step_s
        self.steps -= 1
        self.counts += CleanupCounts(10, 2, 1, 1)


@dataclass
class FakeBackend:
    cleanup: Any
    begun: list[tuple[float, ResultsActor]] = field(default_factory=list)

    checks: int = 0

    def check(self) -> None:
        self.checks += 1

    def begin(self, *, max_age_s: float, actor: ResultsActor, pace: Pace) -> Any:
        self.begun.append((max_age_s, actor))
        return self.cleanup


class FakeLease:
    """Free or not, and lost after so many renewals."""

    def __init__(self, free: bool = True, lost_at: int = -1) -> None:
        self.free, self.lost_at, self.held, self.log = free, lost_at, False, []  # type: ignore[var-annotated]

    def take(self) -> Iterator[None]:
        self.held = self.free
        self.log.append("take")
        yield from ()

    def renew(self) -> Iterator[None]:
        if self.log.count("renew") == self.lost_at:
            raise LeaseLostError("lost")
        self.log.append("renew")
        yield from ()

    def release(self) -> Iterator[None]:
        self.held = False
        self.log.append("release")
        yield from ()


class Kept(PrivateHistory):
    """A history that a test can read."""

    def __init__(self, last_run: float) -> None:
        super().__init__()
        self._last_run = last_run
        self.outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def scheduled_cleanup(clock: Clock, **changes: Any) -> tuple[ScheduledCleanup, list[Event]]:
    """One whose schedule is due each 100 s."""
    events: list[Event] = []

    def every_100_s(last_run_at: float) -> tuple[bool, float]:
        left = last_run_at + 100 - clock()
        return left <= 0, left if left > 0 else 100.0

    values: dict[str, Any] = {
        "longest_wait_s": 30.0,
        "max_age_s": float(DAY_S),
        "schedule": every_100_s,
        "backend": FakeBackend(FakeRun(clock)),
        "actor": REAL,
        "dry_run": False,
        "lease": FakeLease(),
        "history": Kept(clock() - 100),
        "by": "w@test",
        "report": events.append,
        "monotonic": clock,
        "now": clock,
    }
    return ScheduledCleanup(**{**values, **changes}), events


def drive(job: ScheduledCleanup, clock: Clock) -> int:
    """A round to its end, with the event loop's pauses; how many there were."""
    pauses = 0
    for _ in job.run():
        clock.at += 0.01
        pauses += 1
    return pauses


def test_a_cleanup_that_is_due_is_done_reported_counted_and_remembered() -> None:
    """And the next one is due by the schedule, from its start."""
    clock = Clock()
    job, events = scheduled_cleanup(clock)
    drive(job, clock)
    assert isinstance(job.backend, FakeBackend)
    assert job.backend.begun == [(DAY_S, REAL)]
    (event,) = events
    assert isinstance(event, CleanupCompleted)
    assert (event.trigger, event.level) == ("schedule", "info")
    assert (event.keys_scanned, event.keys_unreadable) == (30, 3)
    assert (event.expired_results_deleted, event.task_states_cleaned) == (6, 3)
    assert isinstance(job.history, Kept)
    (outcome,) = job.history.outcomes
    assert (outcome.complete, outcome.by) == (True, "w@test")
    assert drive(job, clock) == 0
    assert 0 < job.interval_s <= 30.0


def test_the_schedule_is_looked_at_in_time_and_not_too_often() -> None:
    """As soon as it is due, within the guard's interval and a second."""
    clock = Clock()
    job, _ = scheduled_cleanup(clock, history=Kept(clock() - 90))
    assert job.interval_s == 30.0
    # The first look makes sure that the server can be cleaned.
    assert drive(job, clock) == 1
    assert job.interval_s == pytest.approx(10.0, abs=0.1)
    clock.at += 9.9
    assert drive(job, clock) == 0
    assert job.interval_s == 1.0


def test_where_no_run_is_known_the_count_begins() -> None:
    """At the first look, which is not a run."""
    clock = Clock()
    history = Kept(clock())
    history._last_run = None
    job, events = scheduled_cleanup(clock, history=history)
    drive(job, clock)
    assert history.last_run(clock()) == pytest.approx(clock(), abs=1.0)
    assert events == []
    clock.at += 100
    drive(job, clock)
    assert len(events) == 1


@pytest.mark.parametrize(
    ("held", "known"),
    [
        (b"900.0", 900.0),
        (b"1000", 1000.0),
        # The clocks of two hosts are never quite the same.
        (b"1200.0", 1000.0),
        (b"1301.0", None),
        (b"1e300", None),
        (b"inf", None),
        (b"nan", None),
        (b"-1", None),
        (b"yesterday", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_last_run_that_cannot_be_is_not_believed(held: bytes | None, known: float | None) -> None:
    """A clock that was wrong once would stop the cleanups for as long."""

    class Holding:
        def get(self, _key: str) -> bytes | None:
            return held

    assert History(Holding(), "worker-guard-").last_run(1000.0) == known


def test_a_dry_run_is_put_off_by_a_share_of_its_time() -> None:
    """Each time anew, at most by ten minutes and by half of the time until the next run."""
    clock = Clock()
    runs: list[float] = []

    def ask_for(period_s: float, share: float) -> float:
        started = clock.at

        def each_period(last_run_at: float) -> tuple[bool, float]:
            left = last_run_at + period_s - clock()
            return left <= 0, left if left > 0 else period_s

        put_off = spread(each_period, monotonic=clock, share=share)
        last_run = started - period_s
        due, wait_s = put_off(last_run)
        while not due:
            assert wait_s > 0
            clock.at += wait_s
            due, wait_s = put_off(last_run)
        runs.append(clock.at - started)
        last_run = clock.at
        assert put_off(last_run) == (False, period_s)
        clock.at += period_s
        assert put_off(last_run)[0] == (share == 0)
        return runs[-1]

    assert ask_for(86_400, 0.0) == 0.0
    assert ask_for(86_400, 0.5) == pytest.approx(300.0)
    assert ask_for(86_400, 1.0) == pytest.approx(600.0)
    assert ask_for(60, 1.0) == pytest.approx(30.0)


def test_who_does_not_get_the_lease_does_not_clean() -> None:
    """And looks again later."""
    clock = Clock()
    job, events = scheduled_cleanup(clock, lease=FakeLease(free=False))
    drive(job, clock)
    assert job.backend.begun == []  # type: ignore[attr-defined]
    assert events == []


def test_a_cleanup_that_another_just_did_is_not_done_again() -> None:
    """The last run is read again under the lease."""
    clock = Clock()
    job, events = scheduled_cleanup(clock)
    slices = job.run()
    while "take" not in job.lease.log:  # type: ignore[union-attr]
        next(slices)
    job.history.ran(clock())
    for _ in slices:
        clock.at += 0.01
    assert events == []
    assert job.lease.log[-1] == "release"  # type: ignore[union-attr]


def test_the_event_loop_has_four_fifths_of_the_time_to_itself() -> None:
    """However long a slice takes."""
    clock = Clock()
    cleanup = FakeRun(clock, steps=50, step_s=0.02)
    job, _ = scheduled_cleanup(clock, backend=FakeBackend(cleanup))
    started, free_s = clock(), 0.0
    for _ in job.run():
        clock.at += 0.01
        free_s += 0.01
    assert free_s / (clock() - started) >= 0.8


@pytest.mark.parametrize("step_s", [0.0001, 0.0013, 0.005, 0.4])
def test_the_scheduler_leaves_the_loop_four_fifths_of_each_stretch(step_s: float) -> None:
    """By its ticks and the pauses that it asks for, with calls that are quick or slow."""
    clock = Clock()
    job, _ = scheduled_cleanup(clock, backend=FakeBackend(FakeRun(clock, steps=300, step_s=step_s)))
    timers: list[tuple[float, Callable[[], None]]] = []
    scheduler = Scheduler(report=lambda _event: None, monotonic=clock)
    scheduler.add(job)
    scheduler.arm(lambda delay_s, tick: timers.append((delay_s, tick)))
    busy: list[float] = []
    stretches: list[tuple[float, float]] = []
    while job.backend.cleanup.steps:  # type: ignore[attr-defined]
        delay_s, tick = timers.pop()
        clock.at += delay_s
        before = clock.at
        tick()
        busy.append(clock.at - before)
        stretches.append((delay_s, busy[-1]))
    # From one slice that did something to the next.
    idle_s, worked_s = 0.0, 0.0
    for delay_s, spent_s in stretches:
        idle_s += delay_s
        if spent_s and worked_s:
            assert idle_s >= 4 * worked_s
        if spent_s:
            idle_s, worked_s = 0.0, spent_s
    assert max(busy) <= 0.001 + step_s


def test_a_cleanup_that_fails_is_reported_with_what_it_did_and_done_again() -> None:
    """The lease is left to run out: a server that hangs is not asked twice."""
    clock = Clock()
    job, events = scheduled_cleanup(clock, backend=FakeBackend(FakeRun(clock, fails_at=1)))
    with pytest.raises(ConnectionError):
        drive(job, clock)
    assert [event.expired_results_deleted for event in events] == [4]  # type: ignore[attr-defined]
    assert "release" not in job.lease.log  # type: ignore[union-attr]
    assert job.history.last_run(clock()) == 900.0
    assert job.interval_s == 30.0


def test_a_lost_lease_ends_the_cleanup() -> None:
    """Before the next step."""
    clock = Clock()
    cleanup = FakeRun(clock)
    job, _ = scheduled_cleanup(clock, backend=FakeBackend(cleanup), lease=FakeLease(lost_at=1))
    with pytest.raises(LeaseLostError):
        drive(job, clock)
    assert cleanup.steps == 2


def test_a_dry_run_is_another_actor() -> None:
    """The job is the same."""
    clock = Clock()
    job, events = scheduled_cleanup(clock, actor=DRY_RUN, dry_run=True)
    drive(job, clock)
    assert job.backend.begun == [(DAY_S, DRY_RUN)]  # type: ignore[attr-defined]
    assert len(events) == 1
    for script in (DRY_RUN.page, DRY_RUN.recheck):
        assert "PEXPIRE" not in script.source
        assert "UNLINK" not in script.source
