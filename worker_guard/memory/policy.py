"""Which processes use too much, and which children leave. Pure: no I/O, time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from worker_guard.memory.suspension import FIRST_TASKS, Gains

#: A process that went over its limit is reported again only after it was below this share of the
#: limit, so that one that hovers around it doesn't fill the log.
REARM_SHARE = 0.95

#: More than any process uses.
_NO_LIMIT = 2**63


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A process that a child started, directly or not. Pid and start time identify it.

    ``command`` is its name, without arguments: these can hold secrets.
    """

    pid: int
    started_at: float
    command: str = field(default="", compare=False)
    rss_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The memory of one process with its ``relatives``, and how much each of these uses.

    ``used_bytes`` is measured by ``metric``. That is ``"rss"`` if only RSS was read, which is never
    below any other metric.
    """

    pid: int
    rss_bytes: int
    used_bytes: int
    metric: str
    relatives: Mapping[Relative, int] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """The process and its relatives."""
        return 1 + len(self.relatives)

    def biggest(self, most: int) -> list[tuple[Relative, int]]:
        """The relatives that use most, and how much each uses by ``metric``."""
        used = [
            (each, each.rss_bytes if self.metric == "rss" else used_bytes)
            for each, used_bytes in self.relatives.items()
        ]
        return sorted(used, key=lambda one: (-one[1], one[0].pid))[:most]


@dataclass
class Strikes:
    """How often in a row one process was read over its limit."""

    limit_bytes: int
    count: int = 0
    over: bool = False

    def add(self, used_bytes: int) -> bool:
        """Count one reading; True: the process has just gone over the limit."""
        if used_bytes <= self.limit_bytes:
            self.count = 0
            self.over = self.over and used_bytes > self.limit_bytes * REARM_SHARE
            return False
        self.count += 1
        went_over, self.over = not self.over, True
        return went_over


@dataclass(frozen=True, kw_only=True)
class MemoryDecision:
    """What follows from one run of readings: children to report, and children to recycle."""

    went_over: Sequence[Reading] = ()
    recycle: Sequence[Reading] = ()


@dataclass
class _Child:
    born_mono: float
    strikes: Strikes
    leaving: bool = False
    waiting: bool = False
    spared: bool = False
    not_before_mono: float = 0.0
    tasks: int = 0
    on_trial: bool = False


@dataclass
class ChildPolicy:
    """Decides which children are recycled, and when.

    Without a ``limit_bytes`` no child is due by itself; ``total_limit_bytes`` is then the limit of
    the worker, for which :meth:`choose` chooses. A child that was chosen counts as leaving until
    :meth:`gone`, :meth:`spared` or :meth:`put_back` is called. A ``concurrency`` of 0 chooses none.
    ``gains`` says whether recycling is worth it at all.
    """

    limit_bytes: int | None
    strikes: int
    concurrency: int
    min_lifetime_s: float
    total_limit_bytes: int | None = None
    gains: Gains = field(init=False)
    _children: dict[int, _Child] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gains = Gains(self.limit_bytes or self.total_limit_bytes or _NO_LIMIT)

    def born(self, pid: int, now: float, *, replaces: bool = False) -> None:
        """A child was seen for the first time; ``replaces``: it replaces a recycled one."""
        strikes = Strikes(self.limit_bytes or _NO_LIMIT)
        self._children[pid] = _Child(now, strikes, on_trial=replaces)

    def began(self, pid: int) -> None:
        """A child began a task."""
        if pid in self._children:
            self._children[pid].tasks += 1

    def judge(self, readings: Iterable[Reading], now: float) -> MemoryDecision:
        """Count one reading of each child, and choose the largest that are due.

        A child that was never :meth:`born`, or is :meth:`gone` since it was read, is ignored.
        """
        went_over: list[Reading] = []
        due: list[Reading] = []
        for reading in readings:
            child = self._children.get(reading.pid)
            if child is None:
                continue
            if child.strikes.add(reading.used_bytes):
                went_over.append(reading)
            child.spared = child.spared and child.strikes.over
            self.gains.read(reading.used_bytes, now)
            self._try(child, reading, now)
            if self._due(child, now):
                due.append(reading)
        due.sort(key=lambda reading: reading.used_bytes, reverse=True)
        recycle = due[: self.gains.allowed(self._free_places(), now)]
        for reading in recycle:
            self._children[reading.pid].leaving = True
            self.gains.chose(now)
        return MemoryDecision(went_over=went_over, recycle=recycle)

    def choose(self, pids: Iterable[int], now: float) -> int | None:
        """The first of these children that may leave now, for the limit of the worker; or None."""
        if self.gains.safe(self._free_places(), now) < 1:
            return None
        for pid in pids:
            child = self._children.get(pid)
            if child is not None and self._may_leave(child, now):
                child.leaving = True
                self.gains.chose(now, for_another_limit=True)
                return pid
        return None

    def tasks(self, pid: int) -> int:
        """How many tasks this child has begun, as far as is known."""
        return self._children[pid].tasks if pid in self._children else 0

    def leaving(self) -> set[int]:
        """The children that were chosen and are not gone yet."""
        return {pid for pid, child in self._children.items() if child.leaving}

    def waiting(self, pid: int) -> None:
        """A chosen child has run its task for so long that others no longer wait for it."""
        if pid in self._children:
            self._children[pid].waiting = True

    def gone(self, pid: int) -> None:
        """A child has left, for whatever reason."""
        self._children.pop(pid, None)

    def spared(self, pid: int) -> None:
        """A chosen child stays. It is chosen again only after it was below its limit."""
        child = self._children.get(pid)
        if child is not None:
            child.leaving, child.spared = False, True

    def put_back(self, pid: int, *, not_before_mono: float = 0.0) -> None:
        """A chosen child could not be asked to leave: its place is free for another.

        It can be chosen again after ``not_before_mono``.
        """
        child = self._children.get(pid)
        if child is not None:
            child.leaving, child.not_before_mono = False, not_before_mono

    def _free_places(self) -> int:
        """How many more children may be on their way out.

        Those that wait for a long task don't count, but together they make room for only one more,
        so that at most ``concurrency`` + 1 leave. One that doesn't wait is always allowed.
        """
        if self.concurrency < 1:
            return 0
        waiting = sum(child.leaving and child.waiting for child in self._children.values())
        moving = len(self.leaving()) - waiting
        allowed = min(self.concurrency, max(1, self.concurrency + 1 - waiting))
        return max(0, allowed - moving)

    def _try(self, child: _Child, reading: Reading, now: float) -> None:
        """Tell ``gains``, once, what a replacement was worth, after its first tasks."""
        if not child.on_trial:
            return
        if child.strikes.count >= self.strikes and child.tasks:
            child.on_trial = False
            self.gains.regrown(reading.used_bytes, now)
        elif not child.strikes.count and child.tasks > FIRST_TASKS:
            # More than these, since the last of them may still run.
            child.on_trial = False
            self.gains.stayed_small(now)

    def _due(self, child: _Child, now: float) -> bool:
        due = child.strikes.count >= self.strikes and not child.spared
        return due and self._may_leave(child, now)

    def _may_leave(self, child: _Child, now: float) -> bool:
        return (
            now - child.born_mono >= self.min_lifetime_s
            and now >= child.not_before_mono
            and not child.leaving
        )
