"""Children of real workers that are killed, and those that only seem to be."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from tests.harness.cgroup import limited_group
from tests.harness.memory import (
    MB,
    Site,
    children,
    file_broker,
    happened,
    memory_site,
)
from tests.harness.memory_app import SLOW_STARTS, START_S
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

#: Children are only watched, and die by nobody's hand but the test's.
WATCHED: dict[str, Any] = {"worker_guard_child_memory_limit": None, "worker_pool_restarts": True}


def ends(pid: int) -> None:
    """Wait until this child has ended."""
    wait_for(lambda: not psutil.pid_exists(pid), f"child {pid} to end")


def whole(worker: Worker, size: int = 2) -> list[int]:
    """The children, once so many of them were read."""

    def up() -> list[int]:
        pids = [child["pid"] for child in children(worker) if child["used_bytes"]]
        return pids if len(pids) == size else []

    return wait_for(up, f"{size} children to be up")


def kill_busy(site: Site, worker: Worker) -> dict[str, Any]:
    """Kill a child that runs a task; the event, which is the newest."""
    before = len(worker.events("child_killed"))
    sent = site.send("wait", 5)
    pid = site.runs(worker, sent)
    wait_for(
        lambda: any(child["pid"] == pid and child["used_bytes"] for child in children(worker)),
        "a reading of it",
    )
    os.kill(pid, signal.SIGKILL)
    events = happened(worker, "child_killed", before + 1)
    assert len(events) == before + 1
    assert events[-1]["child_pid"] == pid
    assert events[-1]["task_id"] == sent.id
    assert events[-1]["task_name"] == "harness.wait"
    with pytest.raises(WorkerLostError):
        sent.get()
    return events[-1]


def test_a_child_that_is_killed_is_named_with_its_task(server: RedisServer, tmp_path: Path) -> None:
    """By the event, by ``inspect guard``; and one that ran nothing, or that crashed."""
    with memory_site(server, tmp_path, **WATCHED) as site:
        worker = site.start("--concurrency=2")
        event = kill_busy(site, worker)
        assert event["level"] == "error"
        assert event["signal"] == "SIGKILL"
        # The kernel's count stands still, if there is one here.
        assert event["oom"] in (False, None)
        assert event["used_bytes"] > 5 * MB
        state = worker.ask("guard")
        assert state["totals"]["children_killed"] == 1
        assert state["last_killed"]["task_id"] == event["task_id"]
        idle = whole(worker)[0]
        os.kill(idle, signal.SIGKILL)
        event = happened(worker, "child_killed", 2)[1]
        assert (event["child_pid"], event["task_id"], event["task_name"]) == (idle, None, None)
        crashed = site.send("end", int(signal.SIGSEGV))
        event = happened(worker, "child_killed", 3)[2]
        assert (event["signal"], event["oom"]) == ("SIGSEGV", False)
        assert event["task_id"] == crashed.id
        assert len(whole(worker)) == 2
        assert worker.stop() == 0
        assert len(worker.events("child_killed")) == 3


# -- told apart ----------------------------------------------------------------------------


def time_limit(site: Site, worker: Worker) -> None:
    """Celery sends SIGTERM, and SIGKILL a tenth of a second later."""
    sent = site.send("wait", 0, time_limit=1)
    pid = site.runs(worker, sent)
    with pytest.raises(TimeLimitExceeded):
        sent.get()
    ends(pid)


def terminated(site: Site, worker: Worker) -> None:
    """``revoke --terminate --signal=KILL``."""
    sent = site.send("wait", 0)
    pid = site.runs(worker, sent)
    worker.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
    ends(pid)


def terminated_by_stamp(site: Site, worker: Worker) -> None:
    """The same by a header of the task."""
    sent = site.send("wait", 0, stamped_headers=["c"], c="17")
    pid = site.runs(worker, sent)
    worker.app.control.revoke_by_stamped_headers({"c": ["17"]}, terminate=True, signal="SIGKILL")
    ends(pid)


def terminated_before_it_runs(site: Site, worker: Worker) -> None:
    """Celery terminates such a task as soon as a child begins it."""
    busy = [site.send("wait", 0) for _ in range(2)]
    for sent in busy:
        site.runs(worker, sent)
    waits = site.send("wait", 0)
    wait_for(lambda: waits.id in {t["id"] for t in worker.ask("reserved")}, "it to be there")
    worker.app.control.terminate(waits.id, signal="SIGKILL")
    for sent in busy:
        pid = site.runs(worker, sent)
        worker.app.control.terminate(sent.id, signal="SIGKILL")
        ends(pid)


def shrunk(site: Site, worker: Worker) -> None:
    """``pool_shrink``, and ``pool_grow`` again."""
    before = set(whole(worker))
    worker.ask("pool_shrink", n=1)
    (gone,) = before - set(whole(worker, 1))
    ends(gone)
    worker.ask("pool_grow", n=1)


def restarted(site: Site, worker: Worker) -> None:
    """``pool_restart``: each child leaves after its next task."""
    before = set(whole(worker))
    worker.ask("pool_restart")
    while before & set(whole(worker)):
        site.run("clean")


def exited(site: Site, worker: Worker) -> None:
    """A task that ends its process: not by a signal."""
    pids = set(whole(worker))
    site.send("end", 0, 3)
    wait_for(lambda: pids - {child.pid for child in processes(worker)}, "a child to end")


def asked(site: Site, worker: Worker) -> None:
    """A SIGTERM from outside, which a child catches."""
    pid = whole(worker)[0]
    os.kill(pid, signal.SIGTERM)
    site.run("clean")
    ends(pid)


def processes(worker: Worker) -> list[psutil.Process]:
    return psutil.Process(worker.process.pid).children()


Cause = Callable[[Site, Worker], None]

#: Those that end a child by a signal that nobody can catch, and one more.
QUICK: tuple[Cause, ...] = (time_limit, terminated, exited)

#: Without an event loop the main process waits for a free place, and an idle child that ends can
#: keep the lock of the one queue.
WITH_THREADS: tuple[Cause, ...] = (*QUICK, terminated_by_stamp)

ALL: tuple[Cause, ...] = (
    *WITH_THREADS,
    terminated_before_it_runs,
    shrunk,
    restarted,
    asked,
)


@pytest.mark.parametrize(
    ("loop", "causes"),
    [
        pytest.param(True, QUICK, id="quick"),
        pytest.param(True, ALL, id="all", marks=pytest.mark.slow),
        pytest.param(False, WITH_THREADS, id="threads", marks=pytest.mark.slow),
    ],
)
def test_what_the_worker_ended_itself_was_not_killed(
    server: RedisServer, tmp_path: Path, loop: bool, causes: tuple[Cause, ...]
) -> None:
    """One after the other, and at last one that was."""
    conf = {**WATCHED, **({} if loop else file_broker(tmp_path))}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=2")
        for cause in causes:
            whole(worker)
            cause(site, worker)
            assert len(whole(worker)) == 2, cause.__name__
            assert worker.events("child_killed") == [], cause.__name__
        kill_busy(site, worker)
        assert len(worker.events("child_killed")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "conf",
    [
        {"worker_max_tasks_per_child": 1},
        {"worker_max_memory_per_child": 1},
        {"worker_guard_child_memory_limit": "20MB"},
    ],
    ids=lambda conf: next(iter(conf)),
)
def test_children_that_are_recycled_were_not_killed(
    server: RedisServer, tmp_path: Path, conf: dict[str, Any]
) -> None:
    """By Celery, after each task; by the guard."""
    with memory_site(server, tmp_path, **{**WATCHED, **conf}) as site:
        worker = site.start("--concurrency=2")
        before = set(whole(worker))
        while before & set(whole(worker)):
            site.run("fill", 40)
        assert worker.stop() == 0
        assert not worker.events("child_killed")


def test_a_child_that_is_not_up_in_time_was_not_killed(server: RedisServer, tmp_path: Path) -> None:
    """The pool sends SIGKILL to it; one that is killed before that time is over was killed."""
    conf = {**WATCHED, "worker_proc_alive_timeout": 3.0}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=1", environ={SLOW_STARTS: "1"})
        (first,) = whole(worker, 1)
        site.redis.set(START_S, 60)
        os.kill(first, signal.SIGKILL)
        assert happened(worker, "child_killed")[0]["child_pid"] == first
        # Found dead up to five seconds later, which is after the time that it had.
        (starting,) = wait_for(lambda: processes(worker), "its replacement")
        os.kill(starting.pid, signal.SIGKILL)
        assert happened(worker, "child_killed", 2)[1]["child_pid"] == starting.pid
        worker.logged("Timed out waiting for UP message")
        site.redis.delete(START_S)
        whole(worker, 1)
        assert site.run("clean")
        assert len(worker.events("child_killed")) == 2


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGQUIT, marks=pytest.mark.slow)]
)
def test_children_that_a_shutdown_ends_were_not_killed(
    server: RedisServer, tmp_path: Path, signum: int
) -> None:
    """A supervisor can send the signal to them, too."""
    with memory_site(server, tmp_path, **WATCHED) as site:
        worker = site.start("--concurrency=2")
        pid = site.runs(worker, site.send("wait", 0))
        for each in [*processes(worker), psutil.Process(worker.process.pid)]:
            if each.pid != pid:
                each.send_signal(signum)
        site.free()
        worker.ends()
        assert worker.events("stopped")
        assert not worker.events("child_killed")


@pytest.mark.slow
def test_tasks_that_a_lost_connection_cancels_were_not_killed(
    server: RedisServer, tmp_path: Path
) -> None:
    """Celery terminates their children."""
    conf = {**WATCHED, "worker_cancel_long_running_tasks_on_connection_loss": True}
    with memory_site(server, tmp_path, **conf, task_acks_late=True) as site:
        worker = site.start("--concurrency=2")
        pid = site.runs(worker, site.send("wait", 0))
        site.redis.client_kill_filter(_type="normal", skipme=True)
        ends(pid)
        site.free()
        whole(worker)
        assert not worker.events("child_killed")


# -- the kernel ----------------------------------------------------------------------------


def test_the_kernel_kills_a_child_for_memory(server: RedisServer, tmp_path: Path) -> None:
    """In a real cgroup of version 1; skipped where none can be made."""
    with limited_group(300 * MB) as group, memory_site(server, tmp_path, **WATCHED) as site:
        worker = site.launch("--concurrency=2")
        group.add(worker.process.pid)
        worker.ready()
        sent = site.send("leak", 400)
        event = happened(worker, "child_killed")[0]
        assert (event["signal"], event["oom"]) == ("SIGKILL", True)
        assert event["task_id"] == sent.id
        with pytest.raises(WorkerLostError):
            sent.get()
        # Who sends SIGKILL later is not the kernel.
        assert kill_busy(site, worker)["oom"] is False
        assert worker.stop() == 0
