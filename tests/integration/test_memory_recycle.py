"""Recycling on real workers: what leaves, what stays, and what meanwhile may happen to a child."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.memory import (
    LEAK_MB,
    LIMIT,
    MB,
    Site,
    assert_unharmed,
    children,
    file_broker,
    happened,
    memory_site,
)
from tests.harness.memory_app import AT_WAKE, HALF_READ, STOP_AT_WAKE
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

#: RSS, which counts the main process's pages: a new child's own memory can be below 16 MiB.
BELOW_A_NEW_CHILD: dict[str, Any] = {
    "worker_guard_child_memory_limit": "20MB",
    "worker_guard_memory_metric": "rss",
}


def leaving(site: Site, worker: Worker) -> int:
    """The process id of a child that was asked to leave and runs a task that waits."""
    before = len(worker.events("child_recycle_requested"))
    site.send("wait", LEAK_MB)
    requested = happened(worker, "child_recycle_requested", before + 1)[-1]
    assert requested["busy"]
    assert requested["child_pid"] in site.waiting()
    return int(requested["child_pid"])


def wake_one(site: Site, worker: Worker) -> None:
    """Have an idle child woken. One whose task is not over yet when it is read leaves unwoken."""

    def left(pid: int) -> bool:
        return any(event["child_pid"] == pid for event in worker.events("child_recycled"))

    def woken_or_left(pid: int) -> bool:
        return f"woken: {pid}" in worker.text() or left(pid)

    while "woken: " not in worker.text():
        pid = site.run("fill", LEAK_MB)
        wait_for(lambda pid=pid: woken_or_left(pid), f"child {pid} to be woken")  # type: ignore[misc]


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, reaped or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def pids(worker: Worker) -> set[int]:
    return {child["pid"] for child in children(worker)}


def test_a_busy_child_finishes_its_task_and_is_replaced(site: Site) -> None:
    """The task that runs is named, goes on, and its result arrives; then the child leaves."""
    worker = site.start()
    result = site.grow_at_work(worker)
    requested = happened(worker, "child_recycle_requested")[0]
    assert requested["task_id"] == result.id
    assert requested["task_name"] == "harness.wait"
    assert requested["limit_bytes"] == LIMIT
    assert requested["used_bytes"] > LIMIT
    assert not worker.events("child_recycled")
    assert children(worker)[0]["leaving"]
    site.free()
    assert result.get(timeout=60) == requested["child_pid"]
    recycled = happened(worker, "child_recycled")[0]
    assert recycled["child_pid"] == requested["child_pid"]
    assert recycled["used_bytes"] == requested["used_bytes"]
    freed_bytes = recycled["used_bytes"] - recycled["replacement_used_bytes"]
    assert recycled["freed_bytes"] == freed_bytes > 0
    assert site.run("clean") == recycled["replacement_pid"]
    child = children(worker)[0]
    assert (child["pid"], child["recycles"]) == (recycled["replacement_pid"], 1)
    assert worker.stop() == 0
    assert worker.events("stopped")[0]["children_recycled"] == 1
    assert_unharmed(worker)


def test_an_idle_child_leaves_without_a_task_coming(site: Site) -> None:
    """Celery's own limit never looks at an idle child; the guard wakes that child alone."""
    worker = site.start("--concurrency=3")
    pid = site.run("fill", LEAK_MB)
    recycled = happened(worker, "child_recycled")[0]
    assert recycled["child_pid"] == pid
    assert len(pids(worker)) == 3
    assert pid not in pids(worker)
    assert worker.stop() == 0
    assert_unharmed(worker)


@pytest.mark.parametrize("allowed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_more_children_are_on_their_way_out_than_allowed(
    server: RedisServer, tmp_path: Path, allowed: int
) -> None:
    """The next one is asked when one of them was replaced, and not before."""
    conf = {"worker_guard_recycle_concurrency": allowed}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=3", "--loglevel=DEBUG")
        results = [site.send("wait", LEAK_MB) for _ in range(3)]
        happened(worker, "child_over_limit", 3)
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 5)
        assert len(worker.events("child_recycle_requested")) == allowed
        assert sum(child["leaving"] for child in children(worker)) == allowed
        site.free()
        assert len({result.get(timeout=60) for result in results}) == 3
        happened(worker, "child_recycled", 3)
        assert worker.stop() == 0
        way_out = 0
        for event in worker.events():
            way_out += event["event"] == "worker_guard.child_recycle_requested"
            way_out -= event["event"] == "worker_guard.child_recycled"
            assert way_out <= allowed
        assert_unharmed(worker)


def test_a_young_child_is_told_and_left_alone(server: RedisServer, tmp_path: Path) -> None:
    """It is over its limit, and younger than the least lifetime."""
    conf = {"worker_guard_recycle_min_lifetime": 3600}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--loglevel=DEBUG")
        pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_over_limit")[0]["child_pid"] == pid
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 5)
        assert site.run("clean") == pid
        assert not worker.events("child_recycle_requested")
        assert len(worker.events("child_over_limit")) == 1


@pytest.mark.slow
def test_a_pool_with_threads_recycles_too(server: RedisServer, tmp_path: Path) -> None:
    """A transport without an event loop: an idle child and a busy one leave, and lose nothing."""
    with memory_site(server, tmp_path, **file_broker(tmp_path)) as site:
        worker = site.start("--concurrency=2")
        idle_pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_recycled")[0]["child_pid"] == idle_pid
        result = site.grow_at_work(worker)
        requested = happened(worker, "child_recycle_requested", 2)[1]
        assert requested["task_id"] == result.id
        others = [site.send("work", 0.05) for _ in range(20)]
        assert all(other.get(timeout=60) for other in others)
        site.free()
        assert result.get(timeout=60) == requested["child_pid"]
        assert happened(worker, "child_recycled", 2)[1]["child_pid"] == requested["child_pid"]
        assert site.finished() == {other.id: 1 for other in others}
        assert worker.stop() == 0
        assert_unharmed(worker)


@pytest.mark.slow
def test_a_spike_that_was_given_back_costs_no_child(server: RedisServer, tmp_path: Path) -> None:
    """A task of every child uses three times the limit and frees it; no child is replaced."""
    # The strikes are more than the readings that fall into a spike, however slow the machine.
    with memory_site(server, tmp_path, worker_guard_memory_strikes=20) as site:
        worker = site.start("--loglevel=DEBUG")
        for _ in range(10):
            site.run("spike", 3 * LIMIT // MB)
        pid = site.run("clean")
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 25)
        assert site.run("clean") == pid
        assert not worker.events("child_recycle_requested")


def test_memory_that_the_parent_preloaded_is_not_counted(site: Site) -> None:
    """200 MB preloaded, a limit of 50 MB: all tasks run in one child, where Celery needs many."""
    worker = site.start("--loglevel=DEBUG", preload_mb=200)
    ran_in = {site.run("clean") for _ in range(30)}
    happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 3)
    assert len(ran_in) == 1
    child = children(worker)[0]
    assert child["rss_bytes"] > 200 * MB
    assert child["metric"] == "uss"
    assert child["used_bytes"] < LIMIT
    assert not worker.events("child_over_limit")


def test_a_limit_below_a_new_child_suspends_recycling(server: RedisServer, tmp_path: Path) -> None:
    """Every new child would be over the limit: said once, with both numbers, and none is lost."""
    with memory_site(server, tmp_path, **BELOW_A_NEW_CHILD) as site:
        worker = site.start("--concurrency=2", "--loglevel=DEBUG")
        pid = site.run("fill", LEAK_MB)
        happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 10)
        suspended = worker.events("recycling_suspended")
        assert len(suspended) == 1
        assert suspended[0]["reason"] == "baseline_over_limit"
        assert suspended[0]["limit_bytes"] == 20 * MB
        assert suspended[0]["baseline_bytes"] > 20 * MB
        assert pid in pids(worker)
        assert not worker.events("child_recycle_requested")
        described = worker.ask("guard")["memory"]["suspended"]
        assert described["baseline_bytes"] == suspended[0]["baseline_bytes"]


@pytest.mark.slow
def test_recycling_begins_again_with_a_limit_that_allows_it(
    server: RedisServer, tmp_path: Path
) -> None:
    """The worker is started again with a better limit, and recycles."""
    with memory_site(server, tmp_path, **BELOW_A_NEW_CHILD) as site:
        worker = site.start()
        happened(worker, "recycling_suspended")
        assert worker.stop() == 0
        again = site.start(
            conf={"worker_guard_child_memory_limit": LIMIT, "worker_guard_memory_metric": "uss"}
        )
        pid = site.run("fill", LEAK_MB)
        assert happened(again, "child_recycled")[0]["child_pid"] == pid


@pytest.mark.slow
def test_a_leak_stays_bounded(site: Site) -> None:
    """Tasks leak five times what the children ever hold."""
    worker = site.start("--concurrency=2", "--loglevel=DEBUG")
    results = [site.send("work", 0.02, 10) for _ in range(120)]
    for result in results:
        result.get(timeout=60)
    sampled = [child for e in worker.events("memory_sampled") for child in e["children"]]
    assert max(child["used_bytes"] for child in sampled) < 250 * MB
    assert len(worker.events("child_recycled")) >= 2
    assert set(site.started().values()) == set(site.finished().values()) == {1}
    assert_unharmed(worker)


@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_child_that_is_killed_on_its_way_out_blocks_nothing(site: Site, signum: int) -> None:
    """The task that it ran is lost to the one who killed it; the guard goes on with the next."""
    worker = site.start()
    pid = leaving(site, worker)
    os.kill(pid, signum)
    wait_for(lambda: pid not in pids(worker), "the killed child to be replaced")
    site.free()
    next_pid = site.run("fill", LEAK_MB)
    assert happened(worker, "child_recycled")[0]["child_pid"] == next_pid
    assert worker.stop() == 0
    assert "part_failed" not in worker.text()


@pytest.mark.slow
def test_a_child_that_ends_by_itself_on_its_way_out_is_replaced(
    server: RedisServer, tmp_path: Path
) -> None:
    """Its task was its last one by Celery's own count: it leaves once, and is replaced once."""
    with memory_site(server, tmp_path, worker_max_tasks_per_child=1) as site:
        worker = site.start()
        pid = leaving(site, worker)
        site.free()
        assert happened(worker, "child_recycled")[0]["child_pid"] == pid
        assert site.run("add", 1, 2) == 3
        assert_unharmed(worker)


def test_the_pool_is_shrunk_and_grown_meanwhile(site: Site) -> None:
    """Remote commands change the pool while a child is on its way out."""
    worker = site.start("--concurrency=3")
    pid = leaving(site, worker)
    control = site.fleet.app.control
    control.pool_shrink(1, destination=[worker.name])
    wait_for(lambda: len(pids(worker)) == 2, "the pool to shrink")
    control.pool_grow(2, destination=[worker.name])
    wait_for(lambda: len(pids(worker)) == 4, "the pool to grow")
    site.free()
    assert happened(worker, "child_recycled")[0]["child_pid"] == pid
    assert len(pids(worker)) == 4
    assert site.run("add", 1, 2) == 3
    assert worker.stop() == 0
    assert_unharmed(worker)


@pytest.mark.slow
def test_the_pool_is_restarted_meanwhile(server: RedisServer, tmp_path: Path) -> None:
    """Remote ``pool_restart``, where the user switched it on."""
    with memory_site(server, tmp_path, worker_pool_restarts=True) as site:
        worker = site.start("--concurrency=2")
        pid = leaving(site, worker)
        worker.ask("pool_restart")
        site.free()
        assert happened(worker, "child_recycled")[0]["child_pid"] == pid
        assert site.run("add", 1, 2) == 3
        next_pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_recycled", 2)[1]["child_pid"] == next_pid
        assert_unharmed(worker)


def test_remote_pool_restart_stays_as_the_user_configured_it(site: Site) -> None:
    """The guard's sentinels don't switch the remote command on."""
    worker = site.start()
    assert "not enabled" in worker.ask("pool_restart")["error"]


@pytest.mark.slow
def test_the_pool_is_autoscaled_meanwhile(site: Site) -> None:
    """Autoscale grows the pool for a burst and shrinks it after, and nothing is lost."""
    worker = site.start("--autoscale=4,1", environ={"AUTOSCALE_KEEPALIVE": "1"})
    pid = leaving(site, worker)
    results = [site.send("work", 0.05, 5) for _ in range(60)]
    for result in results:
        result.get(timeout=60)
    site.free()
    happened(worker, "child_recycled")
    wait_for(lambda: pid not in pids(worker), "the child to leave")
    assert set(site.finished().values()) == {1}
    assert site.run("add", 1, 2) == 3
    assert "part_failed" not in worker.text()


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_warm_shutdown_meanwhile_lets_the_task_finish(
    server: RedisServer, tmp_path: Path, late: bool
) -> None:
    """SIGTERM while a child is on its way out: its task ends, its result arrives, exit code 0."""
    with memory_site(server, tmp_path, task_acks_late=late) as site:
        worker = site.start("--concurrency=2")
        result = site.send("wait", LEAK_MB)
        happened(worker, "child_recycle_requested")
        worker.process.send_signal(signal.SIGTERM)
        worker.logged("Warm shutdown")
        site.free()
        assert worker.stop() == 0
        assert result.get(timeout=10) in site.waiting()
        assert site.redis.llen("work") == 0
        assert site.redis.hlen("unacked") == 0
        assert_unharmed(worker)


@pytest.mark.parametrize("signum", [0, signal.SIGKILL])
def test_a_warm_shutdown_does_not_wait_for_a_child_that_was_just_woken(
    site: Site, signum: int
) -> None:
    """It has nothing to answer; nor is one waited for that is killed before it could leave."""
    worker = site.start("--concurrency=2", environ={STOP_AT_WAKE: str(int(signum))})
    wake_one(site, worker)
    assert worker.ends() == 0
    assert worker.events("stopped")
    assert "part_failed" not in worker.text()
    assert "Traceback" not in worker.text()


def test_a_warm_shutdown_does_not_wait_for_the_rest_of_a_nudge(site: Site) -> None:
    """The child was killed between the two reads of it; Celery reads such pipes as it ends."""
    worker = site.start("--concurrency=2", environ={AT_WAKE: "stop_while_read"})
    wake_one(site, worker)
    assert worker.ends() == 0
    assert worker.events("stopped")
    assert "part_failed" not in worker.text()
    assert "Traceback" not in worker.text()


@pytest.mark.parametrize("half", [False, True])
def test_a_nudge_that_a_killed_child_has_not_read_harms_no_replacement(
    site: Site, half: bool
) -> None:
    """The replacement gets the same pipe. It passes over a nudge; half of one costs one more."""
    environ = {AT_WAKE: "replace"} | ({HALF_READ: "1"} if half else {})
    worker = site.start(environ=environ)
    wake_one(site, worker)
    assert site.run("add", 1, 2) == 3
    assert len(pids(worker)) == 1
    pid = site.run("fill", LEAK_MB)
    wait_for(
        lambda: pid in {event["child_pid"] for event in worker.events("child_recycled")},
        "the next one to be recycled",
    )
    assert worker.stop() == 0
    assert "part_failed" not in worker.text()


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_a_child_that_was_just_woken_costs_no_task_at_a_warm_shutdown(
    server: RedisServer, tmp_path: Path, late: bool
) -> None:
    """Another child's task ends and is acknowledged; tasks sent meanwhile stay in their queue."""
    with memory_site(server, tmp_path, task_acks_late=late) as site:
        worker = site.start("--concurrency=2", environ={STOP_AT_WAKE: "0"})
        result = site.send("wait", 1)
        waits_in = site.waiting()
        wake_one(site, worker)
        others = [site.send("work", 0.01) for _ in range(5)]
        happened(worker, "stopped")
        site.free()
        assert worker.stop() == 0
        assert [result.get(timeout=10)] == waits_in
        assert site.started() == {f"pid:{waits_in[0]}": 1}
        assert site.redis.llen("work") == len(others)
        assert site.redis.hlen("unacked") == 0
        assert_unharmed(worker)


@pytest.mark.slow
def test_a_warm_shutdown_lets_replacements_finish_in_a_pool_with_threads(
    server: RedisServer, tmp_path: Path
) -> None:
    """They were forked by a thread that ends at once; Celery alone would have them killed."""
    with memory_site(server, tmp_path, **file_broker(tmp_path)) as site:
        worker = site.start()
        first_pid = site.run("fill", LEAK_MB)
        recycled = happened(worker, "child_recycled")[0]
        assert recycled["child_pid"] == first_pid
        result = site.send("wait", 1)
        assert site.waiting() == [recycled["replacement_pid"]]
        process = psutil.Process(worker.process.pid)
        threads = process.num_threads()
        worker.process.send_signal(signal.SIGTERM)
        # First the timer's thread ends, then the one that forked the replacement.
        wait_for(lambda: process.num_threads() <= threads - 2, "the pool's thread to end")
        site.free()
        assert worker.stop() == 0
        assert result.get(timeout=10) == recycled["replacement_pid"]
        assert_unharmed(worker)


def test_a_cold_shutdown_meanwhile_waits_for_no_task(site: Site) -> None:
    """SIGQUIT while a child is on its way out: all processes end, though its task would not."""
    worker = site.start("--concurrency=2")
    leaving(site, worker)
    processes = psutil.Process(worker.process.pid).children()
    worker.process.send_signal(signal.SIGQUIT)
    assert worker.ends() is not None
    wait_for(lambda: all(map(has_ended, processes)), "the children to end")
    assert worker.events("stopped")
    assert "part_failed" not in worker.text()


def test_a_cold_shutdown_does_not_wait_for_a_child_that_was_just_woken(site: Site) -> None:
    """Nor does it hang."""
    worker = site.start("--concurrency=2", environ={AT_WAKE: "terminate"})
    processes = psutil.Process(worker.process.pid).children()
    wake_one(site, worker)
    assert worker.ends() is not None
    wait_for(lambda: all(map(has_ended, processes)), "the children to end")
    assert worker.events("stopped")
    assert "part_failed" not in worker.text()


@pytest.mark.slow
def test_a_replacement_ends_with_the_main_process_in_a_pool_with_threads(
    server: RedisServer, tmp_path: Path
) -> None:
    """It outlives the thread that forked it, and not a main process that was killed."""
    with memory_site(server, tmp_path, **file_broker(tmp_path)) as site:
        worker = site.start()
        site.run("fill", LEAK_MB)
        pid = happened(worker, "child_recycled")[0]["replacement_pid"]
        site.send("wait", 1)
        assert site.waiting() == [pid]
        replacement = psutil.Process(pid)
        worker.process.kill()
        wait_for(lambda: has_ended(replacement), "the replacement to end")


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_connection_lost_right_after_a_wake_costs_no_task(tmp_path: Path, late: bool) -> None:
    """The child leaves, is replaced, and what is sent then runs."""
    with RedisServer() as results, RedisServer() as broker:
        conf = {"broker_url": broker.url(), "task_acks_late": late}
        with memory_site(results, tmp_path, **conf) as site:
            worker = site.start("--concurrency=2", environ={AT_WAKE: "disconnect"})
            wake_one(site, worker)
            ids = {site.send("work", 0.01).id for _ in range(40)}
            worker.logged("onnection to broker lost")
            wait_for(lambda: len(site.finished()) >= len(ids), "all tasks to finish")
            pid = int(worker.text().split("woken: ")[1].split()[0])
            gone = [event["child_pid"] for event in happened(worker, "child_recycled")]
            assert pid in gone
            assert len(pids(worker)) == 2
            wait_for(lambda: not broker.client.hlen("unacked"), "all messages to be acknowledged")
            assert worker.stop() == 0
            assert site.started() == site.finished() == dict.fromkeys(ids, 1)
            for sign in ("WorkerLostError", "exited with", "part_failed"):
                assert sign not in worker.text()


@pytest.mark.slow
def test_time_limits_hold_for_a_child_on_its_way_out(site: Site) -> None:
    """The hard limit ends the task and its child; the guard goes on."""
    worker = site.start()
    result = site.send("wait", LEAK_MB, time_limit=2)
    requested = happened(worker, "child_recycle_requested")[0]
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        result.get(timeout=60)
    wait_for(lambda: requested["child_pid"] not in pids(worker), "the child to be replaced")
    site.free()
    pid = site.run("fill", LEAK_MB)
    assert happened(worker, "child_recycled")[-1]["child_pid"] == pid


@pytest.mark.slow
def test_a_soft_time_limit_holds_for_a_child_on_its_way_out(site: Site) -> None:
    """The soft limit ends the task; the child then leaves as it was asked to."""
    worker = site.start()
    result = site.send("wait", LEAK_MB, soft_time_limit=2)
    requested = happened(worker, "child_recycle_requested")[0]
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        result.get(timeout=60)
    assert happened(worker, "child_recycled")[0]["child_pid"] == requested["child_pid"]


def test_the_broker_restarts_meanwhile(tmp_path: Path) -> None:
    """The connection is lost while a child is on its way out; it leaves after that all the same."""
    with (
        RedisServer() as results,
        RedisServer() as broker,
        memory_site(results, tmp_path, broker_url=f"redis://127.0.0.1:{broker.port}/0") as site,
    ):
        worker = site.start("--concurrency=2")
        pid = leaving(site, worker)
        broker.kill()
        worker.logged("onnection to broker lost")
        broker.start()
        wait_for(lambda: worker.text().count("Connected to") >= 2, "the worker to be back")
        site.free()
        assert happened(worker, "child_recycled")[0]["child_pid"] == pid
        next_pid = site.run("fill", LEAK_MB)
        assert happened(worker, "child_recycled", 2)[1]["child_pid"] == next_pid


def test_a_dry_run_says_what_it_would_do_and_does_nothing(site: Site) -> None:
    """The child is named once, stays, and has no sentinel that it could be asked by."""
    worker = site.start("--guard-dry-run", "--loglevel=DEBUG")
    pid = site.run("fill", LEAK_MB)
    assert happened(worker, "child_recycle_requested")[0]["child_pid"] == pid
    happened(worker, "memory_sampled", len(worker.events("memory_sampled")) + 5)
    assert site.run("clean") == pid
    assert worker.events("started")[0]["parts"]["recycling"] == "a dry run"
    assert worker.stop() == 0
    assert len(worker.events("child_recycle_requested")) == 1
    assert not worker.events("child_recycled")
    assert worker.events("stopped")[0]["children_recycled"] == 1
    assert all(event["dry_run"] for event in worker.events())


@pytest.mark.slow
def test_without_a_limit_it_only_watches(server: RedisServer, tmp_path: Path) -> None:
    """No limit: the children are read and shown, and the pool is made as it always was."""
    with memory_site(server, tmp_path, worker_guard_child_memory_limit=None) as site:
        worker = site.start("--loglevel=DEBUG")
        pid = site.run("fill", LEAK_MB)
        wait_for(lambda: (children(worker)[0]["used_bytes"] or 0) > LEAK_MB * MB, "a reading")
        assert children(worker)[0]["pid"] == pid
        off = worker.events("started")[0]["parts"]["recycling"]
        assert off == "worker_guard_child_memory_limit and worker_guard_total_memory_limit are None"


@pytest.mark.slow
def test_spawned_children_are_recycled(server: RedisServer, tmp_path: Path) -> None:
    """A child that was not forked has its own sentinel too."""
    from celery.app.defaults import NAMESPACES

    if "pool_start_method" not in NAMESPACES["worker"]:
        pytest.skip("this Celery release only forks")
    conf: dict[str, Any] = {"worker_pool_start_method": "spawn"}
    conf["worker_guard_child_memory_limit"] = 200 * MB
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start()
        pid = site.run("fill", 250)
        assert happened(worker, "child_recycled")[0]["child_pid"] == pid
        assert site.run("add", 1, 2) == 3
        assert_unharmed(worker)
