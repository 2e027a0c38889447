"""Real workers that are to stay within a limit as a whole."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.cgroup import limited_group
from tests.harness.memory import (
    MB,
    assert_unharmed,
    children,
    happened,
    memory_site,
)
from tests.harness.memory_app import GROW
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

#: A worker of the harness with three new children uses about 90 MB.
TOTAL = 250 * MB

CONF: dict[str, Any] = {
    "worker_guard_child_memory_limit": None,
    "worker_guard_total_memory_limit": TOTAL,
}


def pss(worker: Worker) -> int:
    """What the worker uses with all its processes."""
    main, found = psutil.Process(worker.process.pid), 0
    for process in (main, *main.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.memory_full_info().pss
    return found


def test_the_worker_stays_within_its_memory_and_loses_no_task(
    server: RedisServer, tmp_path: Path
) -> None:
    """In a real cgroup of version 1, where the kernel would kill a child; skipped where none is.

    The tasks leak 600 MB in all, by 60 MB at a time; the cgroup has 450 MB, the limit is 270 MB.
    """
    conf = {**CONF, "worker_guard_total_memory_limit": "60%"}
    with limited_group(450 * MB) as group, memory_site(server, tmp_path, **conf) as site:
        worker = site.launch("--concurrency=3")
        group.add(worker.process.pid)
        worker.ready()
        for wave in range(1, 11):
            for _ in range(6):
                site.send("work", 0.05, 10)
            wait_for(lambda: len(site.finished()) == 6 * wave, f"wave {wave}")  # noqa: B023
            wait_for(lambda: pss(worker) < 270 * MB, "the worker to be within its limit")
        assert happened(worker, "child_recycled")
        memory = worker.ask("guard")["memory"]
        # The kernel limits whole pages.
        assert 269 * MB < memory["total_limit_bytes"] <= 270 * MB
        assert 0 < memory["total_bytes"] < 450 * MB
        for event in worker.events("child_recycle_requested"):
            assert event["limit"] == "total"
            assert event["limit_bytes"] == memory["total_limit_bytes"]
        assert worker.stop() == 0
        assert not worker.events("child_killed")
        assert set(site.started().values()) == set(site.finished().values()) == {1}
        assert_unharmed(worker)


def test_the_biggest_idle_child_leaves_first(server: RedisServer, tmp_path: Path) -> None:
    """Although a busy one holds more. A new one that holds nothing stays."""
    with memory_site(server, tmp_path, **CONF) as site:
        worker = site.start("--concurrency=3")
        busy = site.send("wait", 0)
        busy_pid = site.runs(worker, busy)
        idle_pid = site.run("fill", 60)
        assert busy_pid != idle_pid
        site.redis.set(GROW, 180)
        requested = happened(worker, "child_recycle_requested")[0]
        assert (requested["child_pid"], requested["busy"]) == (idle_pid, False)
        assert (requested["limit"], requested["limit_bytes"]) == ("total", TOTAL)
        assert requested["used_bytes"] > 60 * MB
        assert happened(worker, "child_recycled")[0]["child_pid"] == idle_pid
        # The worker is still over its limit, so the busy one is next, after its task.
        requested = happened(worker, "child_recycle_requested", 2)[1]
        assert (requested["child_pid"], requested["task_id"]) == (busy_pid, busy.id)
        site.free()
        assert busy.get() == busy_pid
        assert happened(worker, "child_recycled", 2)[1]["child_pid"] == busy_pid
        assert len(children(worker)) == 3
        assert worker.stop() == 0
        assert len(worker.events("child_recycle_requested")) == 2
        assert_unharmed(worker)


def test_a_main_process_over_it_alone_is_told_once(server: RedisServer, tmp_path: Path) -> None:
    """Its children leave for nobody, however much they hold."""
    with memory_site(server, tmp_path, **CONF) as site:
        worker = site.start("--concurrency=2", "--loglevel=DEBUG", preload_mb=300)
        pid = site.run("fill", 60)
        told = happened(worker, "recycling_suspended")[0]
        assert told["reason"] == "baseline_over_limit"
        assert told["setting"] == "worker_guard_total_memory_limit"
        assert told["baseline_bytes"] > told["limit_bytes"] == TOTAL
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 10)
        assert pid in {child["pid"] for child in children(worker)}
        suspended = worker.ask("guard")["memory"]["suspended"]
        assert suspended["setting"] == "worker_guard_total_memory_limit"
        assert worker.stop() == 0
        assert len(worker.events("recycling_suspended")) == 1
        assert not worker.events("child_recycle_requested")


@pytest.mark.slow
def test_a_limit_below_what_new_children_use_recycles_nobody_for_ever(
    server: RedisServer, tmp_path: Path
) -> None:
    """It is suspended when new children are known to use too much."""
    conf = {**CONF, "worker_guard_total_memory_limit": 75 * MB}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=3", "--loglevel=DEBUG")
        told = happened(worker, "recycling_suspended")[0]
        assert told["baseline_bytes"] > told["limit_bytes"] == 75 * MB
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 10)
        assert worker.stop() == 0
        assert not worker.events("child_recycle_requested")


@pytest.mark.slow
def test_a_dry_run_names_the_child_once(server: RedisServer, tmp_path: Path) -> None:
    """And leaves it where it is."""
    with memory_site(server, tmp_path, **CONF) as site:
        worker = site.start("--concurrency=2", "--guard-dry-run", "--loglevel=DEBUG")
        pid = site.run("fill", 220)
        assert happened(worker, "child_recycle_requested")[0]["child_pid"] == pid
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 10)
        assert pid in {child["pid"] for child in children(worker)}
        assert worker.stop() == 0
        assert len(worker.events("child_recycle_requested")) == 1


@pytest.mark.slow
def test_the_smaller_limit_comes_first(server: RedisServer, tmp_path: Path) -> None:
    """A child never reaches its own limit where that of the worker is below it."""
    with memory_site(
        server, tmp_path, **{**CONF, "worker_guard_child_memory_limit": TOTAL}
    ) as site:
        worker = site.start("--concurrency=2")
        site.run("fill", 220)
        assert happened(worker, "child_recycle_requested")[0]["limit"] == "total"
        assert worker.stop() == 0
        assert not worker.events("child_over_limit")
