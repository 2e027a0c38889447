"""When the consumer has stalled, and what is due then: looks in, decisions out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_guard.stall.policy import (
    BLOCKED_S,
    HOUR_S,
    LOOKS,
    RECONNECTS,
    ActionDue,
    Look,
    NoLongerStalled,
    StallPolicy,
    look_interval_s,
)

AFTER_S = 10.0

Change = ActionDue | NoLongerStalled

NOBODY = Look(consuming=False)
BUSY = Look(consuming=True, free=False)
NOT_ASKED = Look(consuming=True, free=True)
EMPTY = Look(consuming=True, free=True, waiting={"work": 0})
WAITING = Look(consuming=True, free=True, waiting={"work": 3, "other": 1})


def holding(tasks: int) -> Look:
    """Messages wait, and a reconnect would make so many tasks run again."""
    return Look(consuming=True, free=True, waiting={"work": 3}, held=tasks)


class Run:
    """A policy, and a clock that goes on by a second for each look."""

    def __init__(
        self, action: str = "log", *, can_reconnect: bool = True, can_shut_down: bool = True
    ) -> None:
        self.now = 100.0
        self.policy = StallPolicy(
            after_s=AFTER_S,
            interval_s=1.0,
            action=action,
            can_reconnect=can_reconnect,
            can_shut_down=can_shut_down,
            now=self.now,
        )

    def look(self, look: Look, times: int = 1, *, step_s: float = 1.0) -> list[Change]:
        """Look so often; returns what was decided."""
        found = []
        for _ in range(times):
            self.now += step_s
            found.append(self.policy.judge(look, self.now))
        return [each for each in found if each is not None]

    def message(self) -> None:
        """A message comes."""
        self.policy.message_mono = self.now


def test_it_has_stalled_when_messages_wait_and_none_comes() -> None:
    """Not before the time is over, and once."""
    run = Run()
    assert run.look(WAITING, 9) == []
    assert run.look(WAITING) == [ActionDue(action="log")]
    assert run.policy.since_mono == run.now
    assert run.look(WAITING, 50) == []


def test_three_looks_must_find_it() -> None:
    """However long no message came, since none was there."""
    run = Run()
    run.look(EMPTY, 60)
    assert run.look(WAITING, LOOKS - 1) == []
    assert run.look(WAITING) == [ActionDue(action="log")]


@pytest.mark.parametrize("doubt", [NOBODY, BUSY, NOT_ASKED, EMPTY])
def test_each_doubt_begins_the_looks_anew(doubt: Look) -> None:
    """A stop, a taken place, no answer, an empty queue."""
    run = Run()
    run.look(EMPTY, 60)
    run.look(WAITING, LOOKS - 1)
    run.look(doubt)
    assert run.look(WAITING, LOOKS - 1) == []


def test_a_busy_consumer_gets_the_whole_time_again() -> None:
    """It could not take a message; so that none came says nothing."""
    run = Run()
    run.look(BUSY, 60)
    assert run.look(WAITING, 9) == []
    assert run.look(WAITING) == [ActionDue(action="log")]


def test_so_does_one_whose_loop_was_blocked() -> None:
    """A solo worker after a long task."""
    run = Run()
    run.look(EMPTY)
    run.look(WAITING, step_s=60.0)
    assert run.look(WAITING, 9) == []
    assert run.look(WAITING) == [ActionDue(action="log")]


def test_timers_that_run_once_a_second_are_not_a_blocked_loop() -> None:
    """That is what an idle event loop does, whatever the interval."""
    run = Run()
    run.look(EMPTY, 20)
    assert run.look(WAITING, LOOKS, step_s=BLOCKED_S - 0.1) == [ActionDue(action="log")]


def test_so_does_one_that_has_connected() -> None:
    """However long it took."""
    run = Run()
    run.look(EMPTY, 60)
    run.policy.connected(run.now)
    assert run.look(WAITING, 9) == []


def test_messages_that_come_are_no_stall() -> None:
    """However many wait."""
    run = Run()
    for _ in range(50):
        assert run.look(WAITING, 9) == []
        run.message()


def test_it_ends_with_a_message() -> None:
    """At the next look."""
    run = Run()
    run.look(WAITING, 12)
    run.message()
    assert run.look(WAITING) == [NoLongerStalled(action="log")]
    assert run.policy.since_mono is None


@pytest.mark.parametrize("calm", [EMPTY, BUSY])
def test_it_ends_if_nothing_waits_any_more(calm: Look) -> None:
    """Three looks in a row; those without an answer say nothing."""
    run = Run()
    run.look(WAITING, 12)
    assert run.look(calm, LOOKS - 1) == []
    assert run.look(NOBODY, 10) == []
    assert run.look(calm) == [NoLongerStalled(action="log")]


def test_at_most_three_reconnects_in_an_hour() -> None:
    """Each after the whole time again; then it only reports."""
    run = Run("reconnect")
    done = run.look(WAITING, 60)
    assert done == [*[ActionDue(action="reconnect")] * RECONNECTS, ActionDue(action="log")]
    assert run.policy.reconnects(run.now) == RECONNECTS
    assert run.look(WAITING, int(HOUR_S))[0] == ActionDue(action="reconnect")


def test_shutdown_connects_again_once_and_then_shuts_down_once() -> None:
    """However long the shutdown takes."""
    run = Run("shutdown")
    done = run.look(WAITING, 200)
    assert done == [ActionDue(action="reconnect"), ActionDue(action="shutdown")]


def test_a_slow_trickle_is_no_stall() -> None:
    """A message came between each three looks, though none for longer than it waits."""
    run = Run()
    run.policy.after_s = 2.0
    for _ in range(20):
        assert run.look(WAITING, LOOKS - 1, step_s=2.5) == []
        run.message()


def test_a_stall_after_an_hour_is_a_new_one() -> None:
    """Shutdown connects again first."""
    run = Run("shutdown")
    assert run.look(WAITING, 12) == [ActionDue(action="reconnect")]
    run.message()
    run.look(EMPTY, int(HOUR_S))
    assert run.look(WAITING, 3) == [ActionDue(action="reconnect")]


@pytest.mark.parametrize(
    ("action", "done"),
    [("reconnect", ["log"]), ("shutdown", ["shutdown"]), ("log", ["log"])],
)
def test_where_celery_does_not_connect_again(action: str, done: list[Any]) -> None:
    """A lost connection would end the worker: nothing is done that could."""
    run = Run(action, can_reconnect=False)
    assert run.look(WAITING, 60) == [ActionDue(action=each) for each in done]


def test_where_a_shutdown_would_not_end() -> None:
    """A worker that only reports is still there when its broker is back."""
    run = Run("shutdown", can_reconnect=False, can_shut_down=False)
    assert run.look(WAITING, 60) == [ActionDue(action="log")]


def test_a_reconnect_waits_for_tasks_that_would_run_again() -> None:
    """It says so once, and connects again as soon as they have ended."""
    run = Run("reconnect")
    assert run.look(holding(2), 100) == [ActionDue(action="wait")]
    assert run.policy.last_action == "wait"
    assert run.look(holding(0)) == [ActionDue(action="reconnect")]


def test_celerys_own_healing_comes_first() -> None:
    """Where it is known: messages must have waited for as long, and none have come."""
    run = Run()
    run.policy.connected(run.now, healing_s=21.0)
    run.look(EMPTY, 60)
    assert run.look(WAITING, 21) == []
    assert run.look(WAITING) == [ActionDue(action="log")]
    run.look(WAITING)
    run.message()
    assert run.look(WAITING, 21) == [NoLongerStalled(action="log")]
    assert run.look(WAITING) == [ActionDue(action="log")]


def test_the_depth_is_asked_only_if_a_verdict_is_near() -> None:
    """Never on a worker that gets messages; always on one that has stalled."""
    run = Run()
    assert not run.policy.wants_depth(run.now + AFTER_S - LOOKS - 3)
    assert run.policy.wants_depth(run.now + AFTER_S - LOOKS)
    run.look(WAITING, 12)
    run.policy.connected(run.now)
    assert run.policy.wants_depth(run.now)


def test_the_interval_has_bounds() -> None:
    """A tenth of the time, 1 to 5 s."""
    assert [look_interval_s(after_s) for after_s in (1.0, 30.0, 3600.0)] == [1.0, 3.0, 5.0]


LOOKS_AT = st.builds(
    Look,
    consuming=st.booleans(),
    free=st.booleans(),
    waiting=st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), max_size=2),
    held=st.integers(0, 1),
)

EVENTS = st.lists(
    st.tuples(LOOKS_AT, st.sampled_from([1.0, 1.0, 1.0, 3.0, 40.0]), st.booleans(), st.booleans()),
    max_size=60,
)


@given(EVENTS, st.sampled_from(["log", "reconnect", "shutdown"]))
def test_never_without_three_such_looks_and_the_time(events: list[Any], action: str) -> None:
    """Whatever happens: three looks in a row had messages and room, and none came for the time."""
    run = Run(action)
    since = run.now
    looks: list[tuple[Look, float]] = []
    for look, step_s, comes, connects in events:
        (found,) = [run.look(look, step_s=step_s)]
        looks.append((look, step_s))
        stalled = [each for each in found if isinstance(each, ActionDue)]
        if stalled:
            last = looks[-LOOKS:]
            assert len(last) == LOOKS
            assert all(each.consuming and each.free and each.fullest for each, _ in last)
            assert all(step < BLOCKED_S for _, step in last[1:])
            assert run.now - since >= AFTER_S
            assert (look.held == 0) or stalled[0].action != "reconnect"
        if comes:
            run.message()
            since = run.now
        if connects:
            run.policy.connected(run.now)
            since = run.now
        assert len(run.policy._reconnects) <= RECONNECTS
