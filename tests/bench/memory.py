"""What the memory part costs and gains, as ratios and times within one run.

Alone: ``python -m tests.bench.memory``.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.memory import LEAK_MB, MB, Site, memory_site
from tests.harness.memory_app import ALWAYS_GAINS
from tests.harness.redis_server import RedisServer
from worker_guard.events import Event
from worker_guard.memory.policy import ChildPolicy
from worker_guard.memory.reader import MemoryReader
from worker_guard.memory.roster import Roster
from worker_guard.memory.watchdog import MemoryDryRun, MemoryWatchdog, NoChildren
from worker_guard.scheduler import run_to_end

PRELOAD_MB = 300
LIMIT_MB = 200
CONCURRENCY = 4
CHILDREN = 16


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number, and whether it is as good as the project aims at."""

    what: str
    measured: str
    aim: str
    held: bool


def run() -> list[Figure]:
    """Measure everything."""
    with RedisServer() as server, tempfile.TemporaryDirectory() as directory:
        return [*throughput(server, Path(directory)), latency(server, Path(directory)), reading()]


def throughput(server: RedisServer, directory: Path) -> list[Figure]:
    """Tasks/s with a parent that preloaded more than the limit: the guard's limit, and Celery's."""

    def rate(count: int, *options: str, guarded: bool = True, **conf: Any) -> float:
        place = Path(tempfile.mkdtemp(dir=directory))
        with memory_site(server, place, worker_guard_memory_strikes=3, **conf) as site:
            site.start(
                f"--concurrency={CONCURRENCY}", *options, preload_mb=PRELOAD_MB, guarded=guarded
            )
            site.run("add", 1, 2)
            return _rate(site, count)

    limit_bytes = LIMIT_MB * MB
    unlimited = rate(1_500, guarded=False)
    guard = rate(1_500, worker_guard_child_memory_limit=limit_bytes, worker_guard_memory_interval=5)
    celery = rate(40, f"--max-memory-per-child={limit_bytes // 1024}", guarded=False)
    setting = f"{PRELOAD_MB} MB preloaded, a limit of {LIMIT_MB} MB, {CONCURRENCY} children"
    return [
        Figure(
            what=f"tasks/s, {setting}: the guard's limit against Celery's own",
            measured=f"{guard / celery:.0f} times ({guard:.0f}/s against {celery:.1f}/s)",
            aim="at least 20 times",
            held=guard >= 20 * celery,
        ),
        Figure(
            what=f"tasks/s, {setting}: with the guard against no limit at all",
            measured=f"{guard / unlimited:.0%} ({guard:.0f}/s against {unlimited:.0f}/s)",
            aim="at least 80% (noise included)",
            held=guard >= 0.8 * unlimited,
        ),
    ]


def _rate(site: Site, count: int) -> float:
    results = [site.send("add", 1, 2) for _ in range(count)]
    # From the first result on, so that publishing alone is never what is measured.
    results[0].get(timeout=120)
    began = time.perf_counter()
    for result in results[1:]:
        result.get(timeout=120)
    return (count - 1) / (time.perf_counter() - began)


def latency(server: RedisServer, directory: Path) -> Figure:
    """From the end of the task that a leaving child ran to the begin of the next in its place."""
    with memory_site(server, directory) as site:
        site.start(environ={ALWAYS_GAINS: "1"})
        results = [site.send("stamp", LEAK_MB, 0.4) for _ in range(25)]
        stamps = [result.get(timeout=120) for result in results]
    gaps = [
        began - ended
        for (pid, _, ended), (next_pid, began, _) in itertools.pairwise(stamps)
        if pid != next_pid
    ]
    median = statistics.median(gaps)
    return Figure(
        what=f"a recycled child's slot is back after its task (median of {len(gaps)})",
        measured=f"{median:.2f} s, slowest {max(gaps):.2f} s",
        aim="0.4 s at most",
        held=median <= 0.4,
    )


def reading() -> Figure:
    """One round of the watchdog over sixteen processes, all below the limit."""
    with _processes(CHILDREN) as pids:
        reader = MemoryReader("uss")
        policy = ChildPolicy(limit_bytes=10**12, strikes=3, concurrency=1, min_lifetime_s=60.0)
        events: list[Event] = []
        watchdog = MemoryWatchdog(
            interval_s=5.0,
            pid=pids[0],
            children=_Listed(pids),
            roster=Roster(policy=policy, reader=reader, report=events.append),
            reader=reader,
            parent_limit_bytes=10**12,
            parent_action="log",
            strikes=3,
            actor=MemoryDryRun(),
            report=events.append,
            monotonic=time.monotonic,
        )
        median = statistics.median(_time(lambda: run_to_end(watchdog.run())) for _ in range(200))
    return Figure(
        what=f"one reading with {CHILDREN} children below the limit (median of 200)",
        measured=f"{median * 1000:.2f} ms",
        aim="under 1 ms",
        held=median < 0.001,
    )


@dataclass(frozen=True)
class _Child:
    pid: int
    slot: int
    up: bool = True


class _Listed(NoChildren):
    def __init__(self, pids: list[int]) -> None:
        self._children = [_Child(pid, slot) for slot, pid in enumerate(pids)]

    def listed(self) -> list[_Child]:
        """Processes that stand for the children of a pool."""
        return self._children


@contextmanager
def _processes(count: int) -> Iterator[list[int]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]
    finally:
        for process in started:
            with process:
                process.kill()


def _time(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> int:
    """Print all figures; 1 where one misses its aim."""
    figures = run()
    for figure in figures:
        mark = "ok  " if figure.held else "MISS"
        print(f"{mark} {figure.what}: {figure.measured}; aim: {figure.aim}")
    return 0 if all(figure.held for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
