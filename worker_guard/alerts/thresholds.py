"""When an alert is raised, and when it is cleared. Pure: no I/O, time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worker_guard.errors import WorkerGuardError
from worker_guard.events import AlertName

#: A raised alert is cleared when its value is this share of its threshold, or less. Between the two
#: it stays as it is, so that a value that hovers around the threshold doesn't fill the log.
CLEAR_SHARE = 0.9

Change = Literal["raised", "cleared"]


class MemoryUnknownError(WorkerGuardError):
    """The server's INFO does not say how much memory it may use, so the used share is unknown.

    Give it a ``maxmemory``, or set ``worker_guard_alert_redis_memory`` to None.
    """


@dataclass
class Alert:
    """One alert: quiet, or active since ``since_mono``. ``value`` is the last one that was read."""

    name: AlertName
    threshold: float
    value: float | None = None
    since_mono: float | None = None

    def judge(self, value: float, now: float) -> Change | None:
        """Take one value; returns what it changed.

        It is raised above the threshold, and cleared at :data:`CLEAR_SHARE` of it or below.
        """
        self.value = value
        if self.since_mono is None and value > self.threshold:
            self.since_mono = now
            return "raised"
        if self.since_mono is not None and value <= self.threshold * CLEAR_SHARE:
            self.since_mono = None
            return "cleared"
        return None


def used_share(info: Mapping[str, object]) -> float:
    """The share of its memory that a Redis uses, from its INFO.

    That is ``used_memory`` of ``maxmemory``, or of the machine's memory if it has no limit.

    Raises:
        MemoryUnknownError: INFO does not tell.
    """
    used, limit, machine = (
        _bytes(info.get(name)) for name in ("used_memory", "maxmemory", "total_system_memory")
    )
    total = limit or machine
    if not used or not total:
        raise MemoryUnknownError("INFO has no used_memory, or no limit and no total_system_memory")
    return round(used / total, 6)


def _bytes(value: object) -> int:
    return value if isinstance(value, int) else 0
