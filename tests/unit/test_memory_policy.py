"""Which children are recycled, and when: tables of readings and what follows from them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from worker_guard.memory.policy import ChildPolicy, Reading, Relative, Strikes
from worker_guard.memory.suspension import FIRST_TASKS, RETRY_S, Start

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
    """The children 1, 2, 3 … that are chosen if they use so much."""
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
    """Three strikes act on the third; a reading at the limit or below resets the count."""
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
    """Nothing is kept of it, since it would never be forgotten."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    judge.gone(1)
    before = deepcopy(judge)
    assert recycled(judge, 0.0, 3000) == []
    assert judge == before


@pytest.mark.parametrize(
    ("used", "reported_at"),
    [
        ([1001, 1500, 2000], [0]),
        ([900, 1001, 990, 1001, 980], [1]),
        ([1001, 950, 1001], [0, 2]),
        ([1001, 951, 1001], [0]),
        ([1001, 100, 1001, 100, 1001], [0, 2, 4]),
        ([1000, 1000], []),
    ],
)
def test_over_the_limit_is_reported_once_each_time(used: list[int], reported_at: list[int]) -> None:
    """One that hovers around the limit is reported once, until it was well below."""
    judge = policy()
    reported = [
        at
        for at, used_bytes in enumerate(used)
        if judge.judge([reading(7, used_bytes)], at).went_over
    ]
    assert reported == reported_at


def test_no_child_is_chosen_while_recycling_is_suspended_but_one_to_try() -> None:
    """Strikes still count meanwhile; when recycling resumes, the rest is chosen."""
    judge = policy(strikes=2, concurrency=2, min_lifetime_s=0.0)
    for _ in range(2):
        judge.gains.newborn(LIMIT + 1, 0.0)
    for now in (0.0, 1.0, RETRY_S - 1):
        assert recycled(judge, now, 2000, 3000, 4000) == []
    assert recycled(judge, RETRY_S, 2000, 3000, 4000) == [3]
    assert recycled(judge, RETRY_S + 1, 2000, 3000) == []
    judge.gains.newborn(900, RETRY_S + 2)
    assert recycled(judge, RETRY_S + 3, 2000, 3000) == [2]


def test_nothing_is_chosen_before_a_start_is_known() -> None:
    """If the pool kills children that start too slowly."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    judge.gains.start_timeout_s = 4.0
    assert recycled(judge, 0.0, 2000) == []
    judge.gains.started(Start(at_least_s=0.0, at_most_s=0.5), 1.0)
    assert recycled(judge, 1.0, 2000) == [1]


@pytest.mark.parametrize(
    ("concurrency", "waiting", "chosen"),
    [
        (1, 0, 0),
        (1, 1, 1),
        (1, 2, 1),
        (2, 1, 2),
        (2, 2, 1),
        (2, 5, 1),
        (4, 1, 4),
        (4, 2, 3),
    ],
)
def test_children_that_wait_for_their_task_keep_no_place(
    concurrency: int, waiting: int, chosen: int
) -> None:
    """However many there are, one can leave; and no more than one more than allowed."""
    judge = policy(strikes=1, min_lifetime_s=0.0, concurrency=9)
    assert len(recycled(judge, 0.0, *[2000] * max(waiting, 1))) == max(waiting, 1)
    judge.concurrency = concurrency
    for pid in range(1, waiting + 1):
        judge.waiting(pid)
    assert len(recycled(judge, 1.0, *[2000] * 9)) == chosen


def tried(judge: ChildPolicy, used: int, tasks: int) -> None:
    """A replacement that was read once, after so many tasks."""
    judge.gone(1)
    judge.born(1, 0.0, replaces=True)
    for _ in range(tasks):
        judge.began(1)
    judge.judge([reading(1, used)], 0.0)


@pytest.mark.parametrize(
    ("replacements", "suspended"),
    [
        ([(2000, 1)] * 3, True),
        ([(2000, 500)] * 3, True),
        ([(2000, 1)] * 2, False),
        ([(2000, 0)] * 3, False),
        ([(2000, 1), (2000, 1), (500, FIRST_TASKS + 1), (2000, 1)], False),
        ([(2000, 1), (2000, 1), (500, FIRST_TASKS), (2000, 1)], True),
    ],
)
def test_replacements_that_grow_again_at_once(
    replacements: list[tuple[int, int]], suspended: bool
) -> None:
    """Three in a row: over the limit when they were first judged, and after a task at least."""
    judge = policy(strikes=1)
    for used, tasks in replacements:
        tried(judge, used, tasks)
    assert (judge.gains.current is not None) == suspended


def test_a_child_that_replaces_nobody_tells_nothing_of_replacements() -> None:
    """The first ones of a worker may load what they need."""
    judge = policy(strikes=1)
    for pid in range(1, 6):
        judge.began(pid)
    judge.judge([reading(pid, 2000) for pid in range(1, 6)], 0.0)
    assert judge.gains.current is None


def test_a_replacement_is_judged_once_and_by_its_strikes() -> None:
    """One reading over the limit is no regrowth if three are needed."""
    judge = policy(strikes=3)
    for _ in range(3):
        judge.gone(1)
        judge.born(1, 0.0, replaces=True)
        judge.began(1)
        for used in (2000, 2000, 500, 2000, 2000):
            judge.judge([reading(1, used)], 0.0)
    assert judge.gains.current is None


def test_a_child_that_goes_over_is_reported_while_recycling_is_suspended() -> None:
    """The limit is still the operator's, and what is over it is worth a line."""
    judge = policy(strikes=1, min_lifetime_s=0.0)
    for _ in range(2):
        judge.gains.newborn(LIMIT + 1, 0.0)
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


def test_the_biggest_of_a_child_s_own_processes() -> None:
    """By the metric of the reading; by RSS alone each has its own, which does not count."""
    own = {Relative(pid=n, started_at=0.0, rss_bytes=100 * n): 10 * (9 - n) for n in range(9)}
    shared = Reading(pid=1, rss_bytes=1, used_bytes=1, metric="pss", relatives=own)
    assert [(each.pid, used) for each, used in shared.biggest(2)] == [(0, 90), (1, 80)]
    alone = replace(shared, metric="rss", relatives=dict.fromkeys(own, 0))
    assert [(each.pid, used) for each, used in alone.biggest(2)] == [(8, 800), (7, 700)]
