"""Who is recycled, and when: tables of readings and what follows from them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from worker_guard.memory.policy import ChildPolicy, Reading, Strikes, Suspension

LIMIT = 1000


def reading(pid: int, used_bytes: int) -> Reading:
    return Reading(pid=pid, rss_bytes=used_bytes + 500, used_bytes=used_bytes, metric="uss")


def policy(**arguments: Any) -> ChildPolicy:
    """With children 1 to 9, born at 0."""
    defaults = {"limit_bytes": LIMIT, "strikes": 3, "concurrency": 1, "min_lifetime_s": 60.0}
    made = ChildPolicy(**{**defaults, **arguments})
    for pid in range(1, 10):
        made.born(pid, 0.0)
    return made


def recycled(judge: ChildPolicy, now: float, *used: int) -> list[int]:
    """The children 1, 2, 3 … that are chosen where they use so much."""
    readings = [reading(pid, used_bytes) for pid, used_bytes in enumerate(used, 1)]
    return [chosen.pid for chosen in judge.judge(readings, now).recycle]


@pytest.mark.parametrize(
    ("used", "chosen_at"),
    [
        ([1001, 1001, 1001], 2),
        ([1001, 1001], None),
        ([1001, 1001, 1000, 1001, 1001], None),
        ([1001, 1001, 1000, 1001, 1001, 1001], 5),
        ([1000, 1000, 1000, 1000], None),
        ([5000, 1, 5000, 1, 5000, 1], None),
    ],
)
def test_strikes_are_consecutive_and_the_last_one_acts(
    used: list[int], chosen_at: int | None
) -> None:
    """Three strikes act on the third; a reading at the limit or below begins anew."""
    judge = policy(min_lifetime_s=0.0)
    chosen = [at for at, used_bytes in enumerate(used) if recycled(judge, at, used_bytes)]
    assert chosen == ([] if chosen_at is None else [chosen_at])


@pytest.mark.parametrize(("age_s", "chosen"), [(0.0, []), (59.9, []), (60.0, [1]), (600.0, [1])])
def test_a_young_child_is_left_alone(age_s: float, chosen: list[int]) -> None:
    """Whatever it holds: so a child that fills up at once is not replaced all the time."""
    judge = policy(strikes=1)
    judge.born(1, now=1000.0)
    assert recycled(judge, 1000.0 + age_s, 9999) == chosen


def test_the_strikes_of_a_young_child_count() -> None:
    """It goes as soon as it is old enough."""
    judge = policy()
    judge.born(1, now=0.0)
    for now in (10.0, 20.0, 30.0, 40.0, 50.0):
        assert recycled(judge, now, 2000) == []
    assert recycled(judge, 60.0, 2000) == [1]


@pytest.mark.parametrize(
    ("concurrency", "used", "chosen"),
    [
        (1, [2000, 4000, 3000], [2]),
        (2, [2000, 4000, 3000], [2, 3]),
        (5, [2000, 4000, 3000], [2, 3, 1]),
        (2, [900, 4000, 900], [2]),
        (0, [2000, 4000, 3000], []),
    ],
)
def test_the_largest_go_first_and_no_more_than_allowed(
    concurrency: int, used: list[int], chosen: list[int]
) -> None:
    """The rest waits for its turn."""
    judge = policy(concurrency=concurrency, strikes=1, min_lifetime_s=0.0)
    assert recycled(judge, 0.0, *used) == chosen


def test_a_child_under_way_is_left_alone_and_holds_its_place() -> None:
    """It is not asked twice, and the next one goes when it is gone."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    assert recycled(judge, 0.0, 2000, 3000) == [2]
    assert judge.leaving() == {2}
    assert recycled(judge, 1.0, 2000, 9000) == []
    judge.gone(2)
    assert recycled(judge, 2.0, 2000) == [1]


def test_a_child_that_was_spared_is_chosen_again_only_after_it_was_below() -> None:
    """As in a dry run: named once for each time, and its place is free for others."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    assert recycled(judge, 0.0, 3000, 2000) == [1]
    judge.spared(1)
    assert recycled(judge, 1.0, 3000, 2000) == [2]
    judge.spared(2)
    assert recycled(judge, 2.0, 3000, 2000) == []
    assert recycled(judge, 3.0, 100, 2000) == []
    assert recycled(judge, 4.0, 3000, 2000) == [1]


def test_a_child_that_could_not_be_asked_gives_its_place_back_for_a_time() -> None:
    """Another is chosen meanwhile; after that its turn comes again, over the limit as it is."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    assert recycled(judge, 0.0, 3000, 2000) == [1]
    judge.put_back(1, not_before_mono=5.0)
    assert not judge.leaving()
    assert recycled(judge, 1.0, 3000, 2000) == [2]
    judge.gone(2)
    assert recycled(judge, 4.9, 3000) == []
    assert recycled(judge, 5.0, 3000) == [1]


def test_a_child_that_ended_after_it_was_read_is_passed_over() -> None:
    """Nothing is kept of it, which nobody would forget again."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    judge.gone(1)
    before = deepcopy(judge)
    assert recycled(judge, 0.0, 3000) == []
    assert judge == before


@pytest.mark.parametrize(
    ("used", "told_at"),
    [
        ([1001, 1500, 2000], [0]),
        ([900, 1001, 990, 1001, 980], [1]),
        ([1001, 950, 1001], [0, 2]),
        ([1001, 951, 1001], [0]),
        ([1001, 100, 1001, 100, 1001], [0, 2, 4]),
        ([1000, 1000], []),
    ],
)
def test_over_the_limit_is_told_once_for_each_time(used: list[int], told_at: list[int]) -> None:
    """One that hovers about the limit is told once, until it was well below."""
    judge = policy()
    told = [
        at
        for at, used_bytes in enumerate(used)
        if judge.judge([reading(7, used_bytes)], at).went_over
    ]
    assert told == told_at


def test_a_newborn_over_the_limit_suspends_and_the_next_well_within_it_ends_that() -> None:
    """Said once; strikes count on meanwhile, so that it goes on where it was."""
    judge = policy(strikes=2, min_lifetime_s=0.0)
    assert judge.newborn(LIMIT) is None
    suspension = judge.newborn(LIMIT + 1)
    assert suspension == Suspension(baseline_bytes=LIMIT + 1, limit_bytes=LIMIT)
    assert judge.newborn(LIMIT + 5) is None
    assert [recycled(judge, now, 2000) for now in range(4)] == [[]] * 4
    assert judge.suspension == suspension
    assert judge.newborn(900) is None
    assert judge.suspension is None
    assert recycled(judge, 5.0, 2000) == [1]
    judge.newborn(LIMIT + 2)
    assert judge.suspension == Suspension(baseline_bytes=LIMIT + 2, limit_bytes=LIMIT)


@pytest.mark.parametrize(
    ("newborns", "told_at", "suspended"),
    [
        ([1001, 999, 1001, 999, 1001], [0], True),
        ([1001, 901, 1001], [0], True),
        ([999, 950, 1000], [], False),
        ([1001, 900, 999, 1000], [0], False),
        ([1001, 900, 1001], [0, 2], True),
    ],
)
def test_newborns_that_hover_about_the_limit_suspend_it_once(
    newborns: list[int], told_at: list[int], suspended: bool
) -> None:
    """It goes on, and can be told again, only after one that leaves a replacement some room."""
    judge = policy()
    told = [at for at, used_bytes in enumerate(newborns) if judge.newborn(used_bytes)]
    assert told == told_at
    assert (judge.suspension is not None) == suspended


def test_who_goes_over_is_told_while_recycling_is_suspended() -> None:
    """The limit is still the operator's, and what is over it is worth a line."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    judge.newborn(LIMIT + 1)
    decision = judge.judge([reading(1, 2000)], 0.0)
    assert [over.pid for over in decision.went_over] == [1]
    assert not decision.recycle


def test_a_process_id_that_comes_again_begins_anew() -> None:
    """A new child with the id of one that left has no strikes and no age."""
    judge = policy(strikes=2, min_lifetime_s=60.0)
    judge.born(1, now=0.0)
    recycled(judge, 50.0, 2000)
    judge.gone(1)
    judge.born(1, now=55.0)
    assert recycled(judge, 61.0, 2000) == []
    assert recycled(judge, 62.0, 2000) == []
    assert recycled(judge, 115.0, 2000) == [1]


def test_strikes_count_what_is_over() -> None:
    """The main process is counted by the same rule."""
    strikes = Strikes(LIMIT)
    assert [strikes.add(used) for used in (1001, 1002, 1000, 1001)] == [True, False, False, False]
    assert (strikes.count, strikes.over) == (1, True)
    strikes.add(10)
    assert (strikes.count, strikes.over) == (0, False)
