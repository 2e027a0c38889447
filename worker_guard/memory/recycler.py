"""The part that follows the children that were asked to leave, until they are replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from worker_guard.containment import Containment
from worker_guard.events import ChildRecycled, ChildRecycleWaiting, Event, PartFailed, Trigger
from worker_guard.memory.policy import Reading
from worker_guard.memory.roster import Roster
from worker_guard.memory.watchdog import Child, Children

#: Between two looks at a child on its way out. The pool itself looks each five seconds.
FOLLOW_S = 0.05

#: Between two looks where no child is on its way out: there is nothing to see.
IDLE_S = 5.0

#: How long a child is given to leave by itself before it is woken: one that has handed in its last
#: result can still be about to look at its sentinel, on a busy machine for a tenth of a second.
LOOK_S = 0.1

#: The same for one that was busy when it was asked. It leaves after its task, for which it waits
#: until its result was read: billiard's child looks each 0.1 s.
SETTLE_S = 0.5

#: Between two reports of a child that still runs its task.
WAITING_S = 60.0


class Exits(Children, Protocol):
    """How a child leaves the pool without losing its work."""

    def ask_to_leave(self, pid: int) -> bool:
        """Have it leave after the task that it runs; False: ask again."""

    def wake(self, pid: int) -> None:
        """Have an idle one notice that it was asked."""

    def maintain(self) -> None:
        """Have the pool replace who has left."""

    def has_left(self, pid: int) -> bool:
        """Whether one that was asked is no more in the pool."""

    def left_by_itself(self, pid: int) -> bool:
        """Whether it left as it was asked to; else something killed it. Forgets it."""

    def size(self) -> int:
        """How many children the pool is to have."""


@dataclass
class _Leaving:
    child: Child
    reading: Reading
    since_mono: float
    reported_mono: float
    wake_mono: float
    asked: bool = False


@dataclass(kw_only=True)
class Recycler:
    """Has children leave one by one, each after its task, and says what came of it."""

    name: ClassVar[str] = "recycling"

    exits: Exits
    roster: Roster
    report: Callable[[Event], None]
    recycled: Callable[[], None]
    hasten: Callable[[], None]
    monotonic: Callable[[], float]
    leaving: dict[int, _Leaving] = field(default_factory=dict)

    @property
    def interval_s(self) -> float:
        """Short while a child is on its way out."""
        return FOLLOW_S if self.leaving else IDLE_S

    def begin(self, child: Child, reading: Reading) -> None:
        """Ask this child to leave, and follow it from now on."""
        now = self.monotonic()
        leaving = _Leaving(
            child, reading, since_mono=now, reported_mono=now, wake_mono=now + LOOK_S
        )
        self.leaving[child.pid] = leaving
        self.hasten()
        self._follow(leaving)

    def round(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look once after each child that is on its way out."""
        for position, leaving in enumerate(list(self.leaving.values())):
            if position:
                yield
            self._follow(leaving)
        if self.leaving:
            self.exits.maintain()  # last: it can fork, which is the pool's work, and takes its time

    def _follow(self, leaving: _Leaving) -> None:
        """Look after one child. What it raises is reported, and keeps no other one waiting."""
        now = self.monotonic()
        failures = self.roster.failures.get(leaving.child.pid)
        if failures is not None and not failures.ready(now):
            return
        try:
            self._look_after(leaving)
        except Exception as exc:  # noqa: BLE001 - reported, and tried again later
            self._failed(leaving, exc, now)
        else:
            self.roster.failures.pop(leaving.child.pid, None)

    def _look_after(self, leaving: _Leaving) -> None:
        pid = leaving.child.pid
        if leaving.asked and self.exits.has_left(pid):
            self._replaced(leaving)
        elif not leaving.asked and not self._listed(pid):
            self._forget(pid)  # it ended before it could be asked
        else:
            self._ask(leaving)
            self._tell_that_it_waits(leaving)

    def _failed(self, leaving: _Leaving, error: Exception, now: float) -> None:
        pid, policy = leaving.child.pid, self.roster.policy
        failures = self.roster.failures.setdefault(
            pid, Containment(self.name, first_pause_s=IDLE_S, report=self.report)
        )
        pause_s = failures.failed(error, now)
        if not leaving.asked and policy is not None:
            self.leaving.pop(pid, None)
            policy.put_back(pid, not_before_mono=now + pause_s)

    def _ask(self, leaving: _Leaving) -> None:
        pid = leaving.child.pid
        now = self.monotonic()
        if self.exits.is_busy(pid):
            leaving.wake_mono = now + SETTLE_S
        leaving.asked = leaving.asked or self.exits.ask_to_leave(pid)
        if leaving.asked and now >= leaving.wake_mono:
            self.exits.wake(pid)

    def _listed(self, pid: int) -> bool:
        return any(child.pid == pid for child in self.exits.listed())

    def _replaced(self, leaving: _Leaving) -> None:
        """Report the child that has left, if its replacement is up."""
        listed = self.exits.listed()
        replacement = next((c for c in listed if c.slot == leaving.child.slot), None)
        if replacement is None and len(listed) < self.exits.size():
            return  # still to be made
        used_bytes: int | None = None
        freed_bytes: int | None = leaving.reading.used_bytes
        if replacement is not None:
            if not replacement.up:
                return
            try:
                reading = self.roster.reader.read_exactly(replacement.pid)
            except Exception as exc:  # noqa: BLE001 - reported; nobody waits for its figure
                self._unread(exc)
                freed_bytes = None
            else:
                if reading is None:
                    return  # it has ended, and is to be replaced itself
                used_bytes = reading.used_bytes
                freed_bytes = leaving.reading.used_bytes - used_bytes
        if self.exits.left_by_itself(leaving.child.pid):
            self.roster.recycles[leaving.child.slot] += 1
            self.recycled()
            self.report(
                ChildRecycled(
                    child_pid=leaving.child.pid,
                    replacement_pid=None if replacement is None else replacement.pid,
                    waited_s=round(self.monotonic() - leaving.since_mono, 3),
                    used_bytes=leaving.reading.used_bytes,
                    replacement_used_bytes=used_bytes,
                    freed_bytes=freed_bytes,
                )
            )
        self._forget(leaving.child.pid)

    def _unread(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self.report(PartFailed(part=self.name, error=text, consecutive_failures=1, retry_in_s=0.0))

    def _forget(self, pid: int) -> None:
        self.leaving.pop(pid, None)
        if not self._listed(pid):
            self.roster.gone(pid)

    def _tell_that_it_waits(self, leaving: _Leaving) -> None:
        now = self.monotonic()
        if now - leaving.reported_mono < WAITING_S:
            return
        leaving.reported_mono = now
        task = self.exits.running().get(leaving.child.pid)
        self.report(
            ChildRecycleWaiting(
                child_pid=leaving.child.pid,
                waited_s=round(now - leaving.since_mono, 3),
                task_id=task.task_id if task else None,
                task_name=task.task_name if task else None,
            )
        )
