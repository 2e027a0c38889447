"""Moments for people and for JSON."""

from __future__ import annotations

import pytest

from worker_guard.values.moments import rfc3339, to_the_minute


@pytest.mark.parametrize(
    ("epoch_s", "minute", "full"),
    [
        (0.0, "1970-01-01 00:00", "1970-01-01T00:00:00.000000Z"),
        (1e9 + 0.25, "2001-09-09 01:46", "2001-09-09T01:46:40.250000Z"),
        (1e300, "9999-12-31 23:59", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_moment(epoch_s: float, minute: str, full: str) -> None:
    """In UTC; one that no calendar has is the last one that it has."""
    assert (to_the_minute(epoch_s), rfc3339(epoch_s)) == (minute, full)
