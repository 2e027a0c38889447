"""The backfill event: which tasks expired, how long they waited, and why."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from worker_guard.events import BackfillCauses, ExpiredBackfillDetected
from worker_guard.revoked.backfill import THRESHOLD, Backfill, waited_s

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("expires", "expiration_ms", "waited"),
    [
        # Sent 90 s ago with 30 s to live.
        (NOW - timedelta(seconds=60), "30000", 90.0),
        ((NOW - timedelta(seconds=60)).isoformat(), 30000, 90.0),
        ("2026-01-02T03:03:05Z", "30000", 90.0),
        ("2026-01-02T03:03:05", "30000", 90.0),
        ("2026-01-02T05:03:05+02:00", "30000", 90.0),
        # Without time to live it was born expired.
        (NOW - timedelta(seconds=60), None, None),
        (NOW - timedelta(seconds=60), "0", None),
        (NOW - timedelta(seconds=60), -5, None),
        # What can't be read counts as no wait, and raises nothing.
        ("yesterday", "30000", None),
        (None, "30000", None),
        (NOW, "soon", None),
        (NOW, "nan", None),
        # Clocks differ a little.
        (NOW + timedelta(seconds=60), "30000", 0.0),
    ],
)
def test_waited(
    expires: str | datetime | None, expiration_ms: object, waited: float | None
) -> None:
    """From the header and the property of the message, as Celery and kombu write them."""
    assert waited_s(expires=expires, expiration_ms=expiration_ms, now=NOW) == waited


def test_few_are_no_backfill() -> None:
    """Below the threshold there is no event, and the count begins anew."""
    backfill = Backfill()
    for _ in range(2):
        for _ in range(THRESHOLD - 1):
            backfill.add("app.report", 1.0)
        assert backfill.drain() is None


def test_the_whole_event() -> None:
    """At most ten names, the most frequent first; waits in seconds."""
    backfill = Backfill()
    for number in range(12):
        for _ in range(number + 1):
            backfill.add(f"app.task_{number}", float(number))
    backfill.add("app.task_11", None)
    event = backfill.drain()
    assert event == ExpiredBackfillDetected(
        expired_tasks=79,
        tasks={f"app.task_{n}": n + 1 + (n == 11) for n in range(11, 1, -1)},
        waited_s_p50=8.0,
        waited_s_max=11.0,
        causes=BackfillCauses(waited_in_queue=78, born_expired=1),
    )
    assert event.level == "warning"
    assert backfill.drain() is None


def test_all_born_expired() -> None:
    """Nobody waited, so there are no waiting times."""
    backfill = Backfill()
    for _ in range(THRESHOLD):
        backfill.add("app.report", None)
    event = backfill.drain()
    assert event is not None
    assert (event.waited_s_p50, event.waited_s_max) == (None, None)
