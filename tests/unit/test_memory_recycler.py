"""A child on its way out is followed until it is replaced."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from tests.fakes.memory import (
    LIMIT,
    FakeChild,
    FakeTask,
    Setup,
    grown,
    new_setup,
    watchdog,
)
from worker_guard.events import (
    ChildRecycled,
    ChildRecycleRequested,
    ChildRecycleWaiting,
    PartFailed,
    RecyclingSuspended,
)
from worker_guard.memory.part import Acting
from worker_guard.memory.policy import Reading, Relative
from worker_guard.memory.recycler import (
    FOLLOW_S,
    IDLE_S,
    LONGEST_START_S,
    LOOK_S,
    SETTLE_S,
    WAITING_S,
    Recycler,
)
from worker_guard.memory.suspension import Start
from worker_guard.memory.watchdog import MemoryWatchdog
from worker_guard.scheduler import run_to_end


@pytest.fixture
def setup() -> Setup:
    return new_setup()


@dataclass
class Following:
    setup: Setup
    recycler: Recycler

    def recycled(self) -> list[ChildRecycled]:
        return [event for event in self.setup.events if isinstance(event, ChildRecycled)]

    def look(self, after_s: float = FOLLOW_S) -> None:
        self.setup.machine.now += after_s
        run_to_end(self.recycler.run())


@pytest.fixture
def following(setup: Setup) -> Following:
    """A child with 3000 bytes in slot 0 that was just asked to leave."""
    recycler = Recycler(
        exits=setup.machine,
        starts=setup.machine,
        roster=setup.roster,
        report=setup.events.append,
        run_soon=lambda: setup.machine.log.append(("run_soon", 0)),
        monotonic=setup.machine.monotonic,
    )
    child = grown(setup, 10, 0, 3000)
    assert setup.roster.policy is not None
    decision = setup.roster.policy.judge(
        [Reading(pid=10, rss_bytes=3000, used_bytes=3000, metric="uss")], 0.0
    )
    recycler.begin(child, decision.recycle[0])
    return Following(setup, recycler)


def test_a_child_is_followed_until_its_replacement_is_up(following: Following) -> None:
    """The whole event; the pool is maintained meanwhile, and left alone after that."""
    machine = following.setup.machine
    assert following.recycler.interval_s == FOLLOW_S
    assert ("run_soon", 0) in machine.log
    following.look()
    machine.end(10)
    following.look()
    machine.fork(20, 0, 300, up=False)
    following.look()
    assert not following.setup.reported(ChildRecycled)
    machine.pool = [FakeChild(20, 0, up=True)]
    following.look()
    assert following.setup.reported(ChildRecycled) == [
        ChildRecycled(
            child_pid=10,
            replacement_pid=20,
            waited_s=round(4 * FOLLOW_S, 3),
            used_bytes=3000,
            replacement_used_bytes=300,
            freed_bytes=2700,
        )
    ]
    assert len(following.recycled()) == 1
    assert following.recycler.interval_s == IDLE_S
    machine.log.clear()
    following.look()
    assert machine.log == []


def test_a_child_that_cant_be_asked_now_is_asked_again(following: Following) -> None:
    """Its event's lock was taken: no waiting for it, and no waking before it was asked."""
    machine = following.setup.machine
    machine.asked.clear()
    machine.unaskable.add(11)
    child = grown(following.setup, 11, 1, 3000)
    machine.log.clear()
    following.recycler.begin(child, Reading(pid=11, rss_bytes=3000, used_bytes=3000, metric="uss"))
    following.look()
    assert ("wake", 11) not in machine.log
    machine.unaskable.clear()
    following.look()
    assert 11 in machine.asked
    assert ("wake", 11) in machine.log


@pytest.mark.parametrize(("busy", "settles_s"), [(False, LOOK_S), (True, SETTLE_S)])
def test_a_child_is_left_to_itself_before_it_is_woken(
    following: Following, busy: bool, settles_s: float
) -> None:
    """It may be about to check its exit event; one that was busy most likely is."""
    machine = following.setup.machine
    child = grown(following.setup, 11, 1, 3000)
    if busy:
        machine.busy.add(11)
    following.recycler.begin(child, Reading(pid=11, rss_bytes=3000, used_bytes=3000, metric="uss"))
    if busy:
        following.look(60.0)
    machine.busy.clear()
    following.look(0.9 * settles_s)
    assert ("wake", 11) not in machine.log
    following.look(0.2 * settles_s)
    assert ("wake", 11) in machine.log


def test_a_child_that_raises_holds_no_other_up(following: Following) -> None:
    """Reported with growing pauses; meanwhile the other child leaves, and places are free."""
    machine, policy = following.setup.machine, following.setup.roster.policy
    assert policy is not None
    policy.concurrency = 2
    machine.failing.add(("wake", 10))
    machine.log.clear()
    child = grown(following.setup, 11, 1, 3000)
    following.recycler.begin(child, Reading(pid=11, rss_bytes=3000, used_bytes=3000, metric="uss"))
    following.look()
    assert ("maintain", 0) in machine.log
    machine.end(11)
    machine.fork(21, 1, 300)
    following.look()
    assert [e.child_pid for e in following.recycled()] == [11]
    for _ in range(10):
        following.look(IDLE_S)
    assert [
        (e.part, e.consecutive_failures, e.retry_in_s)
        for e in following.setup.events
        if isinstance(e, PartFailed)
    ] == [("recycling", n, IDLE_S * 2 ** (n - 1)) for n in (1, 2, 3, 4)]
    machine.failing.clear()
    following.look(IDLE_S * 8)
    machine.end(10)
    machine.fork(20, 0, 300)
    following.look()
    assert [e.child_pid for e in following.recycled()] == [11, 10]
    assert not policy.leaving()
    assert not following.setup.roster.failures


def test_a_child_that_cant_be_asked_at_all_gives_its_place_to_another(following: Following) -> None:
    """It raises, and is chosen again after its pause; what is known of that goes with it."""
    machine, policy = following.setup.machine, following.setup.roster.policy
    assert policy is not None
    policy.concurrency = 2
    machine.failing.add(11)
    grown(following.setup, 11, 1, 3000)
    dog = watchdog(following.setup, Acting(None, following.recycler))
    begun = [pid for pid in run_in_turn(dog, following, 4) if pid != 10]
    assert begun == [11, 11, 11]
    grown(following.setup, 12, 2, 2000)
    run_to_end(dog.run())
    assert policy.leaving() == {10, 12}
    machine.end(11)
    run_to_end(dog.run())
    assert not following.setup.roster.failures


def run_in_turn(dog: MemoryWatchdog, following: Following, count: int) -> list[int]:
    """Read each five seconds; the children that were to be recycled."""
    for _ in range(count):
        run_to_end(dog.run())
        following.look(5.0)
    requested = following.setup.reported(ChildRecycleRequested)
    return [event.child_pid for event in requested if isinstance(event, ChildRecycleRequested)]


def test_a_child_that_ends_before_it_could_be_asked_is_forgotten(following: Following) -> None:
    """It went by itself: no recycle, and its place is free."""
    machine = following.setup.machine
    machine.unaskable.add(11)
    child = grown(following.setup, 11, 1, 3000)
    following.recycler.begin(child, Reading(pid=11, rss_bytes=3000, used_bytes=3000, metric="uss"))
    machine.end(11)
    following.look()
    assert set(following.recycler.leaving) == {10}
    assert not following.recycled()


def test_a_child_that_was_killed_is_no_recycle(following: Following) -> None:
    """It is replaced anyway, and the next may leave; Celery's own log says that it died."""
    machine = following.setup.machine
    machine.killed.add(10)
    machine.end(10)
    machine.fork(20, 0, 300)
    following.look()
    assert not following.setup.reported(ChildRecycled)
    assert not following.recycled()
    assert not following.recycler.leaving
    assert following.setup.roster.policy is not None
    assert not following.setup.roster.policy.leaving()


def test_a_child_whose_place_is_gone_has_no_replacement(following: Following) -> None:
    """The pool was made smaller while the child was on its way out."""
    machine = following.setup.machine
    machine.end(10)
    machine.processes = 0
    following.look()
    (recycled,) = following.setup.reported(ChildRecycled)
    assert isinstance(recycled, ChildRecycled)
    assert (recycled.replacement_pid, recycled.replacement_used_bytes) == (None, None)
    assert recycled.freed_bytes == 3000


def test_a_replacement_that_cant_be_read_keeps_no_place(following: Following) -> None:
    """Its figures are not known, and are not made up; the next child can leave."""
    machine = following.setup.machine
    machine.end(10)
    machine.fork(20, 0, 300)
    machine.failing.add(("read", 20))
    following.look()
    (recycled,) = following.setup.reported(ChildRecycled)
    assert isinstance(recycled, ChildRecycled)
    assert recycled.replacement_pid == 20
    assert (recycled.replacement_used_bytes, recycled.freed_bytes) == (None, None)
    assert len(following.setup.reported(PartFailed)) == 1
    assert not following.recycler.leaving
    assert len(following.recycled()) == 1


def test_a_task_that_goes_on_is_reported_each_minute(following: Following) -> None:
    """With its name, and nothing else is done to it."""
    machine = following.setup.machine
    machine.tasks[10] = FakeTask("id-1", "app.endless")
    following.look(WAITING_S - 1)
    assert not following.setup.reported(ChildRecycleWaiting)
    following.look(1)
    following.look(1)
    following.look(WAITING_S - 1)
    assert following.setup.reported(ChildRecycleWaiting) == [
        ChildRecycleWaiting(
            child_pid=10, waited_s=waited_s, for_="task", task_id="id-1", task_name="app.endless"
        )
        for waited_s in (WAITING_S, 2 * WAITING_S)
    ]


def test_one_that_waits_for_long_no_longer_keeps_a_place(following: Following) -> None:
    """It is still followed, and another one may leave."""
    machine, policy = following.setup.machine, following.setup.roster.policy
    assert policy is not None
    machine.tasks[10] = FakeTask("id-1", "app.endless")
    grown(following.setup, 11, 1, 3000)
    dog = watchdog(following.setup, Acting(None, following.recycler))
    following.look(WAITING_S - 1)
    run_to_end(dog.run())
    assert policy.leaving() == {10}
    following.look(1)
    run_to_end(dog.run())
    assert policy.leaving() == {10, 11}
    assert following.recycler.waiting_for() == {0: "task", 1: "task"}


def test_a_replacement_that_is_not_up_is_reported_each_minute(following: Following) -> None:
    """Nothing kills it if the pool waits for ever; the child's place is not free."""
    machine = following.setup.machine
    machine.end(10)
    machine.fork(20, 0, 300, up=False)
    following.look(WAITING_S)
    (waiting,) = following.setup.reported(ChildRecycleWaiting)
    assert waiting == ChildRecycleWaiting(
        child_pid=10, waited_s=WAITING_S, for_="replacement", task_id=None, task_name=None
    )
    assert following.recycler.waiting_for() == {0: "replacement"}
    assert following.setup.roster.policy is not None
    assert following.setup.roster.policy.leaving() == {10}


def starting(following: Following, pid: int) -> None:
    """The next replacement in place 0 is forked."""
    machine = following.setup.machine
    machine.pool = []
    machine.fork(pid, 0, 300, up=False)
    following.look()


def test_each_replacement_that_is_killed_before_it_is_up_gives_the_next_one_longer(
    following: Following,
) -> None:
    """Reported once; another child may leave, and the empty place is filled."""
    machine, policy = following.setup.machine, following.setup.roster.policy
    assert policy is not None
    machine.configured_s = machine.timeout_s = policy.gains.start_timeout_s = 4.0
    machine.failed_to_start |= {20, 21, 22}
    machine.end(10)
    for pid, timeout_s in ((20, 4.0), (21, 8.0), (22, 16.0), (23, 32.0)):
        starting(following, pid)
        assert machine.timeout_s == timeout_s
        following.look(timeout_s * 0.6)
    assert following.setup.reported(RecyclingSuspended) == [
        RecyclingSuspended(
            reason="replacement_not_up",
            baseline_bytes=None,
            limit_bytes=LIMIT,
            setting="worker_proc_alive_timeout",
        )
    ]
    assert not policy.leaving()
    assert set(following.recycler.leaving) == {10}
    machine.pool = [FakeChild(23, 0)]
    following.look()
    assert [event.replacement_pid for event in following.recycled()] == [23]
    assert machine.timeout_s == 4.0


def test_no_replacement_gets_longer_than_the_longest_time(following: Following) -> None:
    """One that will never be up is not waited for all day."""
    machine = following.setup.machine
    machine.configured_s = machine.timeout_s = LONGEST_START_S - 1
    machine.end(10)
    starting(following, 20)
    following.look(LONGEST_START_S * 0.6)
    assert machine.timeout_s == LONGEST_START_S


@pytest.mark.parametrize(("failed", "told"), [(True, 1), (False, 0)])
def test_a_replacement_that_ends_by_itself_is_no_matter_of_time(
    following: Following, failed: bool, told: int
) -> None:
    """Another setting would not help it; and one that the pool let go says nothing."""
    machine = following.setup.machine
    machine.configured_s = machine.timeout_s = 4.0
    machine.end(10)
    if failed:
        machine.failed_to_start.add(20)
    starting(following, 20)
    starting(following, 21)
    suspended = following.setup.reported(RecyclingSuspended)
    assert [getattr(event, "setting", "") for event in suspended] == [None] * told


@pytest.mark.parametrize(
    ("at_most_s", "timeout_s"), [(1.9, 4.0), (3.0, 6.0), (60.0, 32.0), (math.inf, 32.0)]
)
def test_a_try_after_a_slow_start_gets_its_time(
    following: Following, at_most_s: float, timeout_s: float
) -> None:
    """So that it is not killed; when the place is filled, all is as it was configured."""
    machine, policy = following.setup.machine, following.setup.roster.policy
    assert policy is not None
    machine.configured_s = machine.timeout_s = policy.gains.start_timeout_s = 4.0
    policy.gains.newest_start = Start(at_least_s=0.0, at_most_s=at_most_s)
    following.look()
    assert machine.timeout_s == timeout_s
    machine.end(10)
    machine.fork(20, 0, 300)
    following.look()
    assert machine.timeout_s == 4.0


def test_what_a_child_leaves_behind_is_named_and_was_not_freed(following: Following) -> None:
    """One of its two processes ended with it."""
    machine = following.setup.machine
    stays, goes = Relative(pid=30, started_at=1.0), Relative(pid=31, started_at=1.0)
    machine.used[30] = machine.used[31] = 500
    machine.started[11] = {stays, goes}
    child = grown(following.setup, 11, 1, 3000)
    relatives = {stays: 500, goes: 700}
    reading = Reading(pid=11, rss_bytes=3000, used_bytes=3000, metric="pss", relatives=relatives)
    following.recycler.begin(child, reading)
    machine.end(11)
    del machine.used[31]
    machine.fork(21, 1, 300)
    following.look()
    (recycled,) = following.recycled()
    assert recycled.left_pids == (30,)
    assert recycled.level == "warning"
    assert recycled.freed_bytes == 3000 - 500 - 300
