"""What is known of the children beyond one reading: births, starts, newborns."""

from __future__ import annotations

import pytest

from tests.fakes.memory import (
    LIMIT,
    Recorder,
    Setup,
    new_setup,
    watchdog,
)
from worker_guard.events import (
    RecyclingSuspended,
)
from worker_guard.memory.start_watch import StartWatch
from worker_guard.memory.suspension import Start
from worker_guard.scheduler import run_to_end


@pytest.fixture
def setup() -> Setup:
    return new_setup()


def test_a_newborn_over_the_limit_suspends_and_is_reported_once(setup: Setup) -> None:
    """What a child uses before its first task is the least that any child will use."""
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
        setup.roster.up(pid, 0.0)
    recorder = Recorder()
    run_to_end(watchdog(setup, recorder).run())
    assert setup.reported(RecyclingSuspended) == [
        RecyclingSuspended(
            reason="baseline_over_limit",
            baseline_bytes=1500,
            limit_bytes=LIMIT,
            setting="worker_guard_child_memory_limit",
        )
    ]
    assert recorder.recycled == []


@pytest.mark.parametrize(("ran", "suspended"), [(False, 1), (True, 0)])
def test_where_nobody_tells_of_births_the_first_reading_of_an_unused_child_counts(
    setup: Setup, ran: bool, suspended: int
) -> None:
    """As in a pool with threads; a child that has run something is no newborn."""
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
        if ran:
            setup.roster.began.append((pid, "app.task"))
    run_to_end(watchdog(setup, Recorder()).run())
    assert len(setup.reported(RecyclingSuspended)) == suspended


def test_where_nobody_tells_of_tasks_no_child_passes_for_a_newborn(setup: Setup) -> None:
    """Else every child would, and a leak would suspend recycling."""
    setup.roster.knows_runs = False
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
    run_to_end(watchdog(setup, Recorder()).run())
    assert not setup.reported(RecyclingSuspended)


@pytest.mark.parametrize(
    ("lost_mono", "has_work", "newborns"),
    [(None, False, 1), (None, True, 0), (89.0, False, 1), (91.0, False, 0)],
)
def test_a_child_that_may_have_worked_is_no_newborn(
    setup: Setup, lost_mono: float | None, has_work: bool, newborns: int
) -> None:
    """It was forked at 90, and says at 100 that it is up; a lost connection delays that."""
    roster, machine = setup.roster, setup.machine
    assert roster.policy is not None
    roster.disconnected_mono, roster.has_work = lambda: lost_mono, lambda _: has_work
    for pid in (10, 11):
        machine.fork(pid, pid, 1500)
        machine.ages_s[pid] = 10.0
        roster.up(pid, 100.0)
    assert len(setup.reported(RecyclingSuspended)) == newborns


@pytest.mark.parametrize(
    ("looks", "start"),
    [
        ([], Start(at_least_s=0.0, at_most_s=10.0)),
        ([(91.0, False)], Start(at_least_s=1.0, at_most_s=10.0)),
        ([(91.0, False), (98.0, False)], Start(at_least_s=8.0, at_most_s=10.0)),
        ([(92.0, True), (98.0, True)], Start(at_least_s=0.0, at_most_s=2.0)),
        ([(91.0, False), (92.0, True)], Start(at_least_s=1.0, at_most_s=2.0)),
    ],
)
def test_a_start_took_as_long_as_looks_found_the_child_silent(
    setup: Setup, looks: list[tuple[float, bool]], start: Start
) -> None:
    """Forked at 90, noticed at 100, when the event loop turned; it may have been up long before."""
    roster, machine = setup.roster, setup.machine
    assert roster.policy is not None
    machine.fork(10, 0, 100)
    job = StartWatch(
        children=machine, said_more=machine.is_busy, roster=roster, monotonic=machine.monotonic
    )
    for now, spoke in looks:
        machine.now = now
        machine.busy = {10} if spoke else set()
        run_to_end(job.run())
    machine.ages_s[10] = 10.0
    roster.up(10, 100.0)
    assert roster.policy.gains.newest_start == start
    assert not roster.silent_mono
    assert not roster.spoke_mono


def test_where_births_are_heard_the_first_reading_makes_no_newborn(setup: Setup) -> None:
    """The child may not be up yet, or may have worked before it was noticed."""
    setup.roster.hears_births = True
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
    run_to_end(watchdog(setup, Recorder()).run())
    assert not setup.reported(RecyclingSuspended)
