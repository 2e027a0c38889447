"""What is watched and told: the main process, every kind of pool, the suspects, the events."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.memory import LEAK_MB, MB, Site, happened, memory_site
from tests.harness.redis_server import RedisServer
from tests.harness.workers import wait_for

SHARED = {"event", "level", "timestamp", "logger", "worker", "pid", "dry_run"}

#: The contract's table: level and further fields, and ``suspects`` beside them.
CONTRACT: dict[str, tuple[str, set[str]]] = {
    "memory_sampled": ("debug", {"parent", "children"}),
    "child_over_limit": ("warning", {"child_pid", "metric", "used_bytes", "limit_bytes"}),
    "child_recycle_requested": (
        "info",
        {
            "child_pid",
            "used_bytes",
            "limit_bytes",
            "busy",
            "task_id",
            "task_name",
            "suspects",
        },
    ),
    "child_recycled": (
        "info",
        {
            "child_pid",
            "replacement_pid",
            "waited_s",
            "used_bytes",
            "replacement_used_bytes",
            "freed_bytes",
        },
    ),
    "child_recycle_waiting": ("warning", {"child_pid", "waited_s", "task_id", "task_name"}),
    "recycling_suspended": ("error", {"reason", "baseline_bytes", "limit_bytes"}),
    "parent_over_limit": ("warning", {"used_bytes", "limit_bytes", "action"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def site(server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    with memory_site(server, tmp_path) as made:
        yield made


def assert_by_contract(events: list[dict[str, Any]], *names: str) -> None:
    """Each of these events is there, and all that are there are as the contract has them."""
    seen = set()
    for event in events:
        name = event["event"].removeprefix("worker_guard.")
        if name in CONTRACT:
            level, fields = CONTRACT[name]
            assert event["level"] == level, event
            assert set(event) == SHARED | fields, event
            seen.add(name)
    assert seen >= set(names)


def test_events_are_the_contracts(site: Site) -> None:
    """Levels and fields of what one recycle reports, and of the readings at debug level."""
    worker = site.start("--loglevel=DEBUG")
    site.send("wait", LEAK_MB)
    happened(worker, "child_recycle_requested")
    site.free()
    happened(worker, "child_recycled")
    assert_by_contract(
        worker.events(),
        "memory_sampled",
        "child_over_limit",
        "child_recycle_requested",
        "child_recycled",
    )
    sampled = worker.events("memory_sampled")[0]
    assert set(sampled["parent"]) == {"pid", "rss_bytes", "used_bytes"}
    assert set(sampled["children"][0]) == {"pid", "rss_bytes", "used_bytes"}
    assert sampled["parent"]["pid"] == sampled["pid"] == worker.process.pid


def test_above_debug_level_no_reading_is_logged(site: Site) -> None:
    """Nothing is logged for a reading that finds nothing."""
    worker = site.start()
    wait_for(lambda: worker.ask("guard")["memory"]["parent"], "a reading")
    names = {event["event"] for event in worker.events()}
    assert names == {"worker_guard.started"}


def test_the_leaking_task_is_the_first_suspect(server: RedisServer, tmp_path: Path) -> None:
    """Clean tasks run beside it, more often, in the same children."""
    tasks: list[tuple[str, list[Any]]] = [("leak", [20])] * 40 + [("clean", [])] * 200
    tasks += [("add", [1, 2])] * 100 + [("work", [0.02])] * 100 + [("pid", [])] * 100
    random.Random(1).shuffle(tasks)
    with memory_site(server, tmp_path, worker_guard_child_memory_limit="150MB") as site:
        worker = site.start("--concurrency=2")
        results = [site.send(task, *arguments) for task, arguments in tasks]
        for result in results:
            result.get(timeout=60)
        suspects = worker.ask("guard")["memory"]["suspects"]
        assert suspects[0]["task"] == "harness.leak", suspects
        assert suspects[0]["growth_bytes"] > 0
        assert suspects[0]["runs"] > 0
        assert len(suspects) <= 3
        requested = happened(worker, "child_recycle_requested")[-1]
        assert requested["suspects"][0]["task"] == "harness.leak"


def test_the_main_process_shuts_down_warmly_once(server: RedisServer, tmp_path: Path) -> None:
    """After its strikes: what runs is finished, the exit code is 0."""
    with memory_site(
        server,
        tmp_path,
        worker_guard_parent_memory_limit="300MB",
        worker_guard_parent_action="shutdown",
        worker_guard_child_memory_limit=None,
        worker_guard_memory_strikes=3,
    ) as site:
        worker = site.start()
        result = site.send("wait", 1)
        site.waiting()
        worker.ask("grow_parent", megabytes=400)
        over = happened(worker, "parent_over_limit")[0]
        assert (over["action"], over["limit_bytes"]) == ("shutdown", 300 * MB)
        assert over["used_bytes"] > 400 * MB
        site.free()
        assert worker.process.wait(60) == 0
        assert result.get(timeout=10) in site.waiting()
        assert len(worker.events("parent_over_limit")) == 1
        assert_by_contract(worker.events(), "parent_over_limit")
        assert worker.events("stopped")


@pytest.mark.parametrize(
    "pool",
    ["solo", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads", "gevent"))],
)
def test_a_pool_without_children_watches_the_main_process(
    server: RedisServer, tmp_path: Path, pool: str
) -> None:
    """The start event says that there are no children; the main process is watched, and logged."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    with memory_site(server, tmp_path, worker_guard_parent_memory_limit="20MB") as site:
        worker = site.start("--pool", pool)
        parts = worker.events("started")[0]["parts"]
        assert parts["memory"] == "on"
        assert parts["recycling"] == f"the {pool} pool has no children"
        assert happened(worker, "parent_over_limit")[0]["action"] == "log"
        described = worker.ask("guard")["memory"]
        assert described["children"] == []
        assert described["parent"]["rss_bytes"] > 20 * MB
        assert site.run("add", 1, 2) == 3
        assert worker.stop() == 0
        assert len(worker.events("parent_over_limit")) == 1
        assert "part_failed" not in worker.text()


@pytest.mark.slow
def test_a_task_that_never_ends_is_told_and_left_alone(site: Site) -> None:
    """A line each minute with the task's name; nothing is killed."""
    worker = site.start("--concurrency=2")
    result = site.send("wait", LEAK_MB)
    waiting = happened_within(worker, "child_recycle_waiting", 2, 300)
    assert [event["task_id"] for event in waiting] == [result.id] * 2
    assert waiting[0]["task_name"] == "harness.wait"
    assert waiting[0]["waited_s"] >= 60
    assert waiting[1]["waited_s"] >= 120
    assert not worker.events("child_recycled")
    assert_by_contract(worker.events(), "child_recycle_waiting")
    site.free()
    assert result.get(timeout=60) == waiting[0]["child_pid"]
    happened(worker, "child_recycled")


def happened_within(worker: Any, event: str, count: int, timeout_s: float) -> list[dict[str, Any]]:
    return wait_for(
        lambda: events if len(events := worker.events(event)) >= count else [],
        f"{count} {event}",
        timeout_s,
    )
