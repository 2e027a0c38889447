"""Which sweeps are written into the history, and what becomes of them while Redis is away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from worker_guard.events import CleanupCompleted, Event, PartFailed
from worker_guard.results.history import KEPT, Outcome
from worker_guard.results.history_writer import HistoryWriter
from worker_guard.scheduler import Scheduler


class Kept:
    """A history that a test can read, and that can be away."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.is_away = False

    def add(self, outcome: Outcome) -> None:
        if self.is_away:
            raise ConnectionError("away")
        self.outcomes.append(outcome)


def writer(history: Any) -> HistoryWriter:
    """The writer of a worker, at 1,000 seconds past 1970."""
    return HistoryWriter(interval_s=30.0, history=history, by="w@test", now=lambda: 1000.0)


def sweep(cleared: int = 3, **changes: Any) -> CleanupCompleted:
    """A sweep that cleared so many ids."""
    values: dict[str, Any] = {"trigger": "control", "duration_s": 2.5, **changes}
    return CleanupCompleted(revoked_tasks_cleared=cleared, **values)


def test_a_sweep_that_cleared_something_is_written() -> None:
    """With who did it, when it began, and the fields of its event."""
    history = Kept()
    job = writer(history)
    event = sweep()
    job.note(event)
    assert history.outcomes == []
    assert len(list(job.run())) == 1
    (outcome,) = history.outcomes
    assert outcome.statistics() == {
        **asdict(event),
        "at": 997.5,
        "by": "w@test",
        "dry_run": False,
        "complete": True,
        "max_age_s": None,
    }
    assert list(job.run()) == []
    assert len(history.outcomes) == 1


@pytest.mark.parametrize(
    "event",
    [
        sweep(0),
        CleanupCompleted(target="results", trigger="schedule", expired_results_deleted=3),
        CleanupCompleted(target="broker", trigger="schedule"),
    ],
    ids=["nothing cleared", "results", "nothing deleted"],
)
def test_nothing_else_is_written(event: CleanupCompleted) -> None:
    """What changed nothing is no news; the cleanup of the results writes that itself."""
    history = Kept()
    job = writer(history)
    job.note(event)
    assert list(job.run()) == []
    assert history.outcomes == []


def test_a_cleanup_of_the_broker_that_deleted_something_is_written() -> None:
    """The broker may be another server, so the broker part has no history."""
    history = Kept()
    job = writer(history)
    event = CleanupCompleted(target="broker", trigger="schedule", broker_keys_cleaned=3)
    job.note(event)
    assert len(list(job.run())) == 1
    assert history.outcomes[0].event == event


def test_each_slice_writes_one() -> None:
    """So that a Redis that hangs is waited for once."""
    history = Kept()
    job = writer(history)
    for cleared in (1, 2, 3):
        job.note(sweep(cleared))
    for written, _ in enumerate(job.run(), start=1):
        assert len(history.outcomes) == written
    assert [outcome.event.revoked_tasks_cleared for outcome in history.outcomes] == [1, 2, 3]


def test_what_can_not_be_written_is_kept_within_bounds() -> None:
    """The newest of them, as many as the history holds, in their order."""
    history = Kept()
    history.is_away = True
    job = writer(history)
    for cleared in range(1, KEPT + 21):
        job.note(sweep(cleared))
    with pytest.raises(ConnectionError):
        list(job.run())
    history.is_away = False
    assert len(list(job.run())) == KEPT
    written = [outcome.event.revoked_tasks_cleared for outcome in history.outcomes]
    assert written == list(range(21, KEPT + 21))


def test_the_scheduler_runs_it_and_reports_its_failures() -> None:
    """Under its name."""
    history, events, ticks = Kept(), list[Event](), []
    history.is_away = True
    job = writer(history)
    job.note(sweep())
    scheduler = Scheduler(report=events.append, monotonic=lambda: 0.0)
    scheduler.add(job)
    scheduler.arm(lambda _delay_s, tick: ticks.append(tick))
    ticks[-1]()
    (failed,) = events
    assert isinstance(failed, PartFailed)
    assert failed.part == "history"
    history.is_away = False
    ticks[-1]()
    assert len(history.outcomes) == 1
