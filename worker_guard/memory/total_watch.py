"""The job that reads what a worker uses with all its processes, and acts on it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from worker_guard.events import LimitName, Trigger
from worker_guard.memory.policy import Reading
from worker_guard.memory.roster import Reader, Roster
from worker_guard.memory.total import Holding, Total, TotalPolicy
from worker_guard.memory.watchdog import Child, Children, Task
from worker_guard.scheduler import SLICE_S

#: Seconds for which a reading by PSS counts on. A child that writes to a page that it shared makes
#: PSS grow, and not RSS.
RECHECK_S = 15.0


class Request(Protocol):
    """Has a child recycled, and reports it; False: it stays."""

    def __call__(
        self,
        child: Child,
        reading: Reading,
        task: Task | None,
        limit_bytes: int,
        limit: LimitName = "child",
    ) -> bool: ...


@dataclass(frozen=True)
class _Within:
    """The last reading within the limit."""

    used_bytes: int
    rss_bytes: int
    read_mono: float


@dataclass(kw_only=True)
class TotalWatch:
    """Reads the main process with all that descend from it, and has one child leave at a time.

    ``reader`` reads them by PSS, which counts a shared page once. That takes milliseconds for a
    large process, so it does so only if the sum of their RSS, which is never less, is over the
    limit, and soon after a reading within the limit only if RSS has grown by what was left.
    ``used_bytes`` is the last reading.
    """

    name: ClassVar[str] = "total_memory"

    interval_s: float
    pid: int
    children: Children
    roster: Roster
    reader: Reader
    policy: TotalPolicy
    request: Request
    monotonic: Callable[[], float]
    used_bytes: int | None = None
    _within: _Within | None = None

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Read all processes once: observe, decide, act, report."""
        slice_started = self.monotonic()
        for _ in self._steps():
            if self.monotonic() - slice_started >= SLICE_S:
                yield
                slice_started = self.monotonic()

    def _steps(self) -> Iterator[None]:
        """One run, with a ``yield`` after each step that takes time."""
        yield from self.reader.survey()
        yield from self._look_at_replacements()
        reading = yield from self.reader.steps(self.pid, None)
        if reading is not None and not self._is_within(reading):
            reading = yield from self.reader.steps(self.pid, self.policy.limit_bytes)
        if reading is None:
            return
        if self._is_within(reading):
            self.policy.within(self.used_bytes or 0, self.monotonic())
        else:
            total, children = yield from self._total(reading)
            self._judge(total, children)
        self.roster.tell(self.policy.gains.news)

    def _is_within(self, reading: Reading) -> bool:
        """Whether the worker is within its limit, as far as this reading can tell."""
        now, limit_bytes = self.monotonic(), self.policy.limit_bytes
        self.used_bytes = reading.used_bytes
        if reading.used_bytes <= limit_bytes:
            self._within = _Within(reading.used_bytes, reading.rss_bytes, now)
            return True
        if reading.metric != "rss":
            self._within = None
        last = self._within
        if last is None or now - last.read_mono >= RECHECK_S:
            return False
        self.used_bytes = last.used_bytes + max(0, reading.rss_bytes - last.rss_bytes)
        return self.used_bytes <= limit_bytes

    def _look_at_replacements(self) -> Iterator[None]:
        """See once what each replacement holds, when it has run its first task."""
        for child in self.children.listed():
            if not child.up or not self.policy.is_on_trial(child.slot, child.pid):
                continue
            began = 0 if self.roster.policy is None else self.roster.policy.tasks(child.pid)
            if began - self.children.is_busy(child.pid) < 1:
                continue
            reading = yield from self.reader.steps(child.pid, 0)
            self.reader.forget(child.pid)  # it is read by itself only this once
            if reading is not None:
                self.policy.tried(child.slot, reading.used_bytes, self.monotonic())
            yield

    def _total(
        self, reading: Reading
    ) -> Generator[None, None, tuple[Total, dict[int, tuple[Child, Holding]]]]:
        """What each child holds, itself and the processes that it started."""
        roster = self.roster
        used = {relative.pid: used_bytes for relative, used_bytes in reading.relatives.items()}
        found: dict[int, tuple[Child, Holding]] = {}
        for child in self.children.listed():
            pid = child.pid
            if not child.up or pid not in used:
                continue
            relatives = self.reader.relatives(pid)
            yield
            busy = self.children.is_busy(pid)
            found[pid] = (
                child,
                Holding(
                    pid=pid,
                    slot=child.slot,
                    used_bytes=used[pid] + sum(used.get(each.pid, 0) for each in relatives),
                    busy=busy,
                    is_new=roster.knows_runs and not busy and roster.suspects.ran_nothing(pid),
                ),
            )
        parent = self.reader.read_rss(self.pid)
        total = Total(
            used_bytes=reading.used_bytes,
            parent_bytes=0 if parent is None else parent.used_bytes,
            children=[holding for _, holding in found.values()],
        )
        return total, found

    def _judge(self, total: Total, children: dict[int, tuple[Child, Holding]]) -> None:
        now, policy = self.monotonic(), self.roster.policy
        candidates = self.policy.candidates(total, now)
        chosen = None if policy is None else policy.choose(candidates, now)
        if policy is None or chosen is None:
            return
        handed_over = False
        try:
            child, holding = children[chosen]
            # By the metric of the children's limit, as the replacement is read.
            reading = self.roster.reader.read_exactly(chosen)
            if reading is None:
                return  # it has ended meanwhile
            task = self.children.running().get(chosen)
            handed_over = self.request(child, reading, task, self.policy.limit_bytes, "total")
            if handed_over:
                self.policy.chose(holding, now)
            else:
                self.policy.declined()
        finally:
            if not handed_over:
                # A chosen child that was not handed over would hold its place for ever.
                policy.put_back(chosen)
