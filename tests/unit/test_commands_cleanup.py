"""What ``celery guard cleanup`` counts, from what the workers answered."""

from __future__ import annotations

import json

import pytest
from celery import Celery

from worker_guard.commands.cleanup import Wanted, _Command
from worker_guard.commands.sweeps import Sweep

REAL = Sweep(done={"revoked_tasks_cleared": 3})
DRY = Sweep(done={"revoked_tasks_cleared": 5}, dry_run=True)
BUSY = Sweep()


def shown(
    capsys: pytest.CaptureFixture[str], *sweeps: Sweep, as_json: bool = False, dry_run: bool = False
) -> str:
    wanted = Wanted(
        only=(),
        destination=(),
        timeout=1.0,
        dry_run=dry_run,
        max_age=None,
        ignore_ttl=False,
        as_json=as_json,
        purge_queues=False,
        yes=False,
    )
    command = _Command(Celery("test", set_as_current=False), wanted)
    command._sweeps = {f"w{n}@test": sweep for n, sweep in enumerate(sweeps)}
    command._show(took_s=0.1)
    return capsys.readouterr().out


def test_the_total_holds_what_was_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker in a dry run clears nothing, though it says what it would."""
    text = shown(capsys, REAL, DRY)
    assert "Total: 3 revoked tasks cleared" in text
    assert "5 ids would be cleared" in text
    assert json.loads(shown(capsys, REAL, DRY, as_json=True))["revoked_tasks_cleared"] == 3


def test_in_a_dry_run_the_total_holds_what_all_would_clear(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each worker answers as one in a dry run."""
    assert "Total: 5 revoked tasks would be cleared" in shown(capsys, DRY, dry_run=True)


def test_a_sweep_that_goes_on_makes_the_total_a_lower_bound(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its figures are not known yet, which is no 0."""
    assert "Total: at least 3 revoked tasks cleared" in shown(capsys, REAL, BUSY)
    assert "at least" not in shown(capsys, REAL)
    targets = json.loads(shown(capsys, BUSY, as_json=True))["targets"]["revoked"]
    assert targets == {"w0@test": {"sweeping": True, "dry_run": False}}
