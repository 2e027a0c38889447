"""Which child leaves if a worker as a whole uses too much. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker_guard.memory.policy import Strikes
from worker_guard.memory.suspension import RESUME_SHARE, TOTAL_SETTING, Gains


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What a child holds with the processes that it started; ``is_new``: it has run nothing yet."""

    pid: int
    slot: int
    used_bytes: int
    busy: bool
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class Total:
    """What a worker uses: all its processes, its main process alone (RSS), and each child."""

    used_bytes: int
    parent_bytes: int
    children: Sequence[Holding]


@dataclass
class _Recycled:
    """The child that left a slot, and what it held."""

    pid: int
    used_bytes: int


@dataclass
class TotalPolicy:
    """Decides which children may leave for the worker's limit, and whether that gains anything.

    ``gains`` compares with the limit what the worker would use if all its children were new.
    """

    limit_bytes: int
    strikes: int
    gains: Gains = field(init=False)
    _over: Strikes = field(init=False)
    _declined: bool = False
    _new_bytes: int | None = None
    _recycled: dict[int, _Recycled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gains = Gains(self.limit_bytes, setting=TOTAL_SETTING)
        self._over = Strikes(self.limit_bytes)

    def within(self, used_bytes: int, now: float) -> None:
        """The worker was read within its limit."""
        self._over.add(used_bytes)
        self._declined = self._declined and self._over.over
        self.gains.newborn(used_bytes, now)  # with new children it would use no more than this

    def candidates(self, total: Total, now: float) -> list[int]:
        """The children of a worker over its limit that may leave now, the first of them first.

        Idle ones first, then the biggest. A child that holds hardly more than a new one stays.
        """
        self._over.add(total.used_bytes)
        self._learn(total, now)
        if (
            self._over.count < self.strikes
            or self._declined
            or total.parent_bytes > self.limit_bytes
            or not self.gains.allowed(1, now)
        ):
            return []
        least_bytes = 0 if self._new_bytes is None else self._new_bytes / RESUME_SHARE
        worth = [c for c in total.children if not c.is_new and c.used_bytes > least_bytes]
        worth.sort(key=lambda child: (child.busy, -child.used_bytes))
        return [child.pid for child in worth]

    def chose(self, child: Holding, now: float) -> None:
        """This child leaves. The next one is chosen after as many readings again."""
        self._recycled[child.slot] = _Recycled(child.pid, child.used_bytes)
        self._over.count = 0
        self.gains.chose(now)

    def declined(self) -> None:
        """The chosen child stays. None is chosen again until the worker was within its limit."""
        self._declined = True

    def is_on_trial(self, slot: int, pid: int) -> bool:
        """Whether this child replaces one that was chosen, and it is not known what that gained."""
        recycled = self._recycled.get(slot)
        return recycled is not None and recycled.pid != pid

    def tried(self, slot: int, used_bytes: int, now: float) -> None:
        """The replacement holds this much soon after its first task.

        A leak takes longer than that to grow as big again, a model that is loaded does not.
        """
        if used_bytes > self._recycled.pop(slot).used_bytes * RESUME_SHARE:
            self.gains.regrown(used_bytes, now)
        else:
            self.gains.stayed_small(now)

    def _learn(self, total: Total, now: float) -> None:
        """What the worker would use with new children, and whether one has a leak."""
        new = [child.used_bytes for child in total.children if child.is_new]
        self._new_bytes = min(new) if new else self._new_bytes
        for child in total.children:
            self.gains.read(child.used_bytes, now)
        least_bytes = total.parent_bytes
        if self._new_bytes is not None:
            gain = sum(max(0, c.used_bytes - self._new_bytes) for c in total.children)
            least_bytes = max(least_bytes, total.used_bytes - gain)
        if self._new_bytes is not None or least_bytes > self.limit_bytes:
            self.gains.newborn(least_bytes, now)
