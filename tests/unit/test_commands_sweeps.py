"""What workers answer to ``guard_sweep``, and where the figures of a big set are found."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.commands.sweeps import Sweep, past_sweep, read_answer

FIGURES = {"target": "revoked", "revoked_tasks_cleared": 12, "trigger": "control"}


@pytest.mark.parametrize(
    ("answer", "sweep", "document"),
    [
        (
            {"ok": {**FIGURES, "dry_run": True}},
            Sweep(done=FIGURES, dry_run=True),
            {**FIGURES, "dry_run": True},
        ),
        (
            {"ok": "sweeping; the worker's log will say what came of it", "dry_run": False},
            Sweep(),
            {"sweeping": True, "dry_run": False},
        ),
        (
            {"error": "worker_guard_enabled is False"},
            Sweep(error="worker_guard_enabled is False"),
            {"error": "worker_guard_enabled is False"},
        ),
        (
            ["what"],
            Sweep(error="not the answer of a guard: ['what']"),
            {"error": "not the answer of a guard: ['what']"},
        ),
    ],
    ids=["figures", "sweeping", "error", "no guard's"],
)
def test_an_answer_is_read(answer: object, sweep: Sweep, document: dict[str, Any]) -> None:
    """And told as JSON."""
    assert read_answer(answer) == sweep
    assert sweep.document() == document
    assert sweep.cleared == (12 if sweep.done else 0)


def test_a_worker_that_does_not_know_the_command_is_told_what_to_do() -> None:
    """It answers with the error that it met."""
    error = read_answer({"error": "KeyError('guard_sweep')"}).error
    assert error is not None
    assert "not loaded" in error
    assert "add(WorkerGuard)" in error


def past(**changes: Any) -> dict[str, Any]:
    """A sweep on request that ended a second ago, as ``inspect guard`` tells it."""
    return {**FIGURES, "at": 1.0, "age_s": 1.0, **changes}


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"last_cleanup": past()}, True),
        # By schedule, the results were cleaned since.
        ({"last_cleanup": past(target="results"), "last_clearing": past()}, True),
        ({"last_cleanup": past(trigger="timer"), "last_clearing": None}, False),
        ({"last_cleanup": past(age_s=9.0)}, False),
        ({"last_cleanup": past(age_s="1")}, False),
        ({"last_cleanup": None}, False),
        ({"error": "worker_guard_enabled is False"}, False),
        ("what", False),
    ],
    ids=["last", "last that cleared", "timer", "before", "broken", "none yet", "off", "no guard's"],
)
def test_the_sweep_that_was_asked_for_is_found(state: object, found: bool) -> None:
    """It was on request, of the revoked set, and ended since it was asked for, 5 s ago."""
    answer = {"version": "1.0", **state} if isinstance(state, dict) else state
    done = past_sweep(answer, 5.0)
    assert (done is not None) == found
    assert done is None or {name: done[name] for name in FIGURES} == FIGURES
