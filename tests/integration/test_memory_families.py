"""Processes that children start, the main process, and a child that keeps nobody waiting."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.harness.memory import (
    LEAK_MB,
    LIMIT,
    MB,
    Site,
    assert_unharmed,
    children,
    happened,
    memory_site,
)
from tests.harness.memory_app import HASTE
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

HELPER_MB = 150


@contextlib.contextmanager
def helper(site: Site, *, forked: bool = False) -> Iterator[tuple[int, int]]:
    """A child and the process that it started, which ends with the block."""
    child_pid, helper_pid = site.run("helper", HELPER_MB, forked)
    try:
        yield child_pid, helper_pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper_pid, signal.SIGKILL)


def read_again(worker: Worker, times: int = 5) -> None:
    happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + times)


def test_a_helper_counts_and_is_named_where_it_lives_on(site: Site) -> None:
    """150 MB in a process of the child's own: over the limit, and not told as freed."""
    worker = site.start("--concurrency=2")
    with helper(site) as (child_pid, helper_pid):
        over = happened(worker, "child_over_limit")[0]
        assert (over["child_pid"], over["processes"], over["metric"]) == (child_pid, 2, "pss")
        assert over["used_bytes"] > LIMIT
        recycled = happened(worker, "child_recycled")[0]
        assert recycled["child_pid"] == child_pid
        assert recycled["left_pids"] == [helper_pid]
        assert recycled["level"] == "warning"
        assert recycled["freed_bytes"] < LIMIT
        assert psutil.pid_exists(helper_pid)
        assert worker.stop() == 0
        assert_unharmed(worker)


def test_the_status_shows_what_a_child_started(server: RedisServer, tmp_path: Path) -> None:
    """By pid, command and memory. Its arguments can hold secrets, and are in no answer."""
    with memory_site(server, tmp_path, worker_guard_child_memory_limit=None) as site:
        worker = site.start("--concurrency=2")
        with helper(site) as (child_pid, helper_pid):

            def filled() -> list[dict[str, Any]]:
                return [
                    child
                    for child in children(worker)
                    if any(own["used_bytes"] > HELPER_MB * MB for own in child["own_processes"])
                ]

            (child,) = wait_for(filled, "the helper to be seen with its memory")
            assert (child["pid"], child["processes"]) == (child_pid, 2)
            (own,) = child["own_processes"]
            assert own["pid"] == helper_pid
            assert own["command"] == psutil.Process(helper_pid).name()[:15]
            assert own["metric"] == "rss"
            assert own["used_bytes"] < child["used_bytes"]
            answer = json.dumps(worker.ask("guard"))
            arguments = psutil.Process(helper_pid).cmdline()[1:]
            assert not any(argument in answer for argument in arguments if len(argument) > 2)
            assert worker.stop() == 0
            assert_unharmed(worker)


def test_a_forked_helper_hides_nothing(server: RedisServer, tmp_path: Path) -> None:
    """It shares its parent's pages, so that the USS of both is next to nothing."""
    # The child is read over the limit before it forks, too, but not so often.
    with memory_site(server, tmp_path, worker_guard_memory_strikes=20) as site:
        worker = site.start("--loglevel=DEBUG")
        with helper(site, forked=True) as (child_pid, helper_pid):
            requested = happened(worker, "child_recycle_requested")[0]
            assert requested["child_pid"] == child_pid
            assert requested["used_bytes"] > HELPER_MB * MB
            recycled = happened(worker, "child_recycled")[0]
            assert recycled["left_pids"] == [helper_pid]
            assert worker.stop() == 0


def test_a_helper_that_ends_with_its_child_is_not_named(site: Site) -> None:
    """Nothing is left, and all was freed."""
    worker = site.start()
    site.run("helper", 1)
    result = site.grow_at_work(worker)
    requested = happened(worker, "child_recycle_requested")[0]
    for process in psutil.Process(requested["child_pid"]).children():
        process.kill()
    site.free()
    result.get()
    recycled = happened(worker, "child_recycled")[0]
    assert (recycled["left_pids"], recycled["level"]) == ([], "info")
    assert recycled["freed_bytes"] == recycled["used_bytes"] - recycled["replacement_used_bytes"]


def test_by_rss_a_child_is_judged_alone(server: RedisServer, tmp_path: Path) -> None:
    """As the operator asked for; its processes are counted, and named."""
    conf = {"worker_guard_memory_metric": "rss", "worker_guard_child_memory_limit": 120 * MB}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--loglevel=DEBUG")
        with helper(site) as (child_pid, helper_pid):
            read_again(worker)
            (child,) = children(worker)
            assert child["processes"] == 2
            assert child["used_bytes"] < 120 * MB
            assert not worker.events("child_over_limit")
            assert site.run("fill", HELPER_MB) == child_pid
            over = happened(worker, "child_over_limit")[0]
            assert (over["metric"], over["processes"]) == ("rss", 2)
            assert happened(worker, "child_recycled")[0]["left_pids"] == [helper_pid]


def test_what_the_main_process_shares_with_its_children_is_its_own(
    server: RedisServer, tmp_path: Path
) -> None:
    """200 MB loaded before the fork are over a limit of 100 MB, whatever the metric."""
    conf: dict[str, Any] = {"worker_guard_parent_memory_limit": 100 * MB}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=2", preload_mb=200)
        over = happened(worker, "parent_over_limit")[0]
        assert over["used_bytes"] > 200 * MB
        assert over["at_start_bytes"] > over["limit_bytes"]
        parent = worker.ask("guard")["memory"]["parent"]
        assert parent["metric"] == "rss"
        assert parent["used_bytes"] == parent["rss_bytes"] > 200 * MB


def test_an_endless_task_keeps_no_other_child(server: RedisServer, tmp_path: Path) -> None:
    """One that has waited for its task for so long gives its place free; it is still followed."""
    with memory_site(server, tmp_path) as site:
        worker = site.start("--concurrency=3", environ={HASTE: "100"})
        result = site.send("wait", LEAK_MB)
        waiting = happened(worker, "child_recycle_waiting")[0]
        assert (waiting["for"], waiting["task_id"]) == ("task", result.id)
        pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_recycled")[0]["child_pid"] == pid
        stuck = next(c for c in children(worker) if c["pid"] == waiting["child_pid"])
        assert (stuck["leaving"], stuck["waiting_for"]) == (True, "task")
        assert stuck["used_bytes"] > LIMIT
        site.free()
        assert result.get() == waiting["child_pid"]
        wait_for(
            lambda: (
                waiting["child_pid"] in {e["child_pid"] for e in worker.events("child_recycled")}
            ),
            "the child to leave after its task",
        )
        assert worker.stop() == 0
        assert_unharmed(worker)
