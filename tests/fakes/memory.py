"""A machine with the processes of a worker, and those that act on them, written by hand."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worker_guard.events import (
    Event,
)
from worker_guard.memory.policy import ChildPolicy, Reading, Relative
from worker_guard.memory.roster import Roster
from worker_guard.memory.watchdog import Child, MemoryActor, MemoryWatchdog, Task

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
            raise OSError("no exit event")
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
    """An actor that records what it is asked to do."""

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

    def reported(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def new_policy() -> ChildPolicy:
    return ChildPolicy(limit_bytes=LIMIT, strikes=1, concurrency=1, min_lifetime_s=0.0)


def new_setup() -> Setup:
    """A machine with nothing on it but the main process, and a roster with a limit."""
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
