"""The job that follows the children that were asked to leave, until they are replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from worker_guard.backoff import Backoff
from worker_guard.events import ChildRecycled, ChildRecycleWaiting, Event, PartFailed, Trigger
from worker_guard.memory.policy import Reading, Relative
from worker_guard.memory.roster import Roster
from worker_guard.memory.watchdog import Child, Children

#: Seconds between two looks at a child on its way out. The pool itself looks every five.
FOLLOW_S = 0.05

#: Seconds between two runs if no child is on its way out.
IDLE_S = 5.0

#: Seconds between two looks at the processes that a child on its way out has started.
RELATIVES_S = 5.0

#: Seconds for a child to leave by itself before it is woken. One that has sent its last result may
#: be about to check its exit event, on a busy machine for a tenth of a second.
LOOK_S = 0.1

#: The same for one that was busy when it was asked. After its task it first waits until its result
#: was read, which billiard's child checks every 0.1 s.
SETTLE_S = 0.5

#: Seconds between two reports of a child that still runs its task, or whose replacement is not up.
#: For as long, others wait for one that runs its task.
WAITING_S = 60.0

#: If the pool kills a replacement that was not up in time, the next one gets twice as long, but no
#: longer than this.
LONGEST_START_S = 900.0

#: After a slow start, the next replacement gets twice what that took, but at most this many times
#: the configured time.
SLOW_START_TIMES = 8.0


class Exits(Children, Protocol):
    """How a child leaves the pool without losing its work."""

    def ask_to_leave(self, pid: int) -> bool:
        """Have it leave after its current task; False: ask again."""

    def wake(self, pid: int) -> None:
        """Make an idle child notice that it was asked."""

    def maintain(self) -> None:
        """Have the pool replace the children that have left."""

    def has_left(self, pid: int) -> bool:
        """Whether a child that was asked is no longer in the pool."""

    def left_by_itself(self, pid: int) -> bool:
        """Whether it left as it was asked to; else something killed it. Forgets it."""

    def size(self) -> int:
        """How many children the pool is to have."""


class Starts(Protocol):
    """How long the pool waits for a new child to be up, and what became of one that was not."""

    @property
    def configured_s(self) -> float | None:
        """``worker_proc_alive_timeout``; None: the pool waits for ever."""

    @property
    def timeout_s(self) -> float | None:
        """How long it waits for a child that is forked now."""

    def allow(self, timeout_s: float) -> None:
        """Have it wait for at least this long."""

    def restore(self) -> None:
        """Have it wait for the configured time again."""

    def follow(self, pid: int) -> object:
        """A handle by which :meth:`failed` finds this child after it has ended."""

    def failed(self, followed: Any) -> bool:
        """Whether it ended without being asked to, or was killed."""


@dataclass
class _Leaving:
    child: Child
    reading: Reading
    since_mono: float
    reported_mono: float
    wake_mono: float
    asked: bool = False
    left: bool = False
    relatives: set[Relative] = field(default_factory=set)
    relatives_mono: float = -math.inf
    replacement: _Starting | None = None


@dataclass(frozen=True, kw_only=True)
class _Starting:
    """A replacement that is not up yet; ``timeout_s`` is what the pool gives it."""

    pid: int
    since_mono: float
    timeout_s: float | None
    followed: object


@dataclass(kw_only=True)
class Recycler:
    """Has children leave, each after its task, and reports what came of it."""

    name: ClassVar[str] = "recycling"

    exits: Exits
    starts: Starts
    roster: Roster
    report: Callable[[Event], None]
    run_soon: Callable[[], None]
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
        self.roster.emptied[child.slot] = child.pid
        self.run_soon()
        self._follow(leaving)

    def waiting_for(self) -> dict[int, str]:
        """What the place of each child on its way out waits for: its task, or its replacement."""
        return {
            leaving.child.slot: "replacement" if leaving.left else "task"
            for leaving in self.leaving.values()
        }

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look once at each child that is on its way out."""
        for position, leaving in enumerate(list(self.leaving.values())):
            if position:
                yield
            self._follow(leaving)
        if self.leaving:
            self.exits.maintain()  # last, since it can fork, which takes time

    def _follow(self, leaving: _Leaving) -> None:
        """Look at one child. If that raises, report it; the other children don't wait for it."""
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
        leaving.left = leaving.left or (leaving.asked and self.exits.has_left(pid))
        if leaving.left:
            self._replaced(leaving)
        elif not leaving.asked and not self._listed(pid):
            self._forget(leaving)  # it ended before it could be asked
        else:
            self._look_for_relatives(leaving)
            self._allow_a_slow_start()
            self._ask(leaving)
        if pid in self.leaving:
            self._report_waiting(leaving)

    def _look_for_relatives(self, leaving: _Leaving) -> None:
        """Find its own processes before it leaves; not at each look, since each one is read."""
        now = self.monotonic()
        if now - leaving.relatives_mono >= RELATIVES_S:
            leaving.relatives_mono = now
            leaving.relatives |= self.roster.reader.relatives(leaving.child.pid)

    def _failed(self, leaving: _Leaving, error: Exception, now: float) -> None:
        pid, policy = leaving.child.pid, self.roster.policy
        failures = self.roster.failures.setdefault(
            pid, Backoff(self.name, first_pause_s=IDLE_S, report=self.report)
        )
        pause_s = failures.failed(error, now)
        if not leaving.asked and policy is not None:
            self._drop(pid)
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
        self._watch_start(leaving, replacement)
        if replacement is None and len(listed) < self.exits.size():
            return  # the pool has not forked it yet
        reading: Reading | None = None
        if replacement is not None:
            if not replacement.up:
                return
            try:
                reading = self.roster.reader.read_exactly(replacement.pid)
            except Exception as exc:  # noqa: BLE001 - reported; the event goes without it
                self._unread(exc)
            else:
                if reading is None:
                    return  # it has ended, and is replaced in turn
        if self.exits.left_by_itself(leaving.child.pid):
            self._report_recycled(leaving, replacement, reading)
        self._forget(leaving)

    def _report_recycled(
        self, leaving: _Leaving, replacement: Child | None, reading: Reading | None
    ) -> None:
        used = leaving.reading
        left = self.roster.reader.living(leaving.relatives | used.relatives.keys())
        freed_bytes: int | None = None
        if replacement is None or reading is not None:
            freed_bytes = used.used_bytes - sum(used.relatives.get(each, 0) for each in left)
            freed_bytes -= 0 if reading is None else reading.used_bytes
        self.roster.recycles[leaving.child.slot] += 1
        self.report(
            ChildRecycled(
                child_pid=leaving.child.pid,
                replacement_pid=None if replacement is None else replacement.pid,
                waited_s=round(self.monotonic() - leaving.since_mono, 3),
                used_bytes=used.used_bytes,
                replacement_used_bytes=None if reading is None else reading.used_bytes,
                freed_bytes=freed_bytes,
                left_pids=tuple(sorted(each.pid for each in left)),
            )
        )

    # -- a replacement that starts

    def _allow_a_slow_start(self) -> None:
        """If children start slowly, give a replacement that is tried anyway more time."""
        configured_s, policy = self.starts.configured_s, self.roster.policy
        slow_s = 0.0 if policy is None else policy.gains.slow_start_s
        if configured_s is not None and slow_s:
            self.starts.allow(min(2 * slow_s, SLOW_START_TIMES * configured_s))

    def _watch_start(self, leaving: _Leaving, replacement: Child | None) -> None:
        """Notice a replacement that ends before it is up, and give the next one more time.

        Otherwise the pool would fork and kill one after the other, and the place would stay empty.
        """
        now, starting = self.monotonic(), leaving.replacement
        if starting is not None and (replacement is None or replacement.pid != starting.pid):
            leaving.replacement = None
            self._ended_before_it_was_up(leaving, starting, now)
        if replacement is None or replacement.up:
            return
        starting = leaving.replacement
        if starting is None:
            leaving.replacement = _Starting(
                pid=replacement.pid,
                since_mono=now,
                timeout_s=self.starts.timeout_s,
                followed=self.starts.follow(replacement.pid),
            )
        elif starting.timeout_s is not None and now - starting.since_mono > starting.timeout_s / 2:
            # Now, since the pool forks the next one as soon as it has killed this one.
            self.starts.allow(min(2 * starting.timeout_s, LONGEST_START_S))

    def _ended_before_it_was_up(self, leaving: _Leaving, starting: _Starting, now: float) -> None:
        policy = self.roster.policy
        if policy is None or not self.starts.failed(starting.followed):
            return
        timeout_s = starting.timeout_s
        in_time = timeout_s is None or now - starting.since_mono < timeout_s / 2
        policy.gains.ended_before_it_was_up(leaving.child.pid, now, in_time=in_time)
        policy.gone(leaving.child.pid)  # it no longer counts for recycle_concurrency
        self.roster.tell_changes()

    # -- reports

    def _unread(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self.report(PartFailed(part=self.name, error=text, consecutive_failures=1, retry_in_s=0.0))

    def _forget(self, leaving: _Leaving) -> None:
        pid = leaving.child.pid
        self._drop(pid)
        if not self._listed(pid):
            self.roster.gone(pid)

    def _drop(self, pid: int) -> None:
        self.leaving.pop(pid, None)
        if self.roster.policy is not None:
            self.roster.policy.gains.filled(pid)
        if not any(other.left for other in self.leaving.values()):
            self.starts.restore()  # the next ones get the configured time

    def _report_waiting(self, leaving: _Leaving) -> None:
        now, pid = self.monotonic(), leaving.child.pid
        if not leaving.left and now - leaving.since_mono >= WAITING_S and self.roster.policy:
            self.roster.policy.waiting(pid)
        if now - leaving.reported_mono < WAITING_S:
            return
        leaving.reported_mono = now
        task = self.exits.running().get(pid)
        self.report(
            ChildRecycleWaiting(
                child_pid=pid,
                waited_s=round(now - leaving.since_mono, 3),
                for_="replacement" if leaving.left else "task",
                task_id=task.task_id if task else None,
                task_name=task.task_name if task else None,
            )
        )
