"""What happened so far, from the events that were told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_guard.activity import WINDOW_S, Activity
from worker_guard.events import (
    AlertCleared,
    AlertRaised,
    ChildKilled,
    ChildRecycled,
    ChildRecycleRequested,
    CleanupCompleted,
    Event,
    PartFailed,
    RevokedKept,
)
from worker_guard.status_model import PastCleanup, Totals

RECYCLED = ChildRecycled(
    child_pid=1,
    replacement_pid=2,
    waited_s=0.1,
    used_bytes=3,
    replacement_used_bytes=1,
    freed_bytes=2,
)
REQUESTED = ChildRecycleRequested(
    child_pid=1, used_bytes=3, limit_bytes=2, busy=False, task_id=None, task_name=None
)


KILLED = ChildKilled(
    child_pid=1, signal="SIGKILL", oom=True, task_id="id", task_name="a", used_bytes=3
)


@dataclass
class Clock:
    """Both clocks of a worker."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def activity(clock: Clock | None = None, *, dry_run: bool = False) -> Activity:
    clock = clock or Clock()
    return Activity(dry_run=dry_run, monotonic=clock, now=lambda: clock.now + 1e9)


def test_the_totals_are_those_of_the_cleanups() -> None:
    """Sweeps of the revoked set are counted, whoever began them."""
    seen = activity()
    seen.note(CleanupCompleted(revoked_tasks_cleared=2))
    seen.note(CleanupCompleted(revoked_tasks_cleared=3, trigger="control"))
    seen.note(
        CleanupCompleted(
            target="results", expired_results_deleted=5, task_states_cleaned=7, trigger="schedule"
        )
    )
    assert seen.totals == Totals(
        revoked_tasks_cleared=5, expired_results_deleted=5, task_states_cleaned=7, sweeps=2
    )
    assert seen.cleanups == {"timer": 1, "control": 1, "schedule": 1}


def test_the_last_cleanups_are_told_with_their_age() -> None:
    """The last one, the last that cleared something, and the last of the results."""
    clock = Clock()
    seen = activity(clock)
    assert seen.status() == {"totals": Totals()}
    cleared = CleanupCompleted(
        revoked_tasks_cleared=2, revoked_tasks_kept=RevokedKept(operator=1), duration_s=0.5
    )
    seen.note(cleared)
    clock.now += 30
    seen.note(CleanupCompleted(target="results", expired_results_deleted=5, trigger="schedule"))
    clock.now += 30
    seen.note(CleanupCompleted())
    told = seen.status()
    assert told["last_clearing"] == PastCleanup(
        at=1e9 + 1000,
        age_s=60.0,
        target="revoked",
        trigger="timer",
        broker_keys_cleaned=0,
        revoked_tasks_cleared=2,
        expired_results_deleted=0,
        task_states_cleaned=0,
        revoked_tasks_kept=RevokedKept(operator=1),
        keys_scanned=0,
        keys_unreadable=0,
        keys_with_longer_ttl=0,
        duration_s=0.5,
    )
    assert (told["last_results_cleanup"].age_s, told["last_cleanup"].age_s) == (30.0, 0.0)


@pytest.mark.parametrize(("dry_run", "event"), [(False, RECYCLED), (True, REQUESTED)])
def test_a_child_counts_as_recycled_once(dry_run: bool, event: Event) -> None:
    """When it was; in a dry run when it would have been."""
    seen = activity(dry_run=dry_run)
    for each in (RECYCLED, REQUESTED):
        seen.note(each)
    assert seen.totals.children_recycled == 1
    assert seen.recycled_in_last_hour(1000.0) == 1
    seen.note(event)
    assert seen.totals.children_recycled == 2


def test_failures_and_alerts_are_counted() -> None:
    """By the part and by the alert; an alert that is cleared is none that is raised."""
    seen, heard = activity(), list[Event]()
    seen.listeners.append(heard.append)
    told = [
        PartFailed(part="revoked", error="x", consecutive_failures=1, retry_in_s=1.0),
        PartFailed(part="revoked", error="x", consecutive_failures=2, retry_in_s=1.0),
        AlertRaised(alert="redis_memory", value=0.9, threshold=0.8),
        AlertCleared(alert="redis_memory", value=0.1, threshold=0.8),
    ]
    for event in told:
        seen.note(event)
    assert (seen.part_failures, seen.alerts_raised) == ({"revoked": 2}, {"redis_memory": 1})
    assert heard == told


def test_the_last_hour() -> None:
    """A recycled child counts for an hour, to some seconds."""
    clock = Clock()
    seen = activity(clock)
    assert seen.recycled_in_last_hour(5.0) == 0
    for clock.now in (100.0, 101.0, 1000.0):
        seen.note(RECYCLED)
    assert seen.recycled_in_last_hour(1000.0) == 3
    assert seen.recycled_in_last_hour(100.0 + WINDOW_S) == 3
    assert seen.recycled_in_last_hour(110.1 + WINDOW_S) == 1
    assert seen.recycled_in_last_hour(1010.1 + WINDOW_S) == 0


@given(st.lists(st.floats(0, 100), max_size=200))
def test_the_last_hour_is_exact_to_ten_seconds(gaps: list[float]) -> None:
    """No fewer than happened in the hour, no more than in the hour and ten seconds."""
    clock, times = Clock(0.0), list[float]()
    seen = activity(clock)
    for gap in gaps:
        clock.now += gap
        times.append(clock.now)
        seen.note(RECYCLED)
        counted = seen.recycled_in_last_hour(clock.now)
        assert sum(clock.now - t < WINDOW_S for t in times) <= counted
        assert counted <= sum(clock.now - t < WINDOW_S + 10 for t in times)


def test_what_is_kept_of_the_last_hour_has_a_bound() -> None:
    """However often it happens."""
    clock = Clock(0.0)
    seen = activity(clock)
    for tenths in range(10 * 7200):
        clock.now = tenths / 10
        seen.note(RECYCLED)
        if tenths % 100 == 0:
            seen.recycled_in_last_hour(clock.now)
    assert seen.recycled_in_last_hour(7200.0) >= 35_000
    assert len(seen._recycled_steps) <= 362


@pytest.mark.parametrize(("oom", "label"), [(True, "true"), (False, "false"), (None, "unknown")])
def test_a_killed_child_is_counted_and_the_last_one_kept(oom: bool | None, label: str) -> None:
    """By whether the kernel killed it for memory. In a dry run too: the worker did not do it."""
    clock = Clock()
    seen = activity(clock, dry_run=True)
    seen.note(KILLED)
    clock.now += 5
    seen.note(replace(KILLED, child_pid=2, oom=oom))
    clock.now += 2.5
    last = seen.status()["last_killed"]
    assert (last.child_pid, last.oom, last.task_id, last.age_s) == (2, oom, "id", 2.5)
    assert last.at == 1e9 + 1005
    assert seen.totals.children_killed == 2
    expected = Counter({"true": 1})
    expected[label] += 1
    assert +seen.killed == expected
    assert set(seen.killed) == {"true", "false", "unknown"}
