"""Whether the kernel killed a child for memory, by its own count. Pure: time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Seconds for which a kill that was counted can explain a child that is found dead later. The pool
#: finds most at once, but none while its loop is held.
KEPT_S = 30.0

#: So many kills are kept.
_MOST = 1000


@dataclass
class OomCount:
    """The kernel's count of out-of-memory kills, and which of them no child was found for yet.

    The count is that of a whole cgroup: a process that a child started counts too.
    """

    _last: int | None = None
    _unclaimed: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST))

    def read(self, count: int | None, now: float) -> None:
        """The count was read; None: it can't be."""
        rise = 0 if count is None or self._last is None else count - self._last
        self._last = count
        self._unclaimed.extend([now] * min(max(0, rise), _MOST))
        while self._unclaimed and self._unclaimed[0] < now - KEPT_S:
            self._unclaimed.popleft()

    def killed(self, children: int) -> bool | None:
        """Whether the kernel killed these children, found dead together by a SIGKILL.

        None: not known, because the count can't be read, or because it rose by fewer than these.
        """
        if self._last is None:
            return None
        found = min(children, len(self._unclaimed))
        for _ in range(found):
            self._unclaimed.popleft()
        return True if found == children else None if found else False
