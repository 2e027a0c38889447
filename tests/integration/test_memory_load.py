"""Work under continuous recycling: nothing is lost, nothing runs twice, and no child is stuck."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError

from tests.harness.memory import Site, assert_unharmed, file_broker, memory_site
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

#: Each task leaks so much that a child is over the limit after three.
LOAD_MB = 15


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


def send_load(site: Site, count: int) -> set[str]:
    """Tasks of 10 ms, with a long one and a burst of empty ones among them."""
    ids = set()
    for i in range(count):
        seconds = 0.5 if i % 100 == 50 else 0.0 if i % 10 == 0 else 0.01
        ids.add(site.send("work", seconds, LOAD_MB).id)
    return ids


def settled(site: Site, ids: set[str]) -> None:
    """Wait until each task has a result, or what was lost can't be waited for any longer."""
    wait_for(lambda: len(site.finished()) >= len(ids), "all tasks to finish", 240)


def replaced(worker: Worker) -> int:
    """How many children were recycled so far."""
    return len(worker.events("child_recycled"))


@pytest.mark.parametrize(
    ("concurrency", "late", "count"),
    [
        (2, False, 120),
        (8, True, 120),
        *(
            pytest.param(concurrency, late, 1_700, marks=pytest.mark.slow)
            for concurrency in (1, 2, 8)
            for late in (False, True)
        ),
    ],
)
def test_nothing_is_lost_and_nothing_runs_twice(
    server: RedisServer, tmp_path: Path, concurrency: int, late: bool, count: int
) -> None:
    """Mixed lengths, early and late acknowledgement, children replaced all the time."""
    with memory_site(
        server,
        tmp_path,
        task_acks_late=late,
        worker_guard_recycle_concurrency=max(1, concurrency // 2),
    ) as site:
        worker = site.start(f"--concurrency={concurrency}")
        ids = send_load(site, count)
        settled(site, ids)
        assert site.started() == site.finished() == dict.fromkeys(ids, 1)
        wait_for(lambda: not site.redis.hlen("unacked"), "all messages to be acknowledged")
        assert site.redis.llen("work") == 0
        assert worker.stop() == 0
        recycled = len(worker.events("child_recycled"))
        assert recycled >= 2
        print(f"\n{count} tasks, {concurrency} children, late={late}: {recycled} recycled, 0 lost")
        assert_unharmed(worker)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_nothing_is_lost_in_a_pool_with_threads(
    server: RedisServer, tmp_path: Path, late: bool
) -> None:
    """A transport without an event loop, where all children read one queue under a lock."""
    with memory_site(server, tmp_path, task_acks_late=late, **file_broker(tmp_path)) as site:
        worker = site.start("--concurrency=3")
        ids = send_load(site, 600)
        settled(site, ids)
        assert site.started() == site.finished() == dict.fromkeys(ids, 1)
        wait_for(lambda: replaced(worker) >= 2, "two replacements")
        assert worker.stop() == 0
        print(f"\n600 tasks, threads, late={late}: {replaced(worker)} recycled, 0 lost")
        assert_unharmed(worker)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_shrink_and_grow_as_the_anchor(server: RedisServer, tmp_path: Path, late: bool) -> None:
    """What the usual way from outside costs under the same load: printed, for comparison.

    No number is asserted: how many it loses is chance.
    """
    with memory_site(server, tmp_path, task_acks_late=late) as site:
        worker = site.start("--concurrency=2", guarded=False)
        results = [site.send("work", 0.01, 1) for _ in range(1_700)]
        stop = threading.Event()
        swaps = 0

        def swap() -> None:
            nonlocal swaps
            control = site.fleet.app.control
            while not stop.wait(0.3):
                control.pool_shrink(1, destination=[worker.name])
                control.pool_grow(1, destination=[worker.name])
                swaps += 1

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            # Whoever is lost for good never gets a result; the others are done by then.
            with contextlib.suppress(CeleryTimeoutError):
                results[-1].get(timeout=120, propagate=False)
        finally:
            stop.set()
            swapper.join()
        wait_for(lambda: not site.redis.llen("work"), "the queue to be empty")
        # The worker finishes what it has before it ends.
        worker.stop()
        finished = site.finished()
        lost = sum(result.id not in finished for result in results)
        twice = sum(runs > 1 for runs in site.started().values())
        print(f"\nshrink and grow, late={late}: {swaps} swaps, {lost} lost, {twice} run twice")


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_no_child_is_stuck_that_was_forked_while_the_guard_logs(
    server: RedisServer, tmp_path: Path, count: int
) -> None:
    """Children are replaced while the guard logs each reading; each new one takes its tasks."""
    with memory_site(
        server,
        tmp_path,
        worker_guard_recycle_concurrency=8,
        worker_guard_memory_interval=0.02,
    ) as site:
        worker = site.start("--concurrency=8", "--loglevel=DEBUG")
        ids: set[str] = set()

        def enough() -> bool:
            if site.redis.llen("work") < 20:
                ids.update(site.send("work", 0.02, 60).id for _ in range(20))
            return replaced(worker) >= count

        wait_for(enough, f"{count} replacements", 400)
        settled(site, ids)
        assert site.started() == site.finished() == dict.fromkeys(ids, 1)
        assert worker.stop() == 0
        assert_unharmed(worker)
