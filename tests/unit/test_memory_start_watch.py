"""How closely the children that start are looked at."""

from __future__ import annotations

import pytest

from tests.fakes.memory import (
    Setup,
    new_setup,
)
from worker_guard.memory.start_watch import IDLE_S as STARTS_IDLE_S
from worker_guard.memory.start_watch import STARTING_S, StartWatch


@pytest.fixture
def setup() -> Setup:
    return new_setup()


def test_looks_are_close_while_a_child_starts(setup: Setup) -> None:
    """So that the start is known well."""
    machine, roster = setup.machine, setup.roster
    job = StartWatch(
        children=machine, said_more=machine.is_busy, roster=roster, monotonic=machine.monotonic
    )
    machine.fork(10, 0, 100)
    assert job.interval_s == STARTING_S
    roster.up(10, 8.0)
    assert job.interval_s == STARTS_IDLE_S
