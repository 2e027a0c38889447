"""The state of a worker, and whether it is alive and ready."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_guard.health.state import (
    LONGEST_CONNECT_S,
    LONGEST_TURN_S,
    HealthFacts,
    max_age_s,
    state_of,
    why_not_alive,
    why_not_ready,
)

READY = HealthFacts(
    was_connected=True,
    connected=True,
    stalled=False,
    stopping=False,
    children_up=2,
    children_expected=2,
)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "ready"),
        ({"children_up": 1}, "ready"),
        ({"children_up": 0}, "no_children"),
        ({"children_up": 0, "children_expected": 0}, "ready"),
        ({"children_up": None, "children_expected": None}, "ready"),
        ({"stalled": True, "children_up": 0}, "stalled"),
        ({"connected": False, "stalled": True}, "disconnected"),
        ({"connected": False, "was_connected": False}, "starting"),
        ({"connected": False, "stopping": True}, "stopping"),
    ],
)
def test_the_state(changes: dict[str, object], state: str) -> None:
    """If several apply, the one that explains the others; only ``ready`` is ready."""
    facts = replace(READY, **changes)  # type: ignore[arg-type]
    assert state_of(facts) == state
    assert bool(why_not_ready(facts)) == (state != "ready")
    assert why_not_alive(facts) == ""


def test_a_loop_that_does_not_turn() -> None:
    """It is not alive after 30 s, or later if it may be connecting; so it is not ready either."""
    hung = replace(READY, turned_s=LONGEST_TURN_S + 1)
    assert why_not_alive(hung) == "its main loop has not turned for 31 s (allowed: 30 s)"
    assert why_not_ready(hung) == why_not_alive(hung)
    assert why_not_alive(replace(hung, connected=False)) == ""
    assert why_not_alive(replace(hung, connected=False, turned_s=LONGEST_CONNECT_S + 1))


@pytest.mark.parametrize("changes", [{"stopping": True}, {"task_s": 5000.0}])
def test_what_holds_the_loop_is_no_death(changes: dict[str, object]) -> None:
    """The last tasks of a shutdown, and a task of a solo pool, may take as long as they need."""
    facts = replace(READY, turned_s=5000.0, **changes)  # type: ignore[arg-type]
    assert max_age_s(facts) is None
    assert why_not_alive(facts) == ""


@given(st.builds(HealthFacts))
def test_ready_means_alive_and_connected(facts: HealthFacts) -> None:
    """Whatever the facts."""
    if not why_not_ready(facts):
        assert not why_not_alive(facts)
        assert facts.connected
        assert not facts.stopping
        assert not facts.stalled
