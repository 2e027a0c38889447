"""The part that follows the loop: what it hears, what it writes, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.concurrency import ALIASES
from celery.worker import state
from celery.worker.consumer import consumer

from tests.harness.context import make_context
from worker_guard.events import Event, PartFailed
from worker_guard.health.part import FLOW_S, HealthPart
from worker_guard.settings import Settings
from worker_guard.status_model import GuardStatus, HealthStatus, StallStatus


class Site:
    """A part around a worker that is only a name, with a clock that stands."""

    def __init__(self, folder: Path, pool: str = "solo", **settings: Any) -> None:
        self.path = folder / "w.json"
        self.now = 100.0
        self.stall: StallStatus | None = None
        self.events: list[Event] = []
        module, _, name = ALIASES[pool].partition(":")
        worker = SimpleNamespace(
            hostname="w@host",
            pool=None,
            pool_cls=type(name, (), {"__module__": module}),
        )
        file = {"heartbeat_file": str(folder / "%n.json")}
        self.context = make_context(
            worker,
            Settings(**{**file, **settings}),
            heard=self.events.append,
            monotonic=lambda: self.now,
            now=lambda: self.now,
            status=lambda: GuardStatus(version="0", stall=self.stall),
        )
        self.part = HealthPart(self.context)
        for job in self.part.jobs:
            self.context.scheduler.add(job)

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def health(self) -> HealthStatus:
        status: HealthStatus = self.part.status(quick=True)["health"]
        return status

    def connect(self) -> None:
        self.part.connected()
        self.context.scheduler.arm(lambda _delay_s, _tick: None)


@contextmanager
def started(folder: Path, pool: str = "solo", **settings: Any) -> Iterator[Site]:
    site = Site(folder, pool, **settings)
    site.part.start()
    try:
        yield site
    finally:
        site.part.stop(cold=False)


def test_it_is_told_from_the_start(tmp_path: Path) -> None:
    """Starting, then ready, then stopping; the file has the worker's own name."""
    with started(tmp_path) as site:
        assert (site.record()["state"], site.record()["max_age_s"]) == ("starting", 300.0)
        site.connect()
        assert site.health() == HealthStatus(state="ready", turned_s=0.0)
    assert (site.record()["state"], site.record()["max_age_s"]) == ("stopping", None)
    assert site.health().why_not == "it is shutting down"


def test_a_lost_broker(tmp_path: Path) -> None:
    """The next turn of the loop writes it; a turn with a broker writes nothing."""
    with started(tmp_path) as site:
        site.connect()
        state.maybe_shutdown()
        assert site.record()["state"] == "starting"  # the timer's affair
        site.context.scheduler.disarm()
        consumer.maybe_shutdown()
        assert site.record()["state"] == "disconnected"


def test_a_stalled_consumer(tmp_path: Path) -> None:
    """It is alive and not ready; the part that knows can be off."""
    with started(tmp_path) as site:
        site.connect()
        site.stall = StallStatus(stalled=False)
        assert site.health().ready
        site.stall = replace(site.stall, stalled=True)
        assert (site.health().state, site.health().alive, site.health().ready) == (
            "stalled",
            True,
            False,
        )


def test_a_loop_that_does_not_turn(tmp_path: Path) -> None:
    """By the last turn, which a thread that answers probes can see."""
    with started(tmp_path, "threads") as site:
        site.connect()
        site.now += 31
        assert site.health().why_not == "its main loop has not turned for 31 s (allowed: 30 s)"
        assert not site.health().alive
        state.maybe_shutdown()
        assert site.health().alive


def test_a_request_to_stop_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the turn that ends the loop, since no other follows."""
    with started(tmp_path) as site:
        site.connect()
        monkeypatch.setattr(state, "should_stop", 0)
        with pytest.raises(SystemExit):
            state.maybe_shutdown()
        assert site.record()["state"] == "stopping"
        monkeypatch.setattr(state, "should_stop", None)


def test_a_task_of_a_solo_pool(tmp_path: Path) -> None:
    """Its begin is written at once; of a flow of short ones, one each second."""
    with started(tmp_path) as site:
        site.connect()
        signals.task_prerun.send(sender=None)
        began = site.record()
        assert began["task_since"] == "1970-01-01T00:01:40.000000Z"
        assert began["max_age_s"] is None
        site.now += 40
        assert site.health().alive
        assert site.health().task_s == 40.0
        signals.task_postrun.send(sender=None)
        assert site.health().task_s is None

        signals.task_prerun.send(sender=None)
        second = site.record()
        assert second["monotonic"] == 140.0
        signals.task_postrun.send(sender=None)
        site.now += FLOW_S / 2
        signals.task_prerun.send(sender=None)
        assert site.record() == second
        signals.task_postrun.send(sender=None)
        site.now += FLOW_S
        signals.task_prerun.send(sender=None)
        assert site.record()["monotonic"] == site.now


def test_a_task_inside_a_task_of_a_solo_pool(tmp_path: Path) -> None:
    """``apply`` sends the same signals; the outer task holds the loop on."""
    with started(tmp_path) as site:
        site.connect()
        signals.task_prerun.send(sender=None)
        site.now += 1
        signals.task_prerun.send(sender=None)
        signals.task_postrun.send(sender=None)
        site.now += 40
        assert site.health().alive
        assert site.health().task_s == 41.0
        signals.task_postrun.send(sender=None)
        assert site.health().task_s is None
        assert site.health().alive  # before the loop turns: it may run the next task at once


def test_a_long_try_to_connect(tmp_path: Path) -> None:
    """Once it is connected it gets the whole time of a turn."""
    with started(tmp_path, "threads") as site:
        site.now += 200
        assert site.health().alive
        site.connect()
        assert site.health().alive


def test_in_other_pools_a_task_holds_nothing(tmp_path: Path) -> None:
    """The signals are not even connected."""
    with started(tmp_path, "threads") as site:
        site.connect()
        signals.task_prerun.send(sender=None)
        assert site.health().task_s is None


def test_a_pool_that_is_not_celerys(tmp_path: Path) -> None:
    """It may run each task in the loop."""
    site = Site(tmp_path)

    def run() -> float | None:
        site.now += 40
        assert site.health().alive
        return site.health().task_s

    worker = site.context.worker
    worker.pool, worker.pool_cls = SimpleNamespace(on_apply=run), Site
    site.part.start()
    site.connect()
    assert worker.pool.on_apply() == 40.0
    assert site.health().alive
    site.part.stop(cold=False)
    assert worker.pool.on_apply is run


def test_when_it_last_took_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a count that grows; unknown before the first."""
    with started(tmp_path) as site:
        site.now += 10
        assert site.health().last_message_s is None
        monkeypatch.setattr(state, "all_total_count", [state.all_total_count[0] + 3])
        assert site.health().last_message_s == 0.0
        site.now += 7
        assert site.health().last_message_s == 7.0


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The failure is the job's, told once for each pause, however often tasks begin."""
    site = Site(tmp_path / "none")
    site.part.start()
    for _ in range(5):
        signals.task_prerun.send(sender=None)
        consumer.maybe_shutdown()
    assert [event.part for event in site.events if isinstance(event, PartFailed)] == ["heartbeat"]
    (tmp_path / "none").mkdir()
    site.now += 20
    consumer.maybe_shutdown()
    assert site.record()["worker"] == "w@host"
    site.part.stop(cold=True)


def test_no_error_leaves_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end the worker, or make it drop its connection."""
    with started(tmp_path) as site:
        monkeypatch.setattr(site.context.scheduler, "turn", lambda: 1 / 0)
        state.maybe_shutdown()
        state.maybe_shutdown()
        (failed,) = site.events
        assert isinstance(failed, PartFailed)
        assert failed.part == "health"


def test_it_leaves_celery_as_it_was(tmp_path: Path) -> None:
    """Both names of the function that a loop calls, and the signals."""
    before = state.maybe_shutdown, consumer.maybe_shutdown
    receivers = len(signals.task_prerun.receivers or ())
    with started(tmp_path):
        assert state.maybe_shutdown is not before[0]
        assert consumer.maybe_shutdown is not before[1]
    assert (state.maybe_shutdown, consumer.maybe_shutdown) == before
    assert len(signals.task_prerun.receivers or ()) == receivers


def test_the_file_goes_with_the_process(tmp_path: Path) -> None:
    """It is removed at exit, but not if a successor has replaced it."""
    with started(tmp_path) as site:
        pass
    site.part._remove()
    assert not site.path.exists()
    with started(tmp_path) as site:
        pass
    site.path.unlink()
    site.path.write_text("a successor's")
    site.part._remove()
    assert site.path.exists()


def test_without_a_file(tmp_path: Path) -> None:
    """The part is on all the same, for the probes by HTTP."""
    with started(tmp_path, heartbeat_file=None) as site:
        assert site.part.jobs == []
        assert site.part.states == {
            "health": "on",
            "heartbeat": "worker_guard_heartbeat_file is None",
        }
        signals.task_prerun.send(sender=None)
        assert site.health().task_s == 0.0
