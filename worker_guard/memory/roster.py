"""What is known of the children beyond one reading."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from worker_guard.backoff import Backoff
from worker_guard.events import Event, RecyclingResumed, RecyclingSuspended
from worker_guard.memory.policy import ChildPolicy, Reading, Relative
from worker_guard.memory.suspects import Suspects
from worker_guard.memory.suspension import Resumption, Start, Suspension


class Reader(Protocol):
    """Reads the memory of a process; None: it has ended."""

    metric: str

    def survey(self) -> Iterator[None]:
        """Find out which process started which; called before the readings of a run."""

    def steps(self, pid: int, limit_bytes: int | None) -> Generator[None, None, Reading | None]:
        """Exact only if RSS is over the limit; a ``yield`` after each step that takes time."""

    def read(self, pid: int, limit_bytes: int | None) -> Reading | None:
        """Run :meth:`steps` at once."""

    def read_exactly(self, pid: int) -> Reading | None:
        """By the metric, whatever the RSS."""

    def read_rss(self, pid: int) -> Reading | None:
        """The RSS of this process alone."""

    def relatives(self, pid: int) -> set[Relative]:
        """The processes that this one has started, directly or not."""

    def living(self, relatives: Iterable[Relative]) -> Sequence[Relative]:
        """Those that have not ended."""

    def age_s(self, pid: int) -> float | None:
        """How long ago it was forked; None: not known."""

    def forget(self, pid: int) -> None:
        """The process has ended."""


@dataclass
class Roster:
    """What is known of the children beyond one reading, for all jobs that deal with them.

    ``began`` queues each task that a child begins, if ``knows_runs``. If ``hears_births``,
    :meth:`up` is called for each new child, and ``has_work`` says whether it has begun a task
    already. ``emptied`` holds, for each slot, the last child that was recycled there.
    ``silent_mono`` is when a starting child was last seen not to be up, ``spoke_mono`` when it was
    first seen to be. ``failures`` are those of following a child on its way out, ``unreadable``
    those of reading one.
    """

    policy: ChildPolicy | None
    reader: Reader
    report: Callable[[Event], None]
    knows_runs: bool = True
    hears_births: bool = False
    has_work: Callable[[int], bool] = lambda _: False
    disconnected_mono: Callable[[], float | None] = lambda: None
    suspects: Suspects = field(default_factory=Suspects)
    began: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=50_000))
    born_mono: dict[int, float] = field(default_factory=dict)
    heard_up: set[int] = field(default_factory=set)
    emptied: dict[int, int] = field(default_factory=dict)
    silent_mono: dict[int, float] = field(default_factory=dict)
    spoke_mono: dict[int, float] = field(default_factory=dict)
    recycles: Counter[int] = field(default_factory=Counter)
    readings: dict[int, Reading] = field(default_factory=dict)
    failures: dict[int, Backoff] = field(default_factory=dict)
    unreadable: dict[int, Backoff] = field(default_factory=dict)

    @property
    def limit_bytes(self) -> int | None:
        """The children's limit."""
        return None if self.policy is None else self.policy.limit_bytes

    def keep(self, pids: set[int]) -> None:
        """Forget all children but these and those that are followed."""
        followed = self.policy.leaving() if self.policy is not None else set()
        known = self.born_mono.keys() | self.suspects.children() | self.unreadable.keys()
        known |= self.heard_up | self.silent_mono.keys() | self.spoke_mono.keys()
        for pid in known - pids - followed:
            self.gone(pid)

    def starts(self, pid: int, now: float, *, spoke: bool) -> None:
        """A child that starts was looked at; ``spoke``: it has said that it is up."""
        if spoke:
            self.spoke_mono.setdefault(pid, now)
        else:
            self.silent_mono[pid] = now

    def up(self, pid: int, now: float, *, slot: int | None = None) -> None:
        """A child says that it is up.

        What it uses before its first task is the least that any child will use. But this comes late
        if the event loop was held: the child may have worked meanwhile.
        """
        age_s = self.reader.age_s(pid)
        start = self._start(pid, age_s, now)
        self.gone(pid)
        self.heard_up.add(pid)
        self._seen(pid, now, slot)
        if self.policy is not None:
            self.policy.gains.started(start, now)
            self.tell_changes()
        reading = self.reader.read(pid, self.limit_bytes)
        if reading is not None:
            self.suspects.read(pid, reading.rss_bytes, busy=False)
            # Checked after the reading, so that the child had begun nothing before it.
            if self._was_connected(age_s, now) and not self.has_work(pid):
                self._newborn(reading, now)
        self.tell_changes()

    def saw(self, reading: Reading, now: float, *, busy: bool, slot: int | None = None) -> None:
        """The watchdog has read a child."""
        first = reading.pid not in self.born_mono
        self._seen(reading.pid, now, slot)
        while self.began:
            pid, task = self.began.popleft()
            self.suspects.began(pid, task)
            if self.policy is not None:
                self.policy.began(pid)
        ran_nothing = self.knows_runs and not busy and self.suspects.ran_nothing(reading.pid)
        if first and ran_nothing and not self.hears_births:
            if self._was_connected(self.reader.age_s(reading.pid), now):
                self._newborn(reading, now)
            self.tell_changes()
        self.suspects.read(reading.pid, reading.rss_bytes, busy=busy)
        self.readings[reading.pid] = reading

    def tell_changes(self) -> None:
        """Report each suspension and each resumption of recycling."""
        if self.policy is not None:
            self.tell(self.policy.gains.news)

    def tell(self, news: deque[Suspension | Resumption]) -> None:
        """Report these, and take them out."""
        while news:
            change = news.popleft()
            if isinstance(change, Suspension):
                event: Event = RecyclingSuspended(
                    reason=change.reason,
                    baseline_bytes=change.baseline_bytes,
                    limit_bytes=change.limit_bytes,
                    setting=change.setting,
                )
            else:
                event = RecyclingResumed(suspended_s=round(change.suspended_s, 3))
            self.report(event)

    def gone(self, pid: int) -> None:
        """A child has left."""
        if self.policy is not None:
            self.policy.gone(pid)
        self.suspects.gone(pid)
        self.reader.forget(pid)
        self.heard_up.discard(pid)
        for known in (self.born_mono, self.silent_mono, self.spoke_mono):
            known.pop(pid, None)
        for kept in (self.readings, self.failures, self.unreadable):
            kept.pop(pid, None)

    def _seen(self, pid: int, now: float, slot: int | None) -> None:
        if pid not in self.born_mono:
            self.born_mono[pid] = now
            if self.policy is not None:
                replaces = slot is not None and self.emptied.get(slot, pid) != pid
                self.policy.born(pid, now, replaces=self.knows_runs and replaces)

    def _was_connected(self, age_s: float | None, now: float) -> bool:
        """Whether no connection was lost since a child of this age was forked."""
        lost_mono = self.disconnected_mono()
        return lost_mono is None or (age_s is not None and now - age_s > lost_mono)

    def _start(self, pid: int, age_s: float | None, now: float) -> Start:
        """How long the child took to start that says now that it is up."""
        if age_s is None:
            return Start(at_least_s=0.0, at_most_s=math.inf)
        forked_mono = now - age_s
        return Start(
            at_least_s=max(0.0, self.silent_mono.get(pid, forked_mono) - forked_mono),
            at_most_s=self.spoke_mono.get(pid, now) - forked_mono,
        )

    def _newborn(self, reading: Reading, now: float) -> None:
        if self.policy is not None and self.policy.limit_bytes is not None:
            self.policy.gains.newborn(reading.used_bytes, now)
