"""Alerts, raised and cleared by real load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeFleet
from tests.harness.memory import LEAK_MB, memory_site
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

EXPIRED = {f"expired-{n}" for n in range(15)}


def told(worker: Worker) -> list[tuple[str, str, float]]:
    """What the worker's alerts said: raised or cleared, which one, at which threshold."""
    return [
        (e["event"].removeprefix("worker_guard.alert_"), e["alert"], e["threshold"])
        for e in worker.events()
        if "alert_" in e["event"]
    ]


def active(worker: Worker) -> list[dict[str, Any]]:
    """The worker's alerts, by ``inspect guard``."""
    found: list[dict[str, Any]] = worker.ask("guard")["alerts"]
    return found


def fill(server: RedisServer) -> None:
    """Fill the server to nine tenths of its limit, key by key: a large one needs room twice."""
    info: dict[str, Any] = server.client.info("memory")
    while info["used_memory"] < 0.9 * info["maxmemory"]:
        server.client.rpush("ballast", b"x" * 1_000_000)
        info = server.client.info("memory")


def test_revoked_tasks(make_fleet: MakeFleet) -> None:
    """Not raised of ids that are about to be cleared; raised when that can't be done."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), worker_guard_revoked_grace=3.0)
        fleet.expire(*EXPIRED)
        worker = fleet.start("w", "--without-mingle")
        wait_for(lambda: worker.ask("guard")["revoked"]["expired"] == 15, "the ids to expire")
        assert told(worker) == []
        results.kill()
        wait_for(lambda: told(worker), "the alert")
        (alert,) = active(worker)
        assert alert.keys() == {"alert", "value", "threshold", "since_s"}
        assert (alert["alert"], alert["value"], alert["threshold"]) == ("revoked_tasks", 15, 10)
        assert alert["since_s"] >= 0
        results.start()
        wait_for(lambda: worker.cleared() == 15, "the sweep")
        wait_for(lambda: len(told(worker)) == 2, "the alert to be cleared")
    assert told(worker) == [("raised", "revoked_tasks", 10), ("cleared", "revoked_tasks", 10)]
    (raised,), (cleared,) = worker.events("alert_raised"), worker.events("alert_cleared")
    assert (raised["level"], raised["value"]) == ("warning", 15)
    assert (cleared["level"], cleared["value"]) == ("info", 0)


def test_revoked_tasks_in_a_dry_run(make_fleet: MakeFleet) -> None:
    """What would have been cleared raises no alert, as it would not without the dry run."""
    fleet = make_fleet()
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle", "--guard-dry-run")
    wait_for(lambda: worker.ask("guard")["revoked"]["would_clear"] == 15, "the sweep")
    sweeps = worker.ask("guard")["totals"]["sweeps"]
    wait_for(lambda: worker.ask("guard")["totals"]["sweeps"] > sweeps + 2, "more sweeps")
    assert told(worker) == []
    assert len(worker.revoked()) == 15


def test_operators_revocations_raise_no_alert(make_fleet: MakeFleet) -> None:
    """They are meant to be there."""
    fleet = make_fleet(worker_guard_alert_revoked=0)
    worker = fleet.start("w", "--without-mingle")
    fleet.app.control.revoke(["a", "b", "c"])
    wait_for(lambda: len(worker.revoked()) == 3, "the revocations")
    sweeps = worker.ask("guard")["totals"]["sweeps"]
    wait_for(lambda: worker.ask("guard")["totals"]["sweeps"] > sweeps + 3, "more sweeps")
    assert told(worker) == []


def test_none_switches_an_alert_off(make_fleet: MakeFleet) -> None:
    """The others go on; the start event says which part has nothing left to look at."""
    fleet = make_fleet(worker_guard_alert_revoked=None, worker_guard_alert_redis_memory=None)
    fleet.app.control.revoke([f"id-{n}" for n in range(20)])
    worker = fleet.start("w", "--without-mingle")
    parts = worker.events("started")[0]["parts"]
    assert parts["redis_memory"] == "worker_guard_alert_redis_memory is None"
    assert parts["alerts"] == "on"
    fleet.app.control.revoke([f"id-{n}" for n in range(20)])
    wait_for(lambda: len(worker.revoked()) == 20, "the revocations")
    sweeps = worker.ask("guard")["totals"]["sweeps"]
    wait_for(lambda: worker.ask("guard")["totals"]["sweeps"] > sweeps + 3, "more sweeps")
    assert (active(worker), told(worker)) == ([], [])


def test_redis_memory(make_fleet: MakeFleet) -> None:
    """Raised when a Redis with a limit fills, cleared when it is emptied."""
    with RedisServer("--maxmemory", "64mb") as results:
        fleet = make_fleet(result_backend=results.url(), task_ignore_result=True)
        worker = fleet.start("w", "--without-mingle")
        fill(results)
        wait_for(lambda: told(worker), "the alert")
        (alert,) = active(worker)
        assert (alert["alert"], alert["threshold"]) == ("redis_memory", 0.8)
        assert 0.8 < alert["value"] < 1.1
        results.client.delete("ballast")
        wait_for(lambda: len(told(worker)) > 1, "the alert to be cleared")
        assert told(worker) == [
            ("raised", "redis_memory", 0.8), ("cleared", "redis_memory", 0.8),
        ]  # fmt: skip
        assert worker.events("alert_cleared")[0]["value"] < 0.72
        assert active(worker) == []


def test_without_a_limit_the_machines_memory_counts(make_fleet: MakeFleet) -> None:
    """A Redis without ``maxmemory`` is held against ``total_system_memory``."""
    fleet = make_fleet(worker_guard_alert_redis_memory=0.0)
    worker = fleet.start("w", "--without-mingle")
    wait_for(lambda: told(worker), "the alert")
    assert 0 < worker.events("alert_raised")[0]["value"] < 0.5


def test_a_redis_that_hangs(make_fleet: MakeFleet) -> None:
    """The part fails with growing pauses, an alert stays as it was, and tasks go on."""
    with RedisServer("--maxmemory", "64mb") as results:
        fleet = make_fleet(
            result_backend=results.url(),
            task_ignore_result=True,
            worker_guard_results_schedule=None,
        )
        fill(results)
        worker = fleet.start("w", "--without-mingle")
        wait_for(lambda: told(worker), "the alert")
        results.pause()

        def pauses() -> list[float]:
            failures = worker.events("part_failed")
            return [e["retry_in_s"] for e in failures if e["part"] == "redis_memory"]

        wait_for(lambda: len(pauses()) > 2, "failures")
        assert pauses() == sorted(set(pauses()))
        assert [alert["alert"] for alert in active(worker)] == ["redis_memory"]
        fleet.send("add", 1, 2, task_id="runs")
        worker.logged("harness.add[runs] succeeded")
        results.resume()
        results.client.delete("ballast")
        wait_for(lambda: len(told(worker)) > 1, "the alert to be cleared")
        assert told(worker)[-1] == ("cleared", "redis_memory", 0.8)


@pytest.mark.parametrize("options", [(), ("--guard-dry-run",)], ids=["real", "dry"])
def test_recycles_per_hour(
    redis_server: RedisServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """One recycle is the guard's work, a second one within the hour is told; dry ones count too."""
    with memory_site(
        redis_server, tmp_path, worker_guard_interval=0.2, worker_guard_revoked_grace=0.0
    ) as site:
        children = 2 if options else 1  # a dry run counts a child once
        worker = site.start(*options, f"--concurrency={children}")
        kind = "child_recycle_requested" if options else "child_recycled"
        site.fleet.send("leak", LEAK_MB)
        wait_for(lambda: len(worker.events(kind)) == 1, "the first recycle")
        sweeps = worker.ask("guard")["totals"]["sweeps"]
        wait_for(lambda: worker.ask("guard")["totals"]["sweeps"] > sweeps + 3, "looks")
        assert told(worker) == []
        # At once in all children, so that one that was not over its limit is now.
        for _ in range(children):
            site.fleet.send("wait", LEAK_MB)
        site.waiting(children)
        site.free()
        wait_for(lambda: told(worker), "the alert")
        assert told(worker) == [("raised", "recycles_per_hour", 1)]
        assert active(worker)[0]["value"] >= 2
