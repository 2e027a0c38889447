"""When the worker's part sweeps, and how it shares the event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.harness.results import DAY_S
from worker_guard.events import CleanupCompleted, Event
from worker_guard.results.history import Outcome, PrivateHistory
from worker_guard.results.janitor import Janitor
from worker_guard.results.lease import LeaseLostError
from worker_guard.results.store import DRY_RUN, REAL, Actor, Pace, Tally
from worker_guard.revoked.sweeper import Totals


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class FakeSweep:
    """Ends after so many steps, each of which takes so long."""

    clock: Clock
    steps: int = 3
    step_s: float = 0.002
    fails_at: int = -1
    way: str = "scan-script"
    tally: Tally = field(default_factory=Tally)

    @property
    def finished(self) -> bool:
        return self.steps == 0

    def step(self) -> None:
        if self.steps == self.fails_at:
            raise ConnectionError("gone")
        self.clock.at += self.step_s
        self.steps -= 1
        self.tally += Tally(10, 2, 1, 1)


@dataclass
class FakeTarget:
    sweep: Any
    begun: list[tuple[float, Actor]] = field(default_factory=list)

    checks: int = 0

    def check(self) -> None:
        self.checks += 1

    def begin(self, *, max_age_s: float, actor: Actor, pace: Pace) -> Any:
        self.begun.append((max_age_s, actor))
        return self.sweep


class FakeLease:
    """Free or not, and lost after so many renewals."""

    def __init__(self, free: bool = True, lost_at: int = -1) -> None:
        self.free, self.lost_at, self.held, self.log = free, lost_at, False, []  # type: ignore[var-annotated]

    def take(self) -> bool:
        self.held = self.free
        self.log.append("take")
        return self.free

    def renew(self) -> None:
        if self.log.count("renew") == self.lost_at:
            raise LeaseLostError("lost")
        self.log.append("renew")

    def release(self) -> None:
        self.held = False
        self.log.append("release")


class Kept(PrivateHistory):
    """A history that a test can read."""

    def __init__(self, last_run: float) -> None:
        super().__init__()
        self._last_run = last_run
        self.outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def janitor(clock: Clock, **changes: Any) -> tuple[Janitor, list[Event], Totals]:
    """One whose schedule is due each 100 s."""
    events: list[Event] = []
    totals = Totals()

    def every_100_s(last_run_at: float) -> tuple[bool, float]:
        left = last_run_at + 100 - clock()
        return left <= 0, left if left > 0 else 100.0

    values: dict[str, Any] = {
        "longest_wait_s": 30.0,
        "max_age_s": float(DAY_S),
        "schedule": every_100_s,
        "target": FakeTarget(FakeSweep(clock)),
        "actor": REAL,
        "dry_run": False,
        "lease": FakeLease(),
        "history": Kept(clock() - 100),
        "by": "w@test",
        "totals": totals,
        "report": events.append,
        "monotonic": clock,
        "now": clock,
    }
    return Janitor(**{**values, **changes}), events, totals


def drive(part: Janitor, clock: Clock) -> int:
    """A round to its end, with the event loop's pauses; how many there were."""
    pauses = 0
    for _ in part.round():
        clock.at += 0.01
        pauses += 1
    return pauses


def test_a_sweep_that_is_due_is_done_reported_counted_and_remembered() -> None:
    """And the next one is due by the schedule, from its start."""
    clock = Clock()
    part, events, totals = janitor(clock)
    drive(part, clock)
    assert isinstance(part.target, FakeTarget)
    assert part.target.begun == [(DAY_S, REAL)]
    (event,) = events
    assert isinstance(event, CleanupCompleted)
    assert (event.trigger, event.level) == ("schedule", "info")
    assert (event.keys_scanned, event.keys_unreadable) == (30, 3)
    assert (event.expired_results_deleted, event.task_states_cleaned) == (6, 3)
    assert (totals.expired_results_deleted, totals.task_states_cleaned) == (6, 3)
    assert isinstance(part.history, Kept)
    (outcome,) = part.history.outcomes
    assert (outcome.complete, outcome.by, outcome.way) == (True, "w@test", "scan-script")
    assert drive(part, clock) == 0
    assert 0 < part.interval_s <= 30.0


def test_the_schedule_is_looked_at_in_time_and_not_too_often() -> None:
    """As soon as it is due, within the guard's interval and a second."""
    clock = Clock()
    part, _, _ = janitor(clock, history=Kept(clock() - 90))
    assert part.interval_s == 30.0
    assert drive(part, clock) == 0
    assert part.interval_s == pytest.approx(10.0)
    clock.at += 9.9
    assert drive(part, clock) == 0
    assert part.interval_s == 1.0


def test_who_does_not_get_the_lease_does_not_sweep() -> None:
    """And looks again later."""
    clock = Clock()
    part, events, _ = janitor(clock, lease=FakeLease(free=False))
    assert drive(part, clock) == 1
    assert events == []


def test_a_sweep_that_another_just_did_is_not_done_again() -> None:
    """The last run is read again under the lease."""
    clock = Clock()
    part, events, _ = janitor(clock)
    slices = part.round()
    next(slices)
    part.history.ran(clock())
    for _ in slices:
        clock.at += 0.01
    assert events == []
    assert part.lease.log[-1] == "release"  # type: ignore[attr-defined]


def test_the_event_loop_has_four_fifths_of_the_time_to_itself() -> None:
    """However long a slice takes."""
    clock = Clock()
    sweep = FakeSweep(clock, steps=50, step_s=0.02)
    part, _, _ = janitor(clock, target=FakeTarget(sweep))
    started, free_s = clock(), 0.0
    for _ in part.round():
        clock.at += 0.01
        free_s += 0.01
    assert free_s / (clock() - started) >= 0.8


def test_a_sweep_that_fails_is_reported_with_what_it_did_and_done_again() -> None:
    """The lease is left to run out: a server that hangs is not asked twice."""
    clock = Clock()
    part, events, totals = janitor(clock, target=FakeTarget(FakeSweep(clock, fails_at=1)))
    with pytest.raises(ConnectionError):
        drive(part, clock)
    assert [event.expired_results_deleted for event in events] == [4]  # type: ignore[attr-defined]
    assert totals.expired_results_deleted == 4
    assert "release" not in part.lease.log  # type: ignore[attr-defined]
    assert part.history.last_run(clock()) == 900.0
    assert part.interval_s == 30.0


def test_a_lost_lease_ends_the_sweep() -> None:
    """Before the next step."""
    clock = Clock()
    sweep = FakeSweep(clock)
    part, _, _ = janitor(clock, target=FakeTarget(sweep), lease=FakeLease(lost_at=1))
    with pytest.raises(LeaseLostError):
        drive(part, clock)
    assert sweep.steps == 2


def test_a_dry_run_is_another_actor() -> None:
    """The part is the same."""
    clock = Clock()
    part, events, _ = janitor(clock, actor=DRY_RUN, dry_run=True)
    drive(part, clock)
    assert part.target.begun == [(DAY_S, DRY_RUN)]  # type: ignore[attr-defined]
    assert len(events) == 1
    assert "PEXPIRE" not in DRY_RUN.script
    assert "UNLINK" not in DRY_RUN.script
