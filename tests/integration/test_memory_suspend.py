"""When recycling gains nothing, or costs a child: it stops, says so, and is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.memory import (
    LEAK_MB,
    LIMIT,
    MB,
    assert_unharmed,
    children,
    happened,
    memory_site,
)
from tests.harness.memory_app import ALWAYS_GAINS, HASTE, MODEL_LOADS, SLOW_STARTS, START_S
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for


def alive(worker: Worker) -> set[int]:
    """The processes that the main process has forked."""
    forked = psutil.Process(worker.process.pid).children()
    return {child.pid for child in forked if child.status() != psutil.STATUS_ZOMBIE}


def read_again(worker: Worker, times: int = 5) -> None:
    happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + times)


def suspended(worker: Worker) -> dict[str, Any] | None:
    found: dict[str, Any] | None = worker.ask("guard")["memory"]["suspended"]
    return found


def test_children_that_start_too_slowly_are_not_recycled(
    server: RedisServer, tmp_path: Path
) -> None:
    """Celery kills a replacement that takes 6 s, again and again; the first ones it waits for."""
    with memory_site(server, tmp_path, worker_proc_alive_timeout=4.0) as site:
        site.redis.set(START_S, 6)
        worker = site.start("--concurrency=2", "--loglevel=DEBUG", environ={SLOW_STARTS: "1"})
        pid = site.run("fill", LEAK_MB)
        event = happened(worker, "recycling_suspended")[0]
        assert event["reason"] == "replacement_not_up"
        assert event["setting"] == "worker_proc_alive_timeout"
        assert (event["baseline_bytes"], event["limit_bytes"]) == (None, LIMIT)
        before = alive(worker)
        happened(worker, "child_over_limit")
        read_again(worker, 10)
        assert not worker.events("child_recycle_requested")
        state = suspended(worker)
        assert state is not None
        assert 0 < state.pop("retry_in_s") <= 900
        fields = ("reason", "baseline_bytes", "limit_bytes", "setting")
        assert state == {name: event[name] for name in fields}
        assert {site.run("add", 1, 2) for _ in range(10)} == {3}
        assert pid in alive(worker) == before
        assert worker.stop() == 0
        assert len(worker.events("recycling_suspended")) == 1
        assert_unharmed(worker)


def test_replacements_that_start_too_slowly_come_back(server: RedisServer, tmp_path: Path) -> None:
    """The first ones were fast: the kill is told, the next one gets longer, the place is filled."""
    with memory_site(server, tmp_path, worker_proc_alive_timeout=5.0) as site:
        worker = site.start("--concurrency=2", "--loglevel=DEBUG", environ={SLOW_STARTS: "1"})
        site.run("add", 1, 2)
        wait_for(lambda: len(children(worker)) == 2, "both children")
        assert suspended(worker) is None
        site.redis.set(START_S, 8)
        pid = site.run("fill", LEAK_MB)
        happened(worker, "child_recycle_requested")
        event = happened(worker, "recycling_suspended")[0]
        assert event["reason"] == "replacement_not_up"
        assert event["setting"] == "worker_proc_alive_timeout"
        state = suspended(worker)
        assert state is not None
        assert state["reason"] == "replacement_not_up"
        recycled = happened(worker, "child_recycled")[0]
        assert recycled["child_pid"] == pid
        assert worker.text().count("Timed out waiting for UP message") == 1
        assert len(alive(worker)) == 2
        assert recycled["replacement_pid"] in alive(worker)
        for _ in range(5):
            site.run("fill", LEAK_MB)
        read_again(worker, 10)
        assert len(worker.events("child_recycle_requested")) == 1
        assert len(worker.events("recycling_suspended")) == 1
        assert worker.stop() == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_broker_that_is_away_makes_no_slow_child(
    server: RedisServer, tmp_path: Path, late: bool
) -> None:
    """The children are up long before they are heard, at the start and at a lost connection."""
    with (
        RedisServer() as broker,
        memory_site(
            server, tmp_path, broker_url=broker.url(), worker_proc_alive_timeout=8.0
        ) as site,
    ):
        if not late:
            broker.kill()
            worker = site.launch("--concurrency=2")
            worker.logged("Trying again in 6.00 seconds")  # after 2 and 4 s
            broker.start()
            worker.ready()
        else:
            worker = site.start("--concurrency=2")
            site.run("fill", LEAK_MB)
            happened(worker, "child_recycled")
            broker.kill()
            worker.logged("onnection to broker lost")
            broker.start()
            wait_for(lambda: worker.text().count("Connected to") >= 2, "the worker to be back")
        before = len(worker.events("child_recycled"))
        site.run("fill", LEAK_MB)
        happened(worker, "child_recycled", before + 1)
        assert not worker.events("recycling_suspended")
        assert worker.stop() == 0
        assert "Timed out waiting for UP message" not in worker.text()


def test_a_suspension_is_tried_again_and_ends(server: RedisServer, tmp_path: Path) -> None:
    """Children that started slowly start fast now; one is tried, and the rest follows."""
    with memory_site(server, tmp_path, worker_proc_alive_timeout=6.0) as site:
        site.redis.set(START_S, 5)
        environ = {SLOW_STARTS: "1", HASTE: "100"}
        worker = site.start("--concurrency=1", environ=environ)
        happened(worker, "recycling_suspended")
        site.redis.delete(START_S)
        pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_recycled")[0]["child_pid"] == pid
        resumed = happened(worker, "recycling_resumed")[0]
        assert resumed["suspended_s"] >= 9
        assert suspended(worker) is None
        next_pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_recycled", 2)[1]["child_pid"] == next_pid
        assert worker.stop() == 0
        assert_unharmed(worker)


def test_a_model_that_is_loaded_lazily_is_loaded_four_times_at_most(
    server: RedisServer, tmp_path: Path
) -> None:
    """100 MB loaded by the first task, a limit of 90 MB: each new child holds them again."""
    with memory_site(server, tmp_path, worker_guard_child_memory_limit=90 * MB) as site:
        worker = site.start("--loglevel=DEBUG")

        def ran_on() -> bool:
            site.run("infer", 100)
            return bool(worker.events("recycling_suspended"))

        wait_for(ran_on, "the suspension")
        event = worker.events("recycling_suspended")[0]
        assert event["reason"] == "regrows_at_once"
        assert event["setting"] == "worker_guard_child_memory_limit"
        assert event["baseline_bytes"] > event["limit_bytes"] == 90 * MB
        for _ in range(100):
            site.run("infer", 100)
        read_again(worker)
        assert int(site.redis.get(MODEL_LOADS)) <= 4
        assert not worker.events("recycling_resumed")
        assert worker.stop() == 0
        assert_unharmed(worker)


def test_a_leak_is_told_from_a_model(server: RedisServer, tmp_path: Path) -> None:
    """Each task leaks more than the room; it goes on growing, so that recycling goes on, too."""
    with memory_site(server, tmp_path) as site:
        worker = site.start("--loglevel=DEBUG")

        def recycled_on() -> bool:
            site.run("work", 0.01, LEAK_MB)
            return len(worker.events("child_recycled")) >= 15

        wait_for(recycled_on, "15 replacements", 240)
        resumed = len(worker.events("recycling_resumed"))
        assert len(worker.events("recycling_suspended")) == resumed <= 2
        assert worker.stop() == 0
        assert_unharmed(worker)


@pytest.mark.slow
def test_lost_connections_under_load_suspend_nothing(tmp_path: Path) -> None:
    """A replacement that runs a job at once is heard late, with what that job holds."""
    with RedisServer() as results, RedisServer() as broker:
        conf = {"broker_url": broker.url(), "task_acks_late": True}
        with memory_site(results, tmp_path, **conf) as site:
            worker = site.start("--concurrency=4", environ={ALWAYS_GAINS: "1"})
            for _ in range(8):
                recycled = len(worker.events("child_recycled"))
                lost = worker.text().count("onnection to broker lost")
                for _ in range(12):
                    site.send("work", 0.05, LEAK_MB)
                happened(worker, "child_recycle_requested", recycled + 1)
                for kind in ("normal", "pubsub"):
                    broker.client.client_kill_filter(_type=kind, skipme=True)
                wait_for(
                    lambda lost=lost: worker.text().count("onnection to broker lost") > lost,  # type: ignore[misc]
                    "the connection to be lost",
                )
                happened(worker, "child_recycled", recycled + 1)
            assert not worker.events("recycling_suspended")
