"""What leaving children cost the tasks beside them, each figure beside plain Celery's.

One run of each kind after the other, three ways each: plain Celery, Celery's own
``worker_max_memory_per_child``, the guard's limit. Alone: ``python -m tests.bench leaving``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.harness.memory import MB, Site, memory_site
from tests.harness.memory_app import SLOW_END_S
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Worker

PLAIN, OWN, GUARD = "plain Celery", "Celery's own limit", "the guard"
WAYS = (PLAIN, OWN, GUARD)
CONCURRENCY = 2

#: What a child may grow by before it is to leave.
ROOM_MB = 35

#: How long a child's ``worker_process_shutdown`` takes.
END_S = 5.0
#: One task each so many seconds, and how much each leaks.
EACH_S, LEAK_MB = 0.2, 2
DELAYED = 200

#: The connections to the broker are cut each time that so many more tasks have begun.
CUT_EACH = 6
CUT, CUT_LEAK_MB, CUT_TASK_S = 300, 12, 0.05
RUNS = 2

#: Nothing comes any more when nothing has begun for so long; and so long is waited for what is not
#: finished.
SETTLED_S, GIVEN_UP_S = 2.0, 20.0


@dataclass
class Cut:
    """What became of the tasks of one way while connections were lost."""

    tasks: int = 0
    twice: int = 0
    unfinished: int = 0
    cuts: int = 0
    left: int = 0
    by_run: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        runs = ", ".join(map(str, self.by_run))
        return (
            f"{self.twice} of {self.tasks} ran twice ({runs}), {self.unfinished} unfinished; "
            f"{self.cuts} cuts, {self.left} children left"
        )


def main() -> None:
    """Print how long tasks wait beside children that end slowly, and how many run twice."""
    with tempfile.TemporaryDirectory() as directory:
        print(f"a task each {EACH_S:g} s, {CONCURRENCY} children that take {END_S:g} s to end:")
        for way in WAYS:
            with _worker(way, Path(directory), environ={SLOW_END_S: str(END_S)}) as running:
                print(f"  {way:<20} {_delays(*running[:2])}", flush=True)
        print(
            f"{RUNS} runs, the connections cut after each {CUT_EACH} tasks, {CONCURRENCY} children:"
        )
        sums = {way: Cut() for way in WAYS}
        for _ in range(RUNS):
            for way in WAYS:  # in turns, so that a busy machine is one for all
                with _worker(way, Path(directory)) as running:
                    _cut(*running, sums[way])
        for way, cut in sums.items():
            print(f"  {way:<20} {cut}", flush=True)


@contextmanager
def _worker(
    way: str, directory: Path, environ: dict[str, str] | None = None
) -> Iterator[tuple[Site, Worker, RedisServer]]:
    """A worker of one way, whose broker is a server of its own."""
    place = Path(tempfile.mkdtemp(dir=directory))
    with (
        RedisServer() as results,
        RedisServer() as broker,
        memory_site(
            results,
            place,
            broker_url=broker.url(),
            worker_guard_memory_interval=0.5,
        ) as site,
    ):
        options = [f"--concurrency={CONCURRENCY}"]
        if way == OWN:
            probe = site.start(*options, guarded=False)
            rss_bytes = psutil.Process(site.run("clean")).memory_info().rss
            probe.stop()
            options.append(f"--max-memory-per-child={(rss_bytes + ROOM_MB * MB) // 1024}")
        worker = site.start(*options, guarded=way == GUARD, environ=environ or {})
        for _ in range(10):
            site.run("clean")
        yield site, worker, broker
        worker.process.kill()


def _delays(site: Site, worker: Worker) -> str:
    """How long tasks waited that were sent one by one, and how many children left meanwhile."""
    sent = []
    pids = _pids(worker)
    began = time.time()
    for i in range(DELAYED):
        time.sleep(max(0.0, began + i * EACH_S - time.time()))
        sent.append((time.time(), site.send("grow", LEAK_MB)))
        pids |= _pids(worker)
    waited = sorted(each.get(timeout=120) - at for at, each in sent)
    late = sum(each > 1 for each in waited)
    return (
        f"slowest {waited[-1]:.2f} s, median {statistics.median(waited):.3f} s, "
        f"{late} of {len(waited)} waited over 1 s; "
        f"{len(pids) - CONCURRENCY} children left"
    )


def _cut(site: Site, worker: Worker, broker: RedisServer, total: Cut) -> None:
    """Work off a load while the connections to the broker are cut again and again."""
    ids = [site.send("work", CUT_TASK_S, CUT_LEAK_MB).id for _ in range(CUT)]
    pids = _pids(worker)
    changed = time.monotonic()
    began = cut_at = 0
    # Until all are finished, and nothing has begun for a while.
    while len(site.finished()) < CUT or time.monotonic() - changed < SETTLED_S:
        time.sleep(0.01)
        runs = sum(site.started().values())
        if runs > began:
            began, changed = runs, time.monotonic()
        if runs >= cut_at + CUT_EACH and len(site.finished()) < CUT:
            cut_at = runs
            total.cuts += 1
            for kind in ("normal", "pubsub"):
                broker.client.client_kill_filter(_type=kind, skipme=True)
        if time.monotonic() - changed > GIVEN_UP_S:
            break
        pids |= _pids(worker)
    started = site.started()
    twice = sum(started.get(each, 0) > 1 for each in ids)
    total.tasks += CUT
    total.twice += twice
    total.by_run.append(twice)
    total.unfinished += CUT - len(site.finished())
    total.left += len(pids) - CONCURRENCY


def _pids(worker: Worker) -> set[int]:
    return {child.pid for child in psutil.Process(worker.process.pid).children()}
