"""The job that looks at values, and reports when one crosses its threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from worker_guard.alerts.thresholds import Alert
from worker_guard.events import AlertCleared, AlertRaised, Event, Trigger


@dataclass(frozen=True)
class WatchedValue:
    """An alert, and how its value is read. ``read(now)`` raises if it can't be read."""

    alert: Alert
    read: Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class AlertWatch:
    """Looks at some values, one after the other.

    An alert stays as it is if its value can't be read.
    """

    name: str
    interval_s: float
    watched: Sequence[WatchedValue]
    report: Callable[[Event], None]
    monotonic: Callable[[], float]

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look at each value once."""
        for watched in self.watched:
            now = self.monotonic()
            alert, value = watched.alert, watched.read(now)
            change = alert.judge(value, now)
            if change is not None:
                event = AlertRaised if change == "raised" else AlertCleared
                self.report(event(alert=alert.name, value=value, threshold=alert.threshold))
            yield
