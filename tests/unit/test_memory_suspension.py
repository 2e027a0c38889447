"""When recycling is suspended, tried again, and resumed: tables of what became of children."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from worker_guard.memory.suspension import (
    LEAKS_SHOWN,
    LIMIT_SETTING,
    RETRY_S,
    START_SETTING,
    Gains,
    Resumption,
    Start,
    Suspension,
)

LIMIT = 1000
FAST = Start(at_least_s=0.0, at_most_s=1.0)
SLOW = Start(at_least_s=2.1, at_most_s=2.5)
LATE = Start(at_least_s=0.0, at_most_s=60.0)


def reasons(gains: Gains) -> list[str]:
    """What was put into the news, in order."""
    return [change.reason if isinstance(change, Suspension) else "resumed" for change in gains.news]


@pytest.mark.parametrize(
    ("newborns", "told"),
    [
        ([1001], []),
        ([1001, 1001], ["baseline_over_limit"]),
        ([1001, 1000, 1001], []),
        ([1001, 1001, 1001], ["baseline_over_limit"]),
        ([1001, 1001, 999, 1001, 1001], ["baseline_over_limit"]),
        ([1001, 1001, 901], ["baseline_over_limit"]),
        ([1001, 1001, 900], ["baseline_over_limit", "resumed"]),
        ([1001, 1001, 900, 1001], ["baseline_over_limit", "resumed"]),
        (
            [1001, 1001, 900, 1001, 1001],
            ["baseline_over_limit", "resumed", "baseline_over_limit"],
        ),
        ([1000, 1000], []),
    ],
)
def test_two_newborns_must_agree_and_one_well_within_ends_it(
    newborns: list[int], told: list[str]
) -> None:
    """New children that hover around the limit suspend it once."""
    gains = Gains(LIMIT)
    for used_bytes in newborns:
        gains.newborn(used_bytes, 0.0)
    assert reasons(gains) == told


def test_what_is_reported() -> None:
    """The whole suspension, and how long it took."""
    gains = Gains(LIMIT)
    gains.newborn(1100, 5.0)
    gains.newborn(1200, 6.0)
    gains.newborn(100, 16.0)
    assert list(gains.news) == [
        Suspension(
            reason="baseline_over_limit",
            baseline_bytes=1200,
            limit_bytes=LIMIT,
            setting=LIMIT_SETTING,
            since_mono=6.0,
        ),
        Resumption(suspended_s=10.0),
    ]


@pytest.mark.parametrize(
    ("starts", "told"),
    [
        ([FAST], []),
        ([SLOW], ["replacement_not_up"]),
        ([FAST, SLOW], ["replacement_not_up"]),
        ([SLOW, SLOW], ["replacement_not_up"]),
        ([LATE, LATE], []),
        ([SLOW, FAST], ["replacement_not_up"]),
        ([SLOW, "try", SLOW], ["replacement_not_up"]),
        ([SLOW, "try", LATE], ["replacement_not_up"]),
        ([SLOW, "try", FAST], ["replacement_not_up", "resumed"]),
        ([SLOW, "try", FAST, SLOW], ["replacement_not_up", "resumed", "replacement_not_up"]),
    ],
)
def test_starts_near_the_timeout_suspend_it_and_a_try_that_is_fast_ends_that(
    starts: list[Any], told: list[str]
) -> None:
    """A start that may only have been noticed late is not slow. The pool waits 4 s."""
    gains = Gains(LIMIT, start_timeout_s=4.0)
    for start in starts:
        if start == "try":
            gains.chose(RETRY_S)
        else:
            gains.started(start, 0.0)
    assert reasons(gains) == told


@pytest.mark.parametrize(("in_time", "setting"), [(False, START_SETTING), (True, None)])
def test_a_replacement_that_was_never_up(in_time: bool, setting: str | None) -> None:
    """The setting is named if it is why the pool killed it."""
    gains = Gains(LIMIT, start_timeout_s=4.0)
    gains.ended_before_it_was_up(1, 3.0, in_time=in_time)
    assert gains.current is not None
    assert (gains.current.reason, gains.current.setting) == ("replacement_not_up", setting)


def test_no_place_is_emptied_beside_one_that_is_not_filled() -> None:
    """However often it was time to try."""
    gains = Gains(LIMIT)
    gains.ended_before_it_was_up(1, 0.0, in_time=True)
    assert gains.allowed(5, RETRY_S) == 0
    gains.filled(1)
    assert gains.allowed(5, RETRY_S) == 1


def test_a_worker_that_could_lose_its_children_is_always_reported() -> None:
    """Nothing else takes its place."""
    gains = Gains(LIMIT, start_timeout_s=4.0)
    for _ in range(3):
        gains.newborn(1001, 0.0)
    gains.started(SLOW, 0.0)
    for _ in range(3):
        gains.newborn(1001, 0.0)
        gains.regrown(1001, 0.0)
    assert reasons(gains) == ["baseline_over_limit", "replacement_not_up"]


def suspend_by_newborns(gains: Gains) -> None:
    gains.newborn(1001, 0.0)
    gains.newborn(1001, 0.0)


def suspend_by_regrowth(gains: Gains) -> None:
    for _ in range(3):
        gains.regrown(1500, 0.0)


def suspend_by_starts(gains: Gains) -> None:
    gains.started(SLOW, 0.0)


@pytest.mark.parametrize("suspend", [suspend_by_newborns, suspend_by_regrowth, suspend_by_starts])
def test_no_suspension_lasts_for_ever(suspend: Callable[[Gains], None]) -> None:
    """One recycle is tried after 15 minutes, then after 30, then after 60."""
    gains = Gains(LIMIT, start_timeout_s=4.0)
    gains.started(FAST, 0.0)
    suspend(gains)
    now = 0.0
    for pause_s in (900.0, 1800.0, 3600.0):
        assert gains.retry_in_s(now) == pause_s
        assert gains.allowed(5, now + pause_s - 1) == 0
        now += pause_s
        assert gains.retry_in_s(now) == 0.0
        assert gains.allowed(5, now) == 1
        gains.chose(now)
        suspend(gains)
    assert len(gains.news) == 1


def test_each_suspension_begins_with_the_first_pause() -> None:
    """However long the one before it took."""
    gains = Gains(LIMIT)
    suspend_by_newborns(gains)
    gains.chose(RETRY_S)
    gains.newborn(10, RETRY_S)
    suspend_by_newborns(gains)
    assert gains.retry_in_s(0.0) == RETRY_S


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ("rr", []),
        ("rrr", ["regrows_at_once"]),
        ("rrsr", []),
        ("rrrs", ["regrows_at_once"]),
        ("rrrtr", ["regrows_at_once"]),
        ("rrrts", ["regrows_at_once", "resumed"]),
        ("rrrtsrr", ["regrows_at_once", "resumed"]),
        ("rrrtsrrr", ["regrows_at_once", "resumed", "regrows_at_once"]),
    ],
)
def test_three_that_grow_again_suspend_it_and_a_try_that_stays_small_ends_that(
    history: str, told: list[str]
) -> None:
    """r: a replacement grew again, s: one stayed small, t: one is tried."""
    gains = Gains(LIMIT)
    act = {
        "r": lambda: gains.regrown(1500, 0.0),
        "s": lambda: gains.stayed_small(0.0),
        "t": lambda: gains.chose(0.0),
    }
    for each in history:
        act[each]()
    assert reasons(gains) == told


def test_a_leak_ends_the_suspension_and_in_the_end_regrowth_no_longer_suspends() -> None:
    """It keeps growing, which a loaded model does not."""
    gains = Gains(LIMIT)
    sizes = []
    for _ in range(5):
        suspend_by_regrowth(gains)
        size = 1500
        while gains.current is not None:
            size += 100
            gains.read(size, 0.0)
        sizes.append(size)
    assert sizes == [2300, 3500, 1500, 1500, 1500]
    assert reasons(gains) == ["regrows_at_once", "resumed"] * LEAKS_SHOWN


def test_a_second_model_is_no_leak_for_long() -> None:
    """Each is as large; when both were loaded nothing grows any more."""
    gains = Gains(LIMIT)
    suspend_by_regrowth(gains)
    gains.read(3000, 0.0)
    assert gains.current is None
    suspend_by_regrowth(gains)
    for _ in range(100):
        gains.read(3000, 0.0)
    assert gains.current is not None


def test_growth_means_nothing_to_other_suspensions() -> None:
    """A newborn over the limit stays one."""
    gains = Gains(LIMIT)
    suspend_by_newborns(gains)
    gains.read(10**9, 0.0)
    assert gains.current is not None
