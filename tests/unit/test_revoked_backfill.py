"""The backfill event: which tasks expired, how long they waited, and why."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from worker_guard.events import BackfillCauses, ExpiredBackfillDetected
from worker_guard.revoked.backfill import (
    THRESHOLD,
    BackfillCounter,
    Cause,
    ExpiredMessage,
    Expiry,
    why_expired,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

WAITED: Cause = "waited_in_queue"
HELD: Cause = "held_until_eta"
BORN: Cause = "born_expired"
CLOCK: Cause = "clock_differs"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def message(**differs: Any) -> ExpiredMessage:
    """A message that was sent 90 s ago with 30 s to live."""
    plain: dict[str, Any] = {"expires": ago(60), "expiration_ms": "30000"}
    return ExpiredMessage(**{**plain, **differs})


@pytest.mark.parametrize(
    ("differs", "cause", "waited_s"),
    [
        ({}, WAITED, 90.0),
        ({"expires": ago(60).isoformat(), "expiration_ms": 30000}, WAITED, 90.0),
        ({"expires": "2026-01-02T03:03:05Z"}, WAITED, 90.0),
        ({"expires": "2026-01-02T03:03:05"}, WAITED, 90.0),
        ({"expires": "2026-01-02T05:03:05+02:00"}, WAITED, 90.0),
        # Without a TTL it was born expired.
        ({"expiration_ms": None}, BORN, None),
        ({"expiration_ms": "0"}, BORN, None),
        ({"expiration_ms": -5}, BORN, None),
        # What can't be read counts as no wait, and raises nothing.
        ({"expires": "yesterday"}, BORN, None),
        ({"expires": None}, BORN, None),
        ({"expiration_ms": "soon"}, BORN, None),
        ({"expiration_ms": "nan"}, BORN, None),
        # Clocks differ a little.
        ({"expires": ago(-60)}, WAITED, 0.0),
        # It was not to run before it had expired: a countdown, an ETA, or a retry.
        ({"eta": ago(30)}, HELD, None),
        ({"eta": ago(60).isoformat()}, HELD, None),
        ({"eta": ago(30), "arrived_now": True, "queue_empty_for_s": 1.0}, HELD, None),
        ({"retries": 2, "expiration_ms": "0"}, HELD, None),
        ({"retries": 2}, WAITED, 90.0),
        # Before its ETA it was not due.
        ({"eta": ago(70)}, WAITED, 70.0),
        ({"eta": ago(5000)}, WAITED, 90.0),
        # It can't have been in the queue for so long: that was empty a second ago.
        ({"arrived_now": True, "queue_empty_for_s": 1.0}, CLOCK, None),
        ({"arrived_now": True, "queue_empty_for_s": 1.0, "eta": ago(70)}, CLOCK, None),
        ({"arrived_now": True, "queue_empty_for_s": 89.5}, WAITED, 90.0),
        ({"arrived_now": True, "queue_empty_for_s": 3600.0}, WAITED, 90.0),
        ({"arrived_now": True, "queue_empty_for_s": None}, WAITED, 90.0),
        # It was here before, or at another worker, and the queue was emptied meanwhile.
        ({"arrived_now": False, "queue_empty_for_s": 1.0}, WAITED, 90.0),
    ],
)
def test_why_a_message_expired(
    differs: dict[str, Any], cause: Cause, waited_s: float | None
) -> None:
    """From its headers and properties, and from what the worker knows of its queue."""
    assert why_expired(message(**differs), NOW) == Expiry(cause, waited_s)


def test_few_are_no_backfill() -> None:
    """Below the threshold there is no event, and the count starts again."""
    backfill = BackfillCounter()
    for _ in range(2):
        for _ in range(THRESHOLD - 1):
            backfill.add("app.report", Expiry(WAITED, 1.0))
        assert backfill.drain(0.0) is None


def test_the_whole_event() -> None:
    """At most ten names, the most frequent first; waits in seconds."""
    backfill = BackfillCounter()
    for number in range(12):
        for _ in range(number + 1):
            backfill.add(f"app.task_{number}", Expiry(WAITED, float(number)))
    for cause in (BORN, HELD, CLOCK):
        backfill.add("app.task_11", Expiry(cause))
    event = backfill.drain(0.0)
    assert event == ExpiredBackfillDetected(
        expired_tasks=81,
        tasks={f"app.task_{n}": n + 1 + 3 * (n == 11) for n in range(11, 1, -1)},
        waited_s_p50=8.0,
        waited_s_max=11.0,
        causes=BackfillCauses(
            waited_in_queue=78, held_until_eta=1, born_expired=1, clock_differs=1
        ),
    )
    assert event.level == "warning"
    assert backfill.drain(0.0) is None


def test_all_born_expired() -> None:
    """Nobody waited, so there are no waiting times."""
    backfill = BackfillCounter()
    for _ in range(THRESHOLD):
        backfill.add("app.report", Expiry(BORN))
    event = backfill.drain(0.0)
    assert event is not None
    assert (event.waited_s_p50, event.waited_s_max) == (None, None)


def test_the_status_shows_even_a_few() -> None:
    """Summed up over sweeps in a row that found any; one that found none ends the row."""
    backfill = BackfillCounter()
    assert backfill.last is None
    for now, number in ((1.0, 8), (2.0, 7)):
        for _ in range(number):
            backfill.add("app.report", Expiry(WAITED, 3.0))
        assert backfill.drain(now) is None
    assert backfill.last is not None
    assert (backfill.last.expired_tasks, backfill.last_mono) == (15, 2.0)
    assert backfill.last.causes == BackfillCauses(waited_in_queue=15)
    backfill.drain(3.0)
    assert (backfill.last.expired_tasks, backfill.last_mono) == (15, 2.0)
    backfill.add("app.other", Expiry(BORN))
    backfill.drain(4.0)
    assert backfill.last.tasks == {"app.other": 1}
