"""What is known of the children beyond one reading."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from worker_guard.containment import Containment
from worker_guard.events import Event, RecyclingSuspended
from worker_guard.memory.policy import ChildPolicy, Reading
from worker_guard.memory.suspects import Suspects


class Reader(Protocol):
    """Reads the memory of a process; None: it has ended."""

    metric: str

    def read(self, pid: int, limit_bytes: int | None) -> Reading | None:
        """Exact only where RSS is over the limit."""

    def read_exactly(self, pid: int) -> Reading | None:
        """By the metric, whatever the RSS."""

    def forget(self, pid: int) -> None:
        """The process has ended."""


@dataclass
class Roster:
    """What is known of the children beyond one reading, for all parts that deal with them.

    ``began`` takes each task that a child begins (``knows_runs``: somebody fills it);
    ``failures`` are those of following a child on its way out, ``unreadable`` those of reading.
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
    failures: dict[int, Containment] = field(default_factory=dict)
    unreadable: dict[int, Containment] = field(default_factory=dict)

    @property
    def limit_bytes(self) -> int | None:
        """The children's limit."""
        return None if self.policy is None else self.policy.limit_bytes

    def keep(self, pids: set[int]) -> None:
        """Forget the children that are not among these, but for those that are followed."""
        followed = self.policy.leaving() if self.policy is not None else set()
        known = self.born_mono.keys() | self.suspects.children() | self.unreadable.keys()
        for pid in known - pids - followed:
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
        for known in (self.born_mono, self.readings, self.failures, self.unreadable):
            known.pop(pid, None)

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
