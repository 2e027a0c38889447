"""The job that watches values: what it reports, and when."""

from __future__ import annotations

import pytest

from worker_guard.alerts.alert_watch import AlertWatch, WatchedValue
from worker_guard.alerts.thresholds import Alert
from worker_guard.events import AlertCleared, AlertRaised, Event
from worker_guard.scheduler import run_to_end


class Gauge:
    """A value that can be set, and that can fail to be read."""

    def __init__(self, value: float = 0) -> None:
        self.value = value
        self.error: Exception | None = None

    def read(self, now: float) -> float:
        if self.error:
            raise self.error
        return self.value


def watching(*gauges: Gauge) -> tuple[AlertWatch, list[Event]]:
    told: list[Event] = []
    watched = [WatchedValue(Alert("revoked_tasks", 10), gauge.read) for gauge in gauges]
    watch = AlertWatch(
        name="alerts", interval_s=5.0, watched=watched, report=told.append, monotonic=lambda: 100.0
    )
    return watch, told


def test_what_is_reported() -> None:
    """Each change once, with the value that brought it and the threshold."""
    gauge = Gauge()
    watch, told = watching(gauge)
    for value in (0, 12, 13, 9, 0):
        gauge.value = value
        run_to_end(watch.run())
    assert told == [
        AlertRaised(alert="revoked_tasks", value=12, threshold=10),
        AlertCleared(alert="revoked_tasks", value=9, threshold=10),
    ]
    assert [event.level for event in told] == ["warning", "info"]


def test_a_value_that_cannot_be_read_changes_nothing() -> None:
    """The scheduler handles the failure; an active alert stays active."""
    gauge = Gauge(12)
    watch, told = watching(gauge)
    run_to_end(watch.run())
    gauge.error = ConnectionError("away")
    with pytest.raises(ConnectionError):
        run_to_end(watch.run())
    gauge.error = None
    run_to_end(watch.run())
    assert told == [AlertRaised(alert="revoked_tasks", value=12, threshold=10)]


def test_each_value_is_a_slice() -> None:
    """The event loop has its turn between two values."""
    watch, told = watching(Gauge(12), Gauge(12))
    slices = watch.run()
    next(slices)
    assert len(told) == 1
    next(slices)
    assert len(told) == 2
