"""The part that reads the worker's memory and decides what is to be done about it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from worker_guard.events import (
    ChildOverLimit,
    ChildRecycleRequested,
    Event,
    MemorySampled,
    ParentOverLimit,
    ProcessMemory,
    RecyclingSuspended,
    Trigger,
)
from worker_guard.memory.policy import ChildPolicy, Reading, Strikes
from worker_guard.memory.suspects import Suspects
from worker_guard.scheduler import SLICE_S


class Child(Protocol):
    """A process of the pool."""

    @property
    def pid(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def up(self) -> bool: ...


class Task(Protocol):
    """A task that a child runs."""

    @property
    def task_id(self) -> str: ...
    @property
    def task_name(self) -> str: ...


class Children(Protocol):
    """The children of the pool, to look at."""

    def listed(self) -> Sequence[Child]:
        """Those that the pool has now."""

    def running(self) -> Mapping[int, Task]:
        """The task that each busy child runs, by process id."""

    def is_busy(self, pid: int) -> bool:
        """Whether this child was given a job that isn't known to be finished."""


class NoChildren:
    """What a pool without children has of them."""

    def listed(self) -> Sequence[Child]:
        """None."""
        return ()

    def running(self) -> Mapping[int, Task]:
        """None."""
        return {}

    def is_busy(self, pid: int) -> bool:  # noqa: ARG002
        """Nobody is."""
        return False


class Reader(Protocol):
    """Reads the memory of a process; None: it has ended."""

    metric: str

    def read(self, pid: int, limit_bytes: int | None) -> Reading | None:
        """Exact only where RSS is over the limit."""

    def read_exactly(self, pid: int) -> Reading | None:
        """By the metric, whatever the RSS."""

    def forget(self, pid: int) -> None:
        """The process has ended."""


class Actor(Protocol):
    """What changes something, or only counts what it would."""

    def recycle(self, child: Child, reading: Reading) -> bool:
        """Have this child leave and be replaced; False: it is left where it is."""

    def shut_down(self) -> None:
        """Have the worker finish its running tasks and end."""


@dataclass
class DryRun:
    """Leaves every process alone, and counts what would have been recycled."""

    count: Callable[[], None]

    def recycle(self, child: Child, reading: Reading) -> bool:  # noqa: ARG002
        """Leave this child where it is."""
        self.count()
        return False

    def shut_down(self) -> None:
        """Leave the worker running."""


@dataclass
class Roster:
    """What is known of the children beyond one reading, for all parts that deal with them.

    ``began`` takes each task that a child begins (``knows_runs``: somebody fills it).
    """

    policy: ChildPolicy | None
    reader: Reader
    report: Callable[[Event], None]
    knows_runs: bool = True
    suspects: Suspects = field(default_factory=Suspects)
    began: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=50_000))
    born_mono: dict[int, float] = field(default_factory=dict)
    recycles: Counter[int] = field(default_factory=Counter)
    readings: dict[int, Reading] = field(default_factory=dict)

    @property
    def limit_bytes(self) -> int | None:
        """The children's limit."""
        return None if self.policy is None else self.policy.limit_bytes

    def keep(self, pids: set[int]) -> None:
        """Forget the children that are not among these, but for those that are followed."""
        followed = self.policy.leaving() if self.policy is not None else set()
        for pid in (self.born_mono.keys() | self.suspects.children()) - pids - followed:
            self.gone(pid)

    def up(self, pid: int, now: float) -> None:
        """A child is up and has no task yet: what it uses now is the least that any will use."""
        self.gone(pid)
        self._seen(pid, now)
        reading = self.reader.read(pid, self.limit_bytes)
        if reading is not None:
            self.suspects.read(pid, reading.rss_bytes, busy=False)
            self._newborn(reading)

    def saw(self, reading: Reading, now: float, *, busy: bool) -> None:
        """A child was read in its turn."""
        first = reading.pid not in self.born_mono
        self._seen(reading.pid, now)
        while self.began:
            self.suspects.began(*self.began.popleft())
        ran_nothing = self.knows_runs and not busy and self.suspects.ran_nothing(reading.pid)
        if first and ran_nothing:
            self._newborn(reading)
        self.suspects.read(reading.pid, reading.rss_bytes, busy=busy)
        self.readings[reading.pid] = reading

    def gone(self, pid: int) -> None:
        """A child has left."""
        if self.policy is not None:
            self.policy.gone(pid)
        self.suspects.gone(pid)
        self.reader.forget(pid)
        self.born_mono.pop(pid, None)
        self.readings.pop(pid, None)

    def _seen(self, pid: int, now: float) -> None:
        if pid not in self.born_mono:
            self.born_mono[pid] = now
            if self.policy is not None:
                self.policy.born(pid, now)

    def _newborn(self, reading: Reading) -> None:
        suspension = self.policy and self.policy.newborn(reading.used_bytes)
        if suspension:
            self.report(
                RecyclingSuspended(
                    baseline_bytes=suspension.baseline_bytes, limit_bytes=suspension.limit_bytes
                )
            )


@dataclass(kw_only=True)
class MemoryWatchdog:
    """Reads the main process and the children, and acts on who holds too much for too long."""

    name: ClassVar[str] = "memory"

    interval_s: float
    pid: int
    children: Children
    roster: Roster
    reader: Reader
    parent_limit_bytes: int | None
    parent_action: str
    strikes: int
    actor: Actor
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    parent: Reading | None = None

    def __post_init__(self) -> None:
        limit_bytes = self.parent_limit_bytes
        self._parent_strikes = None if limit_bytes is None else Strikes(limit_bytes)
        self._parent_reported = False

    def round(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Read all processes once: observe, decide, act, report."""
        readings: list[Reading] = []
        children: dict[int, Child] = {}
        for child, reading in self._observe():
            if reading is None:
                yield
            else:
                readings.append(reading)
                children[reading.pid] = child
        self._report_sample(readings)
        self._judge_children(readings, children)
        self._judge_parent()

    def _observe(self) -> Iterator[tuple[Child, Reading | None]]:
        """Each child with its reading, and None for it where a slice's time is over."""
        listed = self.children.listed()
        self.roster.keep({child.pid for child in listed})
        self.parent = self.reader.read(self.pid, self.parent_limit_bytes)
        slice_started = self.monotonic()
        for child in listed:
            if not child.up:
                continue
            now = self.monotonic()
            if now - slice_started >= SLICE_S:
                yield child, None
                slice_started = now = self.monotonic()
            reading = self.reader.read(child.pid, self.roster.limit_bytes)
            if reading is not None:
                self.roster.saw(reading, now, busy=self.children.is_busy(child.pid))
                yield child, reading

    def _judge_children(self, readings: Sequence[Reading], children: Mapping[int, Child]) -> None:
        policy = self.roster.policy
        if policy is None:
            return
        decision = policy.judge(readings, self.monotonic())
        for reading in decision.went_over:
            self.report(
                ChildOverLimit(
                    child_pid=reading.pid,
                    metric=reading.metric,
                    used_bytes=reading.used_bytes,
                    limit_bytes=policy.limit_bytes,
                )
            )
        running = self.children.running() if decision.recycle else {}
        for reading in decision.recycle:
            task = running.get(reading.pid)
            busy = task is not None or self.children.is_busy(reading.pid)
            self.report(
                ChildRecycleRequested(
                    child_pid=reading.pid,
                    used_bytes=reading.used_bytes,
                    limit_bytes=policy.limit_bytes,
                    busy=busy,
                    task_id=task.task_id if task else None,
                    task_name=task.task_name if task else None,
                    suspects=self.roster.suspects.top(),
                )
            )
            if not self.actor.recycle(children[reading.pid], reading):
                policy.spared(reading.pid)

    def _judge_parent(self) -> None:
        strikes, parent = self._parent_strikes, self.parent
        if strikes is None or parent is None:
            return
        strikes.add(parent.used_bytes)
        self._parent_reported = self._parent_reported and strikes.over
        if strikes.count < self.strikes or self._parent_reported:
            return
        self._parent_reported = True
        self.report(
            ParentOverLimit(
                used_bytes=parent.used_bytes,
                limit_bytes=strikes.limit_bytes,
                action=self.parent_action,
            )
        )
        if self.parent_action == "shutdown":
            self.actor.shut_down()

    def _report_sample(self, readings: Sequence[Reading]) -> None:
        if self.parent is not None:
            self.report(
                MemorySampled(parent=_process(self.parent), children=tuple(map(_process, readings)))
            )


def _process(reading: Reading) -> ProcessMemory:
    return ProcessMemory(
        pid=reading.pid, rss_bytes=reading.rss_bytes, used_bytes=reading.used_bytes
    )
