"""One round of the watchdog, and one of the recycler, with hand-written processes and pools."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from worker_guard.events import (
    ChildOverLimit,
    ChildRecycled,
    ChildRecycleRequested,
    ChildRecycleWaiting,
    Event,
    MemorySampled,
    ParentOverLimit,
    PartFailed,
    RecyclingSuspended,
)
from worker_guard.memory.part import Acting
from worker_guard.memory.policy import ChildPolicy, Reading, Relative
from worker_guard.memory.recycler import (
    FOLLOW_S,
    IDLE_S,
    LONGEST_START_S,
    LOOK_S,
    SETTLE_S,
    WAITING_S,
    Recycler,
)
from worker_guard.memory.roster import Roster
from worker_guard.memory.start_watch import IDLE_S as STARTS_IDLE_S
from worker_guard.memory.start_watch import STARTING_S, StartWatch
from worker_guard.memory.suspension import Start
from worker_guard.memory.watchdog import Child, MemoryActor, MemoryDryRun, MemoryWatchdog, Task
from worker_guard.scheduler import SLICE_S, run_to_end

LIMIT = 1000
PARENT = 1


@dataclass(frozen=True)
class FakeChild:
    pid: int
    slot: int
    up: bool = True


@dataclass(frozen=True)
class FakeTask:
    task_id: str
    task_name: str


@dataclass
class Machine:
    """The processes of a machine, a pool of some of them, and a clock. Reading takes time."""

    used: dict[int, int] = field(default_factory=lambda: {PARENT: 100})
    pool: list[FakeChild] = field(default_factory=list)
    tasks: dict[int, FakeTask] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)
    now: float = 0.0
    reading_s: float = 0.0
    metric: str = "uss"
    processes: int = 0
    log: list[tuple[str, int]] = field(default_factory=list)
    unaskable: set[int] = field(default_factory=set)
    killed: set[int] = field(default_factory=set)
    ages_s: dict[int, float] = field(default_factory=dict)
    started: dict[int, set[Relative]] = field(default_factory=dict)
    configured_s: float | None = None
    timeout_s: float | None = None
    failed_to_start: set[object] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    failing: set[object] = field(default_factory=set)

    def monotonic(self) -> float:
        return self.now

    # -- as a reader

    def read(self, pid: int, limit_bytes: int | None) -> Reading | None:
        if ("read", pid) in self.failing:
            raise PermissionError("not yours")
        self.now += self.reading_s
        used_bytes = self.used.get(pid)
        if used_bytes is None:
            return None
        return Reading(pid=pid, rss_bytes=used_bytes, used_bytes=used_bytes, metric=self.metric)

    def steps(self, pid: int, limit_bytes: int | None) -> Generator[None, None, Reading | None]:
        yield
        return self.read(pid, limit_bytes)

    def survey(self) -> Iterator[None]:
        yield

    def read_exactly(self, pid: int) -> Reading | None:
        return self.read(pid, 0)

    def read_rss(self, pid: int) -> Reading | None:
        return self.read(pid, None)

    def relatives(self, pid: int) -> set[Relative]:
        return self.started.get(pid, set())

    def living(self, relatives: Iterable[Relative]) -> list[Relative]:
        return [each for each in relatives if each.pid in self.used]

    def age_s(self, pid: int) -> float | None:
        return self.ages_s.get(pid, 0.0)

    def forget(self, pid: int) -> None:
        self.log.append(("forget", pid))

    # -- as the children of a pool

    def listed(self) -> Sequence[Child]:
        return list(self.pool)

    def running(self) -> Mapping[int, Task]:
        if "running" in self.failing:
            raise OSError("no list of tasks")
        return self.tasks

    def is_busy(self, pid: int) -> bool:
        return pid in self.tasks or pid in self.busy

    def size(self) -> int:
        return self.processes

    def ask_to_leave(self, pid: int) -> bool:
        if pid in self.failing:
            raise OSError("no sentinel")
        if pid in self.unaskable:
            return False
        self.asked.add(pid)
        return True

    def wake(self, pid: int) -> None:
        if ("wake", pid) in self.failing:
            raise OSError("no pipe")
        self.log.append(("wake", pid))

    def maintain(self) -> None:
        self.log.append(("maintain", 0))

    def has_left(self, pid: int) -> bool:
        return all(child.pid != pid for child in self.pool)

    def left_by_itself(self, pid: int) -> bool:
        return pid not in self.killed

    # -- as how its children start

    def allow(self, timeout_s: float) -> None:
        if self.timeout_s is not None:
            self.timeout_s = max(self.timeout_s, timeout_s)

    def restore(self) -> None:
        self.timeout_s = self.configured_s

    def follow(self, pid: int) -> object:
        return pid

    def failed(self, followed: object) -> bool:
        return followed in self.failed_to_start

    # -- what happens on it

    def fork(self, pid: int, slot: int, used_bytes: int, *, up: bool = True) -> FakeChild:
        child = FakeChild(pid, slot, up)
        self.pool.append(child)
        self.processes = max(self.processes, len(self.pool))
        self.used[pid] = used_bytes
        return child

    def end(self, pid: int) -> None:
        self.pool = [child for child in self.pool if child.pid != pid]
        del self.used[pid]


@dataclass
class Recorder:
    """An actor that writes down what it was told."""

    recycled: list[int] = field(default_factory=list)
    shut_downs: int = 0
    failing: set[int] = field(default_factory=set)

    def recycle(self, child: Child, reading: Reading) -> bool:
        if child.pid in self.failing:
            raise OSError("no pool")
        self.recycled.append(child.pid)
        return True

    def shut_down(self) -> None:
        self.shut_downs += 1


@dataclass
class Setup:
    machine: Machine
    roster: Roster
    events: list[Event]

    def told(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def new_policy() -> ChildPolicy:
    return ChildPolicy(limit_bytes=LIMIT, strikes=1, concurrency=1, min_lifetime_s=0.0)


@pytest.fixture
def setup() -> Setup:
    machine, events = Machine(), list[Event]()
    return Setup(machine, Roster(policy=new_policy(), reader=machine, report=events.append), events)


def watchdog(
    setup: Setup,
    actor: MemoryActor,
    *,
    parent_limit_bytes: int | None = None,
    parent_action: str = "log",
    strikes: int = 1,
) -> MemoryWatchdog:
    return MemoryWatchdog(
        interval_s=5.0,
        pid=PARENT,
        children=setup.machine,
        roster=setup.roster,
        reader=setup.machine,
        parent_limit_bytes=parent_limit_bytes,
        parent_action=parent_action,
        strikes=strikes,
        actor=actor,
        report=setup.events.append,
        monotonic=setup.machine.monotonic,
    )


def grown(setup: Setup, pid: int, slot: int, used_bytes: int) -> FakeChild:
    """A child that was small when it was born."""
    child = setup.machine.fork(pid, slot, 10)
    setup.roster.up(pid, setup.machine.now)
    setup.machine.used[pid] = used_bytes
    return child


def test_a_round_observes_decides_acts_and_reports(setup: Setup) -> None:
    """The whole events of one round, for a child that runs a task and one that does not."""
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
    """The child has it and has not said so: busy, and no task can be named."""
    grown(setup, 10, 0, 3000)
    setup.machine.busy.add(10)
    run_to_end(watchdog(setup, Recorder()).run())
    (requested,) = setup.told(ChildRecycleRequested)
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
    (sampled,) = setup.told(MemorySampled)
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
def test_a_round_that_fails_takes_nobodys_place(
    setup: Setup, fails: str, handed_over: list[int]
) -> None:
    """Whoever was chosen and not handed over is chosen by the next round that succeeds."""
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


def test_nothing_is_kept_of_a_child_that_left_between_two_rounds(setup: Setup) -> None:
    """Not even of the task that it began last, which is heard of only after it was forgotten."""
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
    """Another actor, the same round: nothing happens to the child, and the next gets its turn."""
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
    """Told once for each time that it is over for three readings; shut down once."""
    recorder = Recorder()
    dog = watchdog(setup, recorder, parent_limit_bytes=LIMIT, parent_action=action, strikes=3)
    for used_bytes in used:
        setup.machine.used[PARENT] = used_bytes
        run_to_end(dog.run())
    over = setup.told(ParentOverLimit)
    event = ParentOverLimit(
        used_bytes=2000, limit_bytes=LIMIT, action=action, at_start_bytes=used[0]
    )
    assert over == [event] * told
    assert recorder.shut_downs == shut_downs


def test_a_newborn_over_the_limit_suspends_and_is_told_once(setup: Setup) -> None:
    """What a child uses before its first task is the least that any child will use."""
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
        setup.roster.up(pid, 0.0)
    recorder = Recorder()
    run_to_end(watchdog(setup, recorder).run())
    assert setup.told(RecyclingSuspended) == [
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
    assert len(setup.told(RecyclingSuspended)) == suspended


def test_where_nobody_tells_of_tasks_no_child_passes_for_a_newborn(setup: Setup) -> None:
    """Else every child would, and a leak would suspend recycling."""
    setup.roster.knows_runs = False
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
    run_to_end(watchdog(setup, Recorder()).run())
    assert not setup.told(RecyclingSuspended)


@pytest.mark.parametrize(
    ("lost_mono", "has_work", "newborns"),
    [(None, False, 1), (None, True, 0), (89.0, False, 1), (91.0, False, 0)],
)
def test_a_child_that_may_have_worked_is_no_newborn(
    setup: Setup, lost_mono: float | None, has_work: bool, newborns: int
) -> None:
    """It was forked at 90, and is heard at 100; a lost connection delays what it says."""
    roster, machine = setup.roster, setup.machine
    assert roster.policy is not None
    roster.disconnected_mono, roster.has_work = lambda: lost_mono, lambda _: has_work
    for pid in (10, 11):
        machine.fork(pid, pid, 1500)
        machine.ages_s[pid] = 10.0
        roster.up(pid, 100.0)
    assert len(setup.told(RecyclingSuspended)) == newborns


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
    """Forked at 90, heard at 100, when the event loop turned; it may have been up long before."""
    roster, machine = setup.roster, setup.machine
    assert roster.policy is not None
    machine.fork(10, 0, 100)
    part = StartWatch(
        children=machine, said_more=machine.is_busy, roster=roster, monotonic=machine.monotonic
    )
    for now, spoke in looks:
        machine.now = now
        machine.busy = {10} if spoke else set()
        run_to_end(part.run())
    machine.ages_s[10] = 10.0
    roster.up(10, 100.0)
    assert roster.policy.gains.newest_start == start
    assert not roster.silent_mono
    assert not roster.spoke_mono


def test_where_births_are_heard_the_first_reading_makes_no_newborn(setup: Setup) -> None:
    """The child may not be up yet, or have worked before it was heard."""
    setup.roster.hears_births = True
    for pid in (10, 11):
        setup.machine.fork(pid, pid, 1500)
    run_to_end(watchdog(setup, Recorder()).run())
    assert not setup.told(RecyclingSuspended)


def test_looks_are_close_while_a_child_starts(setup: Setup) -> None:
    """So that the start is known well."""
    machine, roster = setup.machine, setup.roster
    part = StartWatch(
        children=machine, said_more=machine.is_busy, roster=roster, monotonic=machine.monotonic
    )
    machine.fork(10, 0, 100)
    assert part.interval_s == STARTING_S
    roster.up(10, 8.0)
    assert part.interval_s == STARTS_IDLE_S


# -- the recycler ---------------------------------------------------------------------------


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
    """The whole event; the pool is looked after meanwhile, and left alone after that."""
    machine = following.setup.machine
    assert following.recycler.interval_s == FOLLOW_S
    assert ("run_soon", 0) in machine.log
    following.look()
    machine.end(10)
    following.look()
    machine.fork(20, 0, 300, up=False)
    following.look()
    assert not following.setup.told(ChildRecycled)
    machine.pool = [FakeChild(20, 0, up=True)]
    following.look()
    assert following.setup.told(ChildRecycled) == [
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
    """It may be about to look whether it was asked; one that was busy most likely is."""
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
    """Said with growing pauses; the pool is looked after, the other leaves, places are free."""
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
    dog = watchdog(following.setup, Acting(following.recycler))
    begun = [pid for pid in rounds(dog, following, 4) if pid != 10]
    assert begun == [11, 11, 11]
    grown(following.setup, 12, 2, 2000)
    run_to_end(dog.run())
    assert policy.leaving() == {10, 12}
    machine.end(11)
    run_to_end(dog.run())
    assert not following.setup.roster.failures


def rounds(dog: MemoryWatchdog, following: Following, count: int) -> list[int]:
    """Read each five seconds; the children that were to be recycled."""
    for _ in range(count):
        run_to_end(dog.run())
        following.look(5.0)
    requested = following.setup.told(ChildRecycleRequested)
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
    """It is replaced all the same, and the next may go; Celery's own log says that it died."""
    machine = following.setup.machine
    machine.killed.add(10)
    machine.end(10)
    machine.fork(20, 0, 300)
    following.look()
    assert not following.setup.told(ChildRecycled)
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
    (recycled,) = following.setup.told(ChildRecycled)
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
    (recycled,) = following.setup.told(ChildRecycled)
    assert isinstance(recycled, ChildRecycled)
    assert recycled.replacement_pid == 20
    assert (recycled.replacement_used_bytes, recycled.freed_bytes) == (None, None)
    assert len(following.setup.told(PartFailed)) == 1
    assert not following.recycler.leaving
    assert len(following.recycled()) == 1


def test_a_task_that_goes_on_is_told_each_minute(following: Following) -> None:
    """With its name, and nothing else is done to it."""
    machine = following.setup.machine
    machine.tasks[10] = FakeTask("id-1", "app.endless")
    following.look(WAITING_S - 1)
    assert not following.setup.told(ChildRecycleWaiting)
    following.look(1)
    following.look(1)
    following.look(WAITING_S - 1)
    assert following.setup.told(ChildRecycleWaiting) == [
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
    dog = watchdog(following.setup, Acting(following.recycler))
    following.look(WAITING_S - 1)
    run_to_end(dog.run())
    assert policy.leaving() == {10}
    following.look(1)
    run_to_end(dog.run())
    assert policy.leaving() == {10, 11}
    assert following.recycler.waiting_for() == {0: "task", 1: "task"}


def test_a_replacement_that_is_not_up_is_told_each_minute(following: Following) -> None:
    """Nothing kills it where the pool waits for ever; the child's place is not free."""
    machine = following.setup.machine
    machine.end(10)
    machine.fork(20, 0, 300, up=False)
    following.look(WAITING_S)
    (waiting,) = following.setup.told(ChildRecycleWaiting)
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
    """Told once; the place among those on their way out is free, and the other one is filled."""
    machine, policy = following.setup.machine, following.setup.roster.policy
    assert policy is not None
    machine.configured_s = machine.timeout_s = policy.gains.start_timeout_s = 4.0
    machine.failed_to_start |= {20, 21, 22}
    machine.end(10)
    for pid, timeout_s in ((20, 4.0), (21, 8.0), (22, 16.0), (23, 32.0)):
        starting(following, pid)
        assert machine.timeout_s == timeout_s
        following.look(timeout_s * 0.6)
    assert following.setup.told(RecyclingSuspended) == [
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
    suspended = following.setup.told(RecyclingSuspended)
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
