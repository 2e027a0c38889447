"""Durations for people."""

from __future__ import annotations

from math import inf

import pytest

from worker_guard.values.durations import duration


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 s"),
        (0.0, "0 s"),
        (0.25, "0.25 s"),
        (7.449, "7.4 s"),
        (9.0, "9 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (7260, "2 h 1 min"),
        (86_400, "1 d"),
        (86_400 * 12 + 3_600 * 4 + 59, "12 d 4 h"),
        (inf, "inf s"),
    ],
)
def test_a_duration(seconds: float, expected: str) -> None:
    """In its two largest units, rounded down; with a fraction, rounded, only below 10 s."""
    assert duration(seconds) == expected
