"""What is watched and told: the main process, every kind of pool, the suspects, the events."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from celery.app.defaults import NAMESPACES

from tests.harness.memory import (
    LEAK_MB,
    MB,
    Site,
    assert_unharmed,
    file_broker,
    happened,
    memory_site,
)
from tests.harness.memory_app import FAIL_AT_START
from tests.harness.redis_server import RedisServer
from tests.harness.workers import wait_for

SHARED = {"event", "level", "timestamp", "logger", "worker", "pid", "dry_run"}

#: The contract's table: level and further fields, and beside them ``suspects`` and
#: ``at_start_bytes``.
CONTRACT: dict[str, tuple[str, set[str]]] = {
    "memory_sampled": ("debug", {"parent", "children"}),
    "child_over_limit": (
        "warning",
        {"child_pid", "metric", "used_bytes", "limit_bytes", "processes"},
    ),
    "child_recycle_requested": (
        "info",
        {
            "child_pid",
            "used_bytes",
            "limit_bytes",
            "limit",
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
            "left_pids",
        },
    ),
    "child_recycle_waiting": (
        "warning",
        {"child_pid", "waited_s", "for", "task_id", "task_name"},
    ),
    "recycling_suspended": ("error", {"reason", "baseline_bytes", "limit_bytes", "setting"}),
    "recycling_resumed": ("info", {"suspended_s"}),
    "parent_over_limit": ("warning", {"used_bytes", "limit_bytes", "action", "at_start_bytes"}),
}


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
    site.grow_at_work(worker)
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
    # The first reading can come before the child is up.
    sampled = next(event for event in worker.events("memory_sampled") if event["children"])
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
        assert over["at_start_bytes"] < over["limit_bytes"]
        site.free()
        assert worker.ends() == 0
        assert result.get(timeout=10) in site.waiting()
        assert len(worker.events("parent_over_limit")) == 1
        assert_by_contract(worker.events(), "parent_over_limit")
        assert worker.events("stopped")


@pytest.mark.parametrize(
    "pool",
    ["solo", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("threads", "gevent"))],
)
def test_the_main_process_shuts_down_warmly_in_every_pool(
    server: RedisServer, tmp_path: Path, pool: str
) -> None:
    """A task that runs there is finished first (solo's ticks wait for it anyway)."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    conf: dict[str, Any] = {"worker_guard_parent_memory_limit": "400MB"}
    conf["worker_guard_parent_action"] = "shutdown"
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--pool", pool, "--concurrency=2")
        waits = None if pool == "solo" else site.send("wait", 1)
        if waits:
            site.waiting()
        filled = site.send("fill", 500)
        assert happened(worker, "parent_over_limit")[0]["action"] == "shutdown"
        site.free()
        assert worker.ends() == 0
        assert filled.get(timeout=10) == worker.process.pid
        if waits:
            assert waits.get(timeout=10) == worker.process.pid
        assert len(worker.events("parent_over_limit")) == 1
        assert worker.events("stopped")


def test_a_dry_run_lets_the_main_process_go_on(server: RedisServer, tmp_path: Path) -> None:
    """It says what it would do."""
    conf: dict[str, Any] = {"worker_guard_parent_memory_limit": "20MB"}
    conf["worker_guard_memory_metric"] = "rss"
    conf["worker_guard_parent_action"] = "shutdown"
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--guard-dry-run", "--loglevel=DEBUG")
        over = happened(worker, "parent_over_limit")[0]
        assert (over["action"], over["dry_run"]) == ("shutdown", True)
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 5)
        assert site.run("add", 1, 2) == 3
        assert worker.process.poll() is None
        assert len(worker.events("parent_over_limit")) == 1


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
        over = happened(worker, "parent_over_limit")[0]
        assert over["action"] == "log"
        assert over["at_start_bytes"] > over["limit_bytes"]
        described = worker.ask("guard")["memory"]
        assert described["children"] == []
        assert described["parent"]["rss_bytes"] > 20 * MB
        assert site.run("add", 1, 2) == 3
        assert worker.stop() == 0
        assert len(worker.events("parent_over_limit")) == 1
        assert "part_failed" not in worker.text()


def test_memory_that_fails_to_start_is_off_and_leaves_nothing_behind(site: Site) -> None:
    """The reason stands in the start event, the first hook is undone, nothing is read."""
    worker = site.start(environ={FAIL_AT_START: "1"})
    parts = worker.events("started")[0]["parts"]
    assert parts["memory"] == parts["recycling"] == "nobody tells of births"
    assert parts["revoked"] == "on"
    described = worker.ask("guard")
    assert described["memory"] is None
    assert not {"memory", "recycling"} & described["consecutive_failures"].keys()
    assert worker.ask("watches_tasks") is False
    pid = site.run("fill", LEAK_MB)
    assert site.run("clean") == pid
    assert worker.stop() == 0
    assert {event["event"] for event in worker.events()} == {
        "worker_guard.started",
        "worker_guard.stopped",
    }


def test_tasks_are_watched_for_the_suspects(site: Site) -> None:
    """What the test above finds undone is there in a worker whose memory parts run."""
    assert site.start().ask("watches_tasks") is True


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        (
            {"worker_pool": "tests.harness.pools:WithoutSentinels"},
            "the pool was made without an exit event for each child",
        ),
        pytest.param(
            {"worker_pool_start_method": "spawn", "file_broker": True},
            "a pool with threads that spawns its children loses them when its thread ends",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_start_event_says_why_no_child_is_recycled(
    server: RedisServer, tmp_path: Path, conf: dict[str, Any], reason: str
) -> None:
    """A child over the limit is told, and stays; its tasks run on."""
    if "worker_pool_start_method" in conf and "pool_start_method" not in NAMESPACES["worker"]:
        pytest.skip("this Celery release only forks")
    if conf.pop("file_broker", False):
        conf |= file_broker(tmp_path)
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--loglevel=DEBUG")
        assert worker.events("started")[0]["parts"]["recycling"] == reason
        pid = site.run("fill", 250)
        happened(worker, "child_over_limit")
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 5)
        assert site.run("clean") == pid
        assert not worker.events("child_recycle_requested")
        assert worker.stop() == 0
        assert_unharmed(worker)


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
