"""A child that was asked to leave is given no further job, and no place is left unused for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.memory import (
    LEAK_MB,
    Sent,
    Site,
    assert_unharmed,
    children,
    happened,
    memory_site,
)
from tests.harness.memory_app import END, ENDING, OPTIMIZATION, SLOW_END
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for


@pytest.fixture
def site(server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    with memory_site(server, tmp_path) as made:
        try:
            yield made
        finally:
            made.redis.set(END, 1)


#: The command line offers the names "default" and "fair" for one and the same strategy; the other
#: one gives jobs ahead to children that are busy.
STRATEGIES = pytest.mark.parametrize("strategy", ["fair", "default", "fast"])


def start(
    site: Site, concurrency: int, strategy: str = "fair", *, slow_end: bool = False
) -> Worker:
    """A worker whose pool uses this strategy, and whose children end slowly or not."""
    environ = {SLOW_END: "1"} if slow_end else {}
    if strategy == "fast":
        worker = site.start(
            f"--concurrency={concurrency}", environ=environ | {OPTIMIZATION: strategy}
        )
    else:
        worker = site.start(f"--concurrency={concurrency}", f"-O{strategy}", environ=environ)
    used = worker.ask("stats")["pool"]["writes"]["strategy"]
    assert used == ("fcfs" if strategy == "fast" else "fair")
    return worker


def jobs_written(worker: Worker) -> int:
    """How many jobs the pool has written to its children since the start."""
    return int(worker.ask("stats")["pool"]["writes"]["total"])


def leaving_busy(site: Site, worker: Worker) -> tuple[int, Sent]:
    """A child that was asked to leave and runs a task until the test lets it go on."""
    sent = site.grow_at_work(worker)
    return int(happened(worker, "child_recycle_requested")[0]["child_pid"]), sent


def ending(site: Site) -> int:
    """The process id of the one child that is on its last steps, which the test holds up."""
    return int(wait_for(lambda: site.redis.hkeys(ENDING), "a child to end")[0])


def received(worker: Worker, sent: list[Sent]) -> None:
    """Wait until the worker holds these tasks."""
    ids = {each.id for each in sent}

    def held() -> bool:
        return ids <= {task["id"] for task in worker.ask("reserved") + worker.ask("active")}

    wait_for(held, "the tasks to be received")


def both_children_work(site: Site, worker: Worker) -> None:
    """Two tasks that wait run at a time, so there are two children that get jobs."""
    site.redis.delete("ledger:free", "ledger:started")
    waits = [site.send("wait", 1) for _ in range(2)]
    assert set(site.waiting(2)) == {child["pid"] for child in children(worker)}
    site.free()
    for each in waits:
        each.get()


@STRATEGIES
def test_a_busy_child_that_was_asked_gets_no_further_job(site: Site, strategy: str) -> None:
    """The other child runs all that is sent meanwhile; in the end both places are used."""
    worker = start(site, 2, strategy)
    pid, sent = leaving_busy(site, worker)
    others = [site.send("work", 0.01) for _ in range(20)]
    assert pid not in {other.get() for other in others}
    site.free()
    assert sent.get() == pid
    recycled = happened(worker, "child_recycled")[0]
    assert recycled["child_pid"] == pid
    assert jobs_written(worker) == 21
    if strategy != "fast":  # by which one child can get both tasks
        both_children_work(site, worker)
    assert worker.stop() == 0
    assert_unharmed(worker)


@STRATEGIES
def test_what_is_sent_to_the_only_child_waits_for_its_replacement(
    site: Site, strategy: str
) -> None:
    """Each task is written once, to the replacement, as soon as that is up."""
    worker = start(site, 1, strategy)
    pid, sent = leaving_busy(site, worker)
    others = [site.send("work", 0.01) for _ in range(5)]
    site.free()
    assert sent.get() == pid
    recycled = happened(worker, "child_recycled")[0]
    assert {other.get() for other in others} == {recycled["replacement_pid"]}
    assert jobs_written(worker) == 6
    assert worker.stop() == 0
    assert_unharmed(worker)


@STRATEGIES
def test_no_task_waits_for_a_child_that_ends_slowly(site: Site, strategy: str) -> None:
    """A handler of ``worker_process_shutdown`` holds it up; the other child goes on meanwhile."""
    worker = start(site, 2, strategy, slow_end=True)
    pid = site.run("fill", LEAK_MB)
    assert ending(site) == pid
    others = [site.send("work", 0.01) for _ in range(20)]
    assert len({other.get() for other in others} - {pid}) == 1
    site.redis.set(END, 1)
    assert happened(worker, "child_recycled")[0]["child_pid"] == pid
    assert jobs_written(worker) == 21
    if strategy != "fast":  # by which one child can get both tasks
        both_children_work(site, worker)
    assert worker.stop() == 0
    assert_unharmed(worker)


def test_the_replacement_of_a_child_that_ends_slowly_is_used_at_once(site: Site) -> None:
    """The other child is busy: what waits runs in the replacement, which has the same pipe."""
    worker = start(site, 2, slow_end=True)
    site.send("wait", 1)
    site.waiting()
    pid = site.run("fill", LEAK_MB)
    assert ending(site) == pid
    others = [site.send("work", 0.01) for _ in range(5)]
    received(worker, others[:1])
    site.redis.set(END, 1)
    recycled = happened(worker, "child_recycled")[0]
    assert recycled["child_pid"] == pid
    assert {other.get() for other in others} == {recycled["replacement_pid"]}
    assert jobs_written(worker) == 7
    site.free()
    assert worker.stop() == 0
    assert_unharmed(worker)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[tuple[Site, RedisServer]]:
    """A site whose broker is a server of its own, so that its connections alone can be cut."""
    with (
        RedisServer() as results,
        RedisServer() as broker,
        memory_site(results, tmp_path, broker_url=broker.url()) as site,
    ):
        try:
            yield site, broker
        finally:
            site.redis.set(END, 1)


def lose_connection(worker: Worker, broker: RedisServer) -> None:
    """Cut the worker from its broker, and wait until it is back."""
    before = worker.text().count("Connected to")
    for kind in ("normal", "pubsub"):
        broker.client.client_kill_filter(_type=kind, skipme=True)
    wait_for(lambda: worker.text().count("Connected to") > before, "the worker to be back")


def test_a_connection_lost_while_a_child_leaves_runs_nothing_twice(
    apart: tuple[Site, RedisServer],
) -> None:
    """Celery forgets what no child has begun with, and is sent it again.

    A job that had been written to the leaving child would be run by its replacement as well.
    """
    site, broker = apart
    worker = start(site, 2, slow_end=True)
    site.send("wait", 1)
    site.waiting()
    pid = site.run("fill", LEAK_MB)
    assert ending(site) == pid
    sent = site.send("work", 0.01)
    received(worker, [sent])
    lose_connection(worker, broker)
    received(worker, [sent])
    site.free()
    sent.get()
    site.redis.set(END, 1)
    assert happened(worker, "child_recycled")[0]["child_pid"] == pid
    runs = site.started()[sent.id]
    both_children_work(site, worker)  # so that the replacement has read all that it was given
    assert runs + site.started().get(sent.id, 0) == 1
    wait_for(lambda: not broker.client.hlen("unacked"), "all messages to be acknowledged")
    assert worker.stop() == 0
    assert "part_failed" not in worker.text()


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("busy", [False, True])
def test_a_lost_connection_leaves_no_child_unused(
    apart: tuple[Site, RedisServer], concurrency: int, busy: bool
) -> None:
    """Celery enters all pipes and handlers anew; the leaving child still gets no job."""
    site, broker = apart
    worker = start(site, concurrency, slow_end=True)
    if busy:
        pid, _ = leaving_busy(site, worker)
    else:
        pid = site.run("fill", LEAK_MB)
        assert ending(site) == pid
    lose_connection(worker, broker)
    others = [site.send("work", 0.01) for _ in range(5)]
    if concurrency == 2:
        assert pid not in {other.get() for other in others}
    site.free()
    site.redis.set(END, 1)
    assert happened(worker, "child_recycled")[0]["child_pid"] == pid
    assert pid not in {other.get() for other in others}
    assert jobs_written(worker) == 6
    if concurrency == 2:
        both_children_work(site, worker)
    assert worker.stop() == 0
    assert "part_failed" not in worker.text()
