"""Which child leaves if a worker as a whole uses too much."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.memory.suspension import RETRY_S, TOTAL_SETTING, Resumption, Suspension
from worker_guard.memory.total import Holding, Total, TotalPolicy

LIMIT = 1000


def holding(pid: int, used_bytes: int, **more: Any) -> Holding:
    """An idle child in a slot of its own that has run tasks."""
    values = {"slot": pid % 10, "busy": False, "is_new": False, **more}
    return Holding(pid=pid, used_bytes=used_bytes, **values)


def total(*children: Holding, parent: int = 100) -> Total:
    """A worker with these children."""
    used_bytes = parent + sum(child.used_bytes for child in children)
    return Total(used_bytes=used_bytes, parent_bytes=parent, children=children)


def policy(strikes: int = 1) -> TotalPolicy:
    return TotalPolicy(limit_bytes=LIMIT, strikes=strikes)


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ([holding(1, 500), holding(2, 700)], [2, 1]),
        # Idle ones first, however small they are beside a busy one.
        ([holding(1, 300), holding(2, 900, busy=True)], [1, 2]),
        ([holding(1, 300, busy=True), holding(2, 900, busy=True)], [2, 1]),
        # Replacing a new one gains nothing, nor does one that is hardly bigger.
        ([holding(1, 100, is_new=True), holding(2, 900)], [2]),
        ([holding(1, 100, is_new=True), holding(2, 110), holding(3, 900)], [3]),
        ([holding(1, 100, is_new=True), holding(2, 120), holding(3, 900)], [3, 2]),
        ([], []),
    ],
)
def test_the_order_in_which_children_leave(children: list[Holding], expected: list[int]) -> None:
    """Idle first, then by what they hold."""
    assert policy().candidates(total(*children, parent=200), 0.0) == expected


def test_it_takes_as_many_readings_in_a_row() -> None:
    """Again after each child that was chosen, and from the start after one within the limit."""
    judge, over = policy(strikes=2), total(holding(1, 2000))
    assert [judge.candidates(over, 0.0) for _ in range(3)] == [[], [1], [1]]
    judge.chose(over.children[0], 0.0)
    assert [judge.candidates(over, 0.0) for _ in range(2)] == [[], [1]]
    judge.within(900, 0.0)
    assert [judge.candidates(over, 0.0) for _ in range(2)] == [[], [1]]


def test_a_child_that_stays_is_asked_for_once() -> None:
    """In a dry run, each time that the worker goes over its limit."""
    judge, over = policy(), total(holding(1, 2000))
    assert judge.candidates(over, 0.0) == [1]
    judge.declined()
    assert judge.candidates(over, 0.0) == []
    judge.within(999, 0.0)  # still near it
    assert judge.candidates(over, 0.0) == []
    judge.within(900, 0.0)
    assert judge.candidates(over, 0.0) == [1]


def test_a_main_process_that_is_over_it_alone_is_told_once_and_recycles_nobody() -> None:
    """No child could help, not even as a try after a while."""
    judge, over = policy(), total(holding(1, 500), holding(2, 700), parent=LIMIT + 1)
    found = [judge.candidates(over, now) for now in (0.0, 1.0, 2.0, 10 * RETRY_S)]
    assert found == [[], [], [], []]
    (told,) = judge.gains.news
    assert isinstance(told, Suspension)
    assert (told.reason, told.setting) == ("baseline_over_limit", TOTAL_SETTING)
    assert (told.baseline_bytes, told.limit_bytes) == (LIMIT + 1, LIMIT)


def test_a_limit_below_what_new_children_use_suspends() -> None:
    """Three children of 400 leave 300 each at least, and the main process holds 200."""
    judge = policy()
    children = [holding(1, 300, is_new=True), holding(2, 400), holding(3, 400)]
    found = [judge.candidates(total(*children, parent=200), now) for now in (0.0, 1.0, 2.0)]
    assert found == [[2, 3], [], []]
    (told,) = judge.gains.news
    assert isinstance(told, Suspension)
    assert told.baseline_bytes == 200 + 3 * 300
    # One is tried after a while.
    assert judge.candidates(total(*children, parent=200), RETRY_S + 1.0) == [2, 3]


def test_it_resumes_when_the_worker_is_well_within_its_limit() -> None:
    """With new children it would use no more than that."""
    judge, over = policy(), total(holding(1, 500), parent=LIMIT + 1)
    for now in (0.0, 1.0):
        judge.candidates(over, now)
    judge.gains.news.clear()
    judge.within(950, 2.0)
    assert not judge.gains.news
    judge.within(900, 3.0)
    assert list(judge.gains.news) == [Resumption(suspended_s=2.0)]


def recycle(judge: TotalPolicy, pid: int, now: float, *, replacement_bytes: int) -> list[int]:
    """The one child leaves if it may, and its replacement then holds so much."""
    child = holding(pid, 1200, slot=0)
    found = judge.candidates(total(child), now)
    if found:
        judge.chose(child, now)
        assert not judge.is_on_trial(0, pid)
        assert judge.is_on_trial(0, pid + 1)
        judge.tried(0, replacement_bytes, now)
        assert not judge.is_on_trial(0, pid + 1)
    return found


def test_replacements_that_are_as_big_at_once_suspend() -> None:
    """A model that each loads again with its first task: three gained nothing."""
    judge = policy()
    found = [recycle(judge, pid, float(pid), replacement_bytes=1100) for pid in range(1, 6)]
    assert found == [[1], [2], [3], [], []]
    told = [news for news in judge.gains.news if isinstance(news, Suspension)]
    assert [(news.reason, news.setting) for news in told] == [("regrows_at_once", TOTAL_SETTING)]


def test_a_leak_never_suspends() -> None:
    """Each replacement was small after its first task, and grew later."""
    judge = policy()
    for pid in range(1, 8):
        assert recycle(judge, pid, float(pid), replacement_bytes=1000) == [pid]
    assert not judge.gains.news
