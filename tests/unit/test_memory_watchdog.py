"""One run of the watchdog: observe, decide, act, report."""

from __future__ import annotations

import pytest

from tests.fakes.memory import (
    LIMIT,
    PARENT,
    FakeTask,
    Recorder,
    Setup,
    grown,
    new_policy,
    new_setup,
    watchdog,
)
from worker_guard.events import (
    ChildOverLimit,
    ChildRecycleRequested,
    Event,
    MemorySampled,
    ParentOverLimit,
    PartFailed,
)
from worker_guard.memory.watchdog import MemoryDryRun
from worker_guard.scheduler import SLICE_S, run_to_end


@pytest.fixture
def setup() -> Setup:
    return new_setup()


def test_a_run_observes_decides_acts_and_reports(setup: Setup) -> None:
    """The whole events of one run, for a child that runs a task and one that does not."""
    recorder = Recorder()
    grown(setup, 10, 0, 400)
    grown(setup, 11, 1, 3000)
    setup.machine.tasks[11] = FakeTask("id-1", "app.leak")
    setup.roster.began.append((11, "app.leak"))
    run_to_end(watchdog(setup, recorder).run())
    sampled, over, requested = setup.events
    assert isinstance(sampled, MemorySampled)
    assert [child.pid for child in sampled.children] == [10, 11]
    assert over == ChildOverLimit(child_pid=11, metric="uss", used_bytes=3000, limit_bytes=LIMIT)
    assert isinstance(requested, ChildRecycleRequested)
    assert requested == ChildRecycleRequested(
        child_pid=11,
        used_bytes=3000,
        limit_bytes=LIMIT,
        busy=True,
        task_id="id-1",
        task_name="app.leak",
        suspects=requested.suspects,
    )
    assert [suspect.task for suspect in requested.suspects] == ["app.leak"]
    assert recorder.recycled == [11]


def test_a_job_in_the_pipe_makes_a_child_busy_without_a_task(setup: Setup) -> None:
    """The child has a task and has not said so: it is busy, and the task is not named."""
    grown(setup, 10, 0, 3000)
    setup.machine.busy.add(10)
    run_to_end(watchdog(setup, Recorder()).run())
    (requested,) = setup.reported(ChildRecycleRequested)
    assert isinstance(requested, ChildRecycleRequested)
    assert (requested.busy, requested.task_id, requested.task_name) == (True, None, None)


def test_no_slice_is_longer_than_its_time_and_one_reading(setup: Setup) -> None:
    """Sixteen slow readings are spread over as many turns of the event loop as they need."""
    setup.machine.reading_s = SLICE_S * 0.4
    for slot in range(16):
        grown(setup, 10 + slot, slot, 400)
    slices, last = [], setup.machine.now
    for _ in watchdog(setup, Recorder()).run():
        slices.append(setup.machine.now - last)
        last = setup.machine.now
    assert len(slices) >= 4
    assert max(slices) <= SLICE_S + 2 * setup.machine.reading_s
    (sampled,) = setup.reported(MemorySampled)
    assert isinstance(sampled, MemorySampled)
    assert len(sampled.children) == 16


def test_children_that_start_or_have_ended_are_passed_over(setup: Setup) -> None:
    """One is not up yet, one ended between the list and the reading."""
    setup.machine.fork(10, 0, 3000, up=False)
    grown(setup, 11, 1, 3000)
    del setup.machine.used[11]
    recorder = Recorder()
    run_to_end(watchdog(setup, recorder).run())
    assert recorder.recycled == []


@pytest.mark.parametrize(
    ("fails", "handed_over"), [("running", []), ("report", []), ("second", [11])]
)
def test_a_run_that_fails_takes_no_childs_place(
    setup: Setup, fails: str, handed_over: list[int]
) -> None:
    """A child that was chosen but not handed over is chosen by the next run that succeeds."""
    assert setup.roster.policy is not None
    setup.roster.policy.concurrency = 2
    grown(setup, 10, 0, 2000)
    grown(setup, 11, 1, 3000)
    recorder = Recorder()
    dog = watchdog(setup, recorder)
    if fails == "running":
        setup.machine.failing.add("running")
    elif fails == "second":
        recorder.failing.add(10)
    else:
        dog.report = refuse
    with pytest.raises(OSError, match="no "):
        run_to_end(dog.run())
    assert recorder.recycled == handed_over
    assert setup.roster.policy.leaving() == set(handed_over)
    setup.machine.failing.clear()
    recorder.failing.clear()
    dog.report = setup.events.append
    run_to_end(dog.run())
    assert recorder.recycled == [11, 10]


def refuse(event: Event) -> None:
    if isinstance(event, ChildOverLimit):
        raise OSError("no log")


def test_a_child_that_cant_be_read_leaves_no_other_unread(setup: Setup) -> None:
    """A process that made itself unreadable is reported, with growing pauses; the rest is read."""
    recorder, machine = Recorder(), setup.machine
    grown(setup, 10, 0, 400)
    grown(setup, 11, 1, 3000)
    machine.failing.add(("read", 10))
    guard = watchdog(setup, recorder)
    for _ in range(3):
        run_to_end(guard.run())
        machine.now += 5.0
    assert recorder.recycled == [11]
    failures = [event for event in setup.events if isinstance(event, PartFailed)]
    assert [(f.part, f.consecutive_failures, f.retry_in_s) for f in failures] == [
        ("memory", 1, 5.0),
        ("memory", 2, 10.0),
    ]
    machine.failing.clear()
    machine.now += 10.0
    run_to_end(guard.run())
    assert 10 in setup.roster.readings
    assert not setup.roster.unreadable


def test_nothing_is_kept_of_a_child_that_left_between_two_runs(setup: Setup) -> None:
    """Not even of the task that it began last, if that is seen after the child was forgotten."""
    grown(setup, 10, 0, 400)
    grown(setup, 11, 1, 400)
    dog = watchdog(setup, Recorder())
    run_to_end(dog.run())
    setup.roster.began.append((10, "app.last"))
    setup.machine.end(10)
    for _ in range(2):
        run_to_end(dog.run())
    roster = setup.roster
    assert not roster.began
    assert roster.suspects.children() == roster.born_mono.keys() == roster.readings.keys() == {11}
    only_11 = new_policy()
    only_11.born(11, 0.0)
    assert roster.policy is not None
    only_11.gains = roster.policy.gains
    assert roster.policy == only_11


def test_a_dry_run_counts_once_and_frees_the_place(setup: Setup) -> None:
    """Another actor, the same run: nothing happens to the child, and the next gets its turn."""
    grown(setup, 10, 0, 3000)
    grown(setup, 11, 1, 2000)
    dog = watchdog(setup, MemoryDryRun())
    for _ in range(4):
        run_to_end(dog.run())
    requested = [e.child_pid for e in setup.events if isinstance(e, ChildRecycleRequested)]
    assert requested == [10, 11]


@pytest.mark.parametrize(
    ("action", "used", "told", "shut_downs"),
    [
        ("log", [2000, 2000, 2000, 2000, 2000], 1, 0),
        ("shutdown", [2000, 2000, 2000, 2000, 2000], 1, 1),
        ("shutdown", [2000, 2000, 900, 2000, 2000], 0, 0),
        ("log", [2000, 2000, 2000, 900, 2000, 2000, 2000], 2, 0),
        ("log", [2000, 2000, 2000, 990, 2000, 2000, 2000], 1, 0),
        ("shutdown", [300, 2000, 2000, 2000], 1, 1),
    ],
)
def test_the_main_process_has_strikes_too(
    setup: Setup, action: str, used: list[int], told: int, shut_downs: int
) -> None:
    """Reported once each time that it is over for three readings; shut down once."""
    recorder = Recorder()
    dog = watchdog(setup, recorder, parent_limit_bytes=LIMIT, parent_action=action, strikes=3)
    for used_bytes in used:
        setup.machine.used[PARENT] = used_bytes
        run_to_end(dog.run())
    over = setup.reported(ParentOverLimit)
    event = ParentOverLimit(
        used_bytes=2000, limit_bytes=LIMIT, action=action, at_start_bytes=used[0]
    )
    assert over == [event] * told
    assert recorder.shut_downs == shut_downs
