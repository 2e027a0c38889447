"""Who holds too much, and what is to be done about it. Pure: no I/O, time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: A process that went over its limit is said to go over again only after it was below this share
#: of it, so that one that hovers about the limit doesn't fill the log.
REARM_SHARE = 0.95

#: Recycling that was suspended goes on once a newborn child is at or below this share of the
#: limit: newborns of one worker differ by some per cent, so that others would suspend it again, and
#: a replacement that begins so near its limit gains hardly anything.
RESUME_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The memory of one process.

    ``used_bytes`` is by ``metric``. Where that is ``"rss"`` because RSS alone was read, it is no
    less than what the process uses by any other metric.
    """

    pid: int
    rss_bytes: int
    used_bytes: int
    metric: str


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
class Suspension:
    """A newborn child uses more than the limit, so that a recycle would gain nothing."""

    baseline_bytes: int
    limit_bytes: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from one round of readings: children to report, and children to recycle."""

    went_over: Sequence[Reading] = ()
    recycle: Sequence[Reading] = ()


@dataclass
class _Child:
    born_mono: float
    strikes: Strikes
    leaving: bool = False
    spared: bool = False
    not_before_mono: float = 0.0


@dataclass
class ChildPolicy:
    """Decides which children are recycled, and when.

    A child that was chosen counts as leaving until :meth:`gone`, :meth:`spared` or
    :meth:`put_back` is called. A ``concurrency`` of 0 chooses none.
    """

    limit_bytes: int
    strikes: int
    concurrency: int
    min_lifetime_s: float
    suspension: Suspension | None = None
    _children: dict[int, _Child] = field(default_factory=dict)

    def born(self, pid: int, now: float) -> None:
        """A child was seen for the first time."""
        self._children[pid] = _Child(now, Strikes(self.limit_bytes))

    def newborn(self, used_bytes: int) -> Suspension | None:
        """A child that ran nothing yet was read; returns the suspension if that began now.

        The next newborn well within the limit (:data:`RESUME_SHARE`) ends it.
        """
        if used_bytes <= self.limit_bytes * RESUME_SHARE:
            self.suspension = None
        if used_bytes <= self.limit_bytes or self.suspension is not None:
            return None
        self.suspension = Suspension(baseline_bytes=used_bytes, limit_bytes=self.limit_bytes)
        return self.suspension

    def judge(self, readings: Iterable[Reading], now: float) -> Decision:
        """Count one reading of each child, and choose the largest that are due.

        A child that is not :meth:`born`, or :meth:`gone` since it was read, is passed over.
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
            if self._due(child, now):
                due.append(reading)
        if self.suspension is not None:
            return Decision(went_over=went_over)
        due.sort(key=lambda reading: reading.used_bytes, reverse=True)
        recycle = due[: max(0, self.concurrency - len(self.leaving()))]
        for reading in recycle:
            self._children[reading.pid].leaving = True
        return Decision(went_over=went_over, recycle=recycle)

    def leaving(self) -> set[int]:
        """The children that were chosen and are not gone yet."""
        return {pid for pid, child in self._children.items() if child.leaving}

    def gone(self, pid: int) -> None:
        """A child has left, by whatever way."""
        self._children.pop(pid, None)

    def spared(self, pid: int) -> None:
        """A child was chosen, and stays: not chosen again before it was below its limit."""
        child = self._children.get(pid)
        if child is not None:
            child.leaving, child.spared = False, True

    def put_back(self, pid: int, *, not_before_mono: float = 0.0) -> None:
        """A child was chosen, and could not be asked: its place is free, and its turn comes again.

        Not before that time, so that another is chosen meanwhile.
        """
        child = self._children.get(pid)
        if child is not None:
            child.leaving, child.not_before_mono = False, not_before_mono

    def _due(self, child: _Child, now: float) -> bool:
        return (
            child.strikes.count >= self.strikes
            and now - child.born_mono >= self.min_lifetime_s
            and now >= child.not_before_mono
            and not child.leaving
            and not child.spared
        )
