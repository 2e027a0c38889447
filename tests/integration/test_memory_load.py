"""Work under continuous recycling: nothing is lost, nothing runs twice, and no child is stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.memory import Site, assert_unharmed, file_broker, memory_site
from tests.harness.memory_app import OPTIMIZATION
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker, wait_for

#: Each task leaks so much that a child is over the limit after three.
LOAD_MB = 15
LONGEST_S = 0.5

#: Six times this many are the 10,000 tasks that prove it.
ANCHORED = 1_700


def send_load(site: Site, count: int) -> set[str]:
    """Tasks of 10 ms, with a long one and a burst of empty ones among them."""
    ids = set()
    for i in range(count):
        seconds = LONGEST_S if i % 100 == 50 else 0.0 if i % 10 == 0 else 0.01
        ids.add(site.send("work", seconds, LOAD_MB).id)
    return ids


def settled(site: Site, ids: set[str]) -> None:
    """Wait until each task has finished, for as long as one after the other does."""
    finished = 0

    def more() -> int:
        count = len(site.finished())
        return count if count > finished else 0

    while finished < len(ids):
        finished = wait_for(more, f"more than {finished} of {len(ids)} tasks to finish")


def replaced(worker: Worker) -> int:
    """How many children were recycled so far."""
    return len(worker.events("child_recycled"))


@pytest.mark.parametrize(
    ("concurrency", "late", "count"),
    [
        (2, False, 120),
        (8, True, 120),
        *(
            pytest.param(concurrency, late, ANCHORED, marks=pytest.mark.slow)
            for concurrency in (1, 2, 8)
            for late in (False, True)
        ),
    ],
)
def test_nothing_is_lost_and_nothing_runs_twice(
    server: RedisServer, tmp_path: Path, concurrency: int, late: bool, count: int
) -> None:
    """Mixed lengths, early and late acknowledgement, children replaced all the time.

    Beside it what the usual way from outside costs under the same load: printed, not asserted, for
    how many it loses is chance.
    """
    recycle_concurrency = max(1, concurrency // 2)
    conf = {"task_acks_late": late, "worker_guard_recycle_concurrency": recycle_concurrency}
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start(f"--concurrency={concurrency}")
        ids = send_load(site, count)
        settled(site, ids)
        assert site.started() == site.finished() == dict.fromkeys(ids, 1)
        wait_for(lambda: not site.redis.hlen("unacked"), "all messages to be acknowledged")
        assert site.redis.llen("work") == 0
        assert worker.stop() == 0
        assert replaced(worker) >= 2
        print(f"\n{count} tasks, {concurrency} children, late={late}")
        print(f"  worker_guard: {replaced(worker)} recycled, 0 lost, 0 run twice")
        assert_unharmed(worker)
    if count == ANCHORED:
        with memory_site(server, tmp_path, **conf) as site:
            print(f"  shrink and grow: {shrunk_and_grown(site, concurrency, count)}")


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_nothing_is_lost_where_children_get_jobs_ahead(
    server: RedisServer, tmp_path: Path, late: bool
) -> None:
    """A child that leaves has further jobs in its pipe, which another one runs."""
    with memory_site(server, tmp_path, task_acks_late=late) as site:
        worker = site.start("--concurrency=2", environ={OPTIMIZATION: "fast"})
        assert worker.ask("stats")["pool"]["writes"]["strategy"] == "fcfs"
        ids = send_load(site, 600)
        settled(site, ids)
        assert site.started() == site.finished() == dict.fromkeys(ids, 1)
        wait_for(lambda: not site.redis.hlen("unacked"), "all messages to be acknowledged")
        wait_for(lambda: replaced(worker) >= 2, "two replacements")
        assert worker.stop() == 0
        assert_unharmed(worker)


def shrunk_and_grown(site: Site, concurrency: int, count: int) -> str:
    """What becomes of the load while remote commands replace a child each 0.3 s."""
    worker = site.start(f"--concurrency={concurrency}", guarded=False)
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
    ids = send_load(site, count)
    swapper.start()
    try:
        wait_for(quiet(site), "the rest to be finished", 1200)
    finally:
        stop.set()
        swapper.join()
    lost = len(ids - site.finished().keys())
    twice = sum(runs > 1 for runs in site.started().values())
    return f"{swaps} swaps, {lost} lost, {twice} run twice"


def quiet(site: Site) -> Callable[[], bool]:
    """Whether nothing waits, and nothing began or finished for ten times the longest task."""
    seen, since_mono = (0, 0), time.monotonic()

    def is_quiet() -> bool:
        nonlocal seen, since_mono
        sees = (len(site.started()), len(site.finished()))
        if sees != seen or site.redis.llen("work"):
            seen, since_mono = sees, time.monotonic()
        return time.monotonic() - since_mono > 10 * LONGEST_S

    return is_quiet


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
