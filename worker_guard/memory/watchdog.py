"""The job that reads the worker's memory, and acts on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from worker_guard.backoff import Backoff
from worker_guard.events import (
    ChildOverLimit,
    ChildRecycleRequested,
    Event,
    LimitName,
    MemorySampled,
    ParentOverLimit,
    ProcessMemory,
    Trigger,
)
from worker_guard.memory.policy import Reading, Strikes
from worker_guard.memory.roster import Reader, Roster
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
    """The children of the pool, read-only."""

    def listed(self) -> Sequence[Child]:
        """Those that the pool has now."""

    def running(self) -> Mapping[int, Task]:
        """The task that each busy child runs, by process id."""

    def is_busy(self, pid: int) -> bool:
        """Whether this child was given a job that isn't known to be finished."""


class NoChildren:
    """The children of a pool that has none."""

    def listed(self) -> Sequence[Child]:
        """None."""
        return ()

    def running(self) -> Mapping[int, Task]:
        """None."""
        return {}

    def is_busy(self, pid: int) -> bool:  # noqa: ARG002
        """Never."""
        return False


class MemoryActor(Protocol):
    """Does what the watchdog decides, or in a dry run does not."""

    def recycle(self, child: Child, reading: Reading) -> bool:
        """Have this child leave and be replaced; False: it stays."""

    def shut_down(self) -> None:
        """Have the worker finish its running tasks and end."""


class MemoryDryRun:
    """Leaves every process alone."""

    def recycle(self, child: Child, reading: Reading) -> bool:  # noqa: ARG002
        """Leave this child where it is."""
        return False

    def shut_down(self) -> None:
        """Leave the worker running."""


@dataclass(kw_only=True)
class MemoryWatchdog:
    """Reads the main process and the children, and acts on those that use too much for too long."""

    name: ClassVar[str] = "memory"

    interval_s: float
    pid: int
    children: Children
    roster: Roster
    reader: Reader
    parent_limit_bytes: int | None
    parent_action: str
    strikes: int
    actor: MemoryActor
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    parent: Reading | None = None

    def __post_init__(self) -> None:
        limit_bytes = self.parent_limit_bytes
        self._parent_strikes = None if limit_bytes is None else Strikes(limit_bytes)
        self._parent_reported = False
        self._parent_at_start_bytes: int | None = None

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Read all processes once: observe, decide, act, report."""
        slice_started = self.monotonic()
        for _ in self._steps():
            if self.monotonic() - slice_started >= SLICE_S:
                yield
                slice_started = self.monotonic()

    def _steps(self) -> Iterator[None]:
        """One run, with a ``yield`` after each step that takes time."""
        readings: list[Reading] = []
        children: dict[int, Child] = {}
        listed = self.children.listed()
        self.roster.keep({child.pid for child in listed})
        # By RSS: the main process shares what it loaded before it forked with its children, so its
        # USS is next to nothing.
        self.parent = self.reader.read_rss(self.pid)
        yield from self.reader.survey()
        for child in listed:
            if not child.up:
                continue
            yield
            reading = yield from self._read(child.pid)
            if reading is not None:
                busy = self.children.is_busy(child.pid)
                self.roster.saw(reading, self.monotonic(), busy=busy, slot=child.slot)
                readings.append(reading)
                children[child.pid] = child
        self._report_sample(readings)
        self._judge_children(readings, children)
        self.roster.tell_changes()
        self._judge_parent()

    def _read(self, pid: int) -> Generator[None, None, Reading | None]:
        """Read one child's memory. If that raises, report it; the other children are still read."""
        now = self.monotonic()
        unreadable = self.roster.unreadable.get(pid)
        if unreadable is not None and not unreadable.ready(now):
            return None
        try:
            reading = yield from self.reader.steps(pid, self.roster.limit_bytes)
        except Exception as exc:  # noqa: BLE001 - reported, and tried again later
            if unreadable is None:
                unreadable = self.roster.unreadable[pid] = Backoff(
                    self.name, first_pause_s=self.interval_s, report=self.report
                )
            unreadable.failed(exc, now)
            return None
        self.roster.unreadable.pop(pid, None)
        return reading

    def _judge_children(self, readings: Sequence[Reading], children: Mapping[int, Child]) -> None:
        policy = self.roster.policy
        if policy is None:
            return
        decision = policy.judge(readings, self.monotonic())
        chosen = deque(decision.recycle)
        try:
            for reading in decision.went_over:
                self.report(
                    ChildOverLimit(
                        child_pid=reading.pid,
                        metric=reading.metric,
                        used_bytes=reading.used_bytes,
                        limit_bytes=policy.limit_bytes or 0,
                        processes=reading.processes,
                    )
                )
            running = self.children.running() if chosen else {}
            while chosen:
                child = children[chosen[0].pid]
                limit_bytes = policy.limit_bytes or 0
                if not self.request(child, chosen[0], running.get(child.pid), limit_bytes):
                    policy.spared(child.pid)
                chosen.popleft()
        finally:
            # A chosen child that was not handed over would hold its place for ever.
            for reading in chosen:
                policy.put_back(reading.pid)

    def request(
        self,
        child: Child,
        reading: Reading,
        task: Task | None,
        limit_bytes: int,
        limit: LimitName = "child",
    ) -> bool:
        """Have a child recycled, and report it; False: it stays."""
        self.report(
            ChildRecycleRequested(
                child_pid=reading.pid,
                used_bytes=reading.used_bytes,
                limit_bytes=limit_bytes,
                limit=limit,
                busy=task is not None or self.children.is_busy(reading.pid),
                task_id=task.task_id if task else None,
                task_name=task.task_name if task else None,
                suspects=self.roster.suspects.top(),
            )
        )
        return self.actor.recycle(child, reading)

    def _judge_parent(self) -> None:
        strikes, parent = self._parent_strikes, self.parent
        if strikes is None or parent is None:
            return
        if self._parent_at_start_bytes is None:
            self._parent_at_start_bytes = parent.used_bytes
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
                at_start_bytes=self._parent_at_start_bytes,
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
