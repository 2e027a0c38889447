"""When an alert is raised and cleared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_guard.alerts.thresholds import (
    CLEAR_SHARE,
    Alert,
    Change,
    MemoryUnknownError,
    used_share,
)

THRESHOLDS = st.one_of(st.integers(0, 10_000), st.floats(0, 10_000))


@pytest.mark.parametrize(
    ("threshold", "values", "changes"),
    [
        # At the threshold is not above it.
        (10, [10], [None]),
        (10, [11], ["raised"]),
        # Once, for as long as it lasts.
        (10, [11, 500, 11], ["raised", None, None]),
        # Not at the threshold is it cleared, but well below it.
        (10, [11, 10, 9.1, 9], ["raised", None, None, "cleared"]),
        (10, [11, 0, 11], ["raised", "cleared", "raised"]),
        (0.8, [0.8, 0.81, 0.79, 0.73, 0.72], [None, "raised", None, None, "cleared"]),
        # One recycle in an hour is what the guard is there for.
        (1, [1, 2, 1, 0], [None, "raised", None, "cleared"]),
        # Anything at all.
        (0, [0, 1, 0], [None, "raised", "cleared"]),
    ],
)
def test_changes(threshold: float, values: list[float], changes: list[Change | None]) -> None:
    """Raised above the threshold; cleared at a share of it; nothing in between."""
    alert = Alert("revoked_tasks", threshold)
    assert [alert.judge(value, 100.0) for value in values] == changes


def test_an_alert_knows_since_when_it_is_active() -> None:
    """Since it was raised, whatever came after; not at all once it is cleared."""
    alert = Alert("revoked_tasks", 10)
    alert.judge(11, 100.0)
    alert.judge(12, 200.0)
    assert (alert.since_mono, alert.value) == (100.0, 12)
    alert.judge(0, 300.0)
    assert (alert.since_mono, alert.value) == (None, 0)


@given(THRESHOLDS, st.booleans(), st.lists(st.floats(0, 1)))
def test_a_value_that_hovers_never_flaps(
    threshold: float, active: bool, places: list[float]
) -> None:
    """Whatever it does between the two marks, the alert stays as it was."""
    alert = Alert("revoked_tasks", threshold)
    if active:
        alert.judge(threshold + 1, 0.0)
    clears_at = threshold * CLEAR_SHARE
    for place in places:
        value = clears_at + (threshold - clears_at) * place
        if value > clears_at:
            assert alert.judge(min(value, threshold), 1.0) is None


@given(THRESHOLDS, st.lists(st.floats(0, 20_000)))
def test_raised_and_cleared_take_turns(threshold: float, values: list[float]) -> None:
    """The first change is a raise, and none comes twice in a row; each for its reason."""
    alert = Alert("revoked_tasks", threshold)
    told: list[Change] = []
    for value in values:
        change = alert.judge(value, 0.0)
        if change == "raised":
            assert value > threshold
        if change == "cleared":
            assert value <= threshold * CLEAR_SHARE
        told += [change] if change else []
    assert told == ["raised" if n % 2 == 0 else "cleared" for n in range(len(told))]


@pytest.mark.parametrize(
    ("info", "share"),
    [
        ({"used_memory": 50, "maxmemory": 200, "total_system_memory": 1000}, 0.25),
        ({"used_memory": 50, "maxmemory": 0, "total_system_memory": 1000}, 0.05),
        ({"used_memory": 50, "total_system_memory": 1000}, 0.05),
        # What a Redis may use it can exceed for a moment.
        ({"used_memory": 210, "maxmemory": 200}, 1.05),
    ],
)
def test_the_share_of_memory(info: dict[str, object], share: float) -> None:
    """Of maxmemory, or of the machine's memory where there is no limit."""
    assert used_share(info) == share


@pytest.mark.parametrize(
    "info", [{}, {"used_memory": 50}, {"used_memory": 50, "maxmemory": 0}, {"maxmemory": 10}]
)
def test_a_server_that_does_not_tell_its_memory(info: dict[str, object]) -> None:
    """Nothing is made up."""
    with pytest.raises(MemoryUnknownError, match="used_memory"):
        used_share(info)
