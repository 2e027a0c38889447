"""A soak: workers of each pool under a load that varies, and what has grown at the end.

The load has all that could be taken for a stall: bursts, idle minutes, a queue shared by three
workers, pools whose places are all taken, tasks with an ETA that fill the prefetch. The guard
would connect anew at once (``stall_after`` is 5 s, and it may act), so a false stall also shows as
a task that ran twice.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.harness.redis_server import RedisServer, free_port
from tests.harness.workers import Fleet, Worker, fleet, wait_for

APP = "tests.harness.stall_app"

#: The queue, the pool and the number of the workers that read it.
GROUPS = (("shared", "prefork", 3), ("t", "threads", 1), ("s", "solo", 1), ("g", "gevent", 1))

EVERYTHING_OFTEN = {
    "task_ignore_result": True,
    "worker_guard_interval": 2.0,
    "worker_guard_memory_interval": 1.0,
    "worker_guard_child_memory_limit": "1GB",
    "worker_guard_total_memory_limit": "4GB",
    "worker_guard_results_schedule": 60.0,
    "worker_guard_stall_after": 5.0,
    "worker_guard_stall_action": "reconnect",
    "worker_guard_heartbeat_interval": 1.0,
}


class Load:
    """Publishes tasks, and knows of each whether it ran once."""

    def __init__(self, server: RedisServer, workers: Fleet) -> None:
        self.server, self.workers = server, workers
        self.client: Any = server.client
        self.waiting: set[str] = set()
        self.expiring: set[str] = set()
        self.sent = self.ran = self.twice = 0

    def publish(self, queue: str, times: int, seconds: float = 0.0, **options: Any) -> None:
        """Publish tasks that sleep this long."""
        url = self.server.url(0)
        ids = {
            self.workers.send("runs", url, seconds, queue=queue, **options) for _ in range(times)
        }
        (self.expiring if "expires" in options else self.waiting).update(ids)
        self.sent += times

    def second(self, number: int) -> None:
        """What one second of the load brings: three minutes in turn, the third of them idle."""
        minute, second = divmod(number, 60)
        if minute % 3 == 2 and second >= 5:
            return
        for queue, _, workers in GROUPS:
            self.publish(queue, 4 * workers)
            if second % 20 == 0:
                self.publish(queue, 60 * workers)  # a burst
            if second == 10:
                self.publish(queue, 4 * workers, seconds=8.0)  # all places taken, and more wait
            if second == 30:
                self.publish(queue, 12 * workers, countdown=10)  # fills the prefetch
            if second == 45:
                self.publish(queue, 5 * workers, expires=0.001)

    def collect(self) -> None:
        """Read which tasks ran, and forget them."""
        with self.client.pipeline() as pipe:
            pipe.lrange("ran", 0, -1).delete("ran", "ended")
            ids = [each.decode() for each in pipe.execute()[0]]
        self.ran += len(ids)
        for each in ids:
            if each in self.waiting or each in self.expiring:
                self.waiting.discard(each)
                self.expiring.discard(each)
            else:
                self.twice += 1


def _figures(worker: Worker) -> dict[str, float]:
    process = psutil.Process(worker.process.pid)
    return {
        "rss_mb": process.memory_info().rss / 2**20,
        "fds": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children()),
    }


def main(minutes: float) -> int:
    """Run for so many minutes, print a line for each, and what was found. 1: something was."""
    with (
        RedisServer() as server,
        tempfile.TemporaryDirectory() as directory,
        fleet(Path(directory), broker_url=server.url(0), result_backend=server.url(1)) as workers,
    ):
        names = []
        for queue, pool, count in GROUPS:
            for number in range(count):
                names.append(f"{pool}-{number}")
                worker = workers.launch(
                    names[-1],
                    *("-P", pool, "--concurrency=2", "-Q", queue, "--loglevel=WARNING"),
                    app_module=APP,
                    conf={
                        **EVERYTHING_OFTEN,
                        "worker_guard_metrics_port": free_port(),
                        "worker_guard_heartbeat_file": f"{directory}/%n.heartbeat",
                    },
                )
                worker.ask("ping")
        load, series = Load(server, workers), _Series(names)
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < minutes * 60:
            load.second(number)
            number += 1
            if number % 60 == 0:
                load.collect()
                series.add(workers.workers, load)
            time.sleep(max(0.0, began + number - time.monotonic()))
        return _report(load, series, workers.workers)


class _Series:
    """The figures of each minute."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.minutes = names, list[list[dict[str, float]]]()
        self.redis: list[tuple[int, int]] = []

    def add(self, workers: list[Worker], load: Load) -> None:
        self.minutes.append([_figures(worker) for worker in workers])
        keys, clients = load.client.dbsize(), load.client.info("clients")["connected_clients"]
        self.redis.append((keys, clients))
        rss = " ".join(f"{each['rss_mb']:.1f}" for each in self.minutes[-1])
        print(
            f"{len(self.minutes):>3} min: {load.sent} sent, {load.ran} ran, {load.twice} twice; "
            f"rss {rss} MiB; redis {keys} keys, {clients} clients",
            flush=True,
        )

    def growth(self, what: str, worker: int) -> tuple[float, float]:
        """The median of the first third after the warm-up, and of the last."""
        values = [minute[worker][what] for minute in self.minutes]
        third = max(1, len(values) // 3)
        start = min(third, 5)
        return statistics.median(values[start : start + third]), statistics.median(values[-third:])


def _report(load: Load, series: _Series, workers: list[Worker]) -> int:
    """Print what was found; 0 where nothing was lost, doubled, stalled or failed."""

    def drained() -> bool:
        load.collect()
        return not any(load.client.llen(queue) for queue, _, _ in GROUPS) and not (
            load.client.hlen("unacked")
        )

    wait_for(drained, "the queues to be empty", 120)
    load.collect()
    for what in ("rss_mb", "fds", "threads", "children"):
        for number, name in enumerate(series.names):
            before, after = series.growth(what, number)
            print(f"{name:<12} {what:<9} {before:>8.1f} -> {after:>8.1f}")
    troubles = []
    for worker in workers:
        status = worker.ask("guard")
        reconnects = status["stall"]["reconnects"]
        events = [e for name in ("stalled", "part_failed") for e in worker.events(name)]
        troubles += [f"{worker.name}: {e['event']} {e}" for e in events]
        troubles += [f"{worker.name}: {reconnects} reconnects"] if reconnects else []
    print(
        f"{load.sent} tasks sent, {load.ran} ran, {len(load.expiring)} expired, "
        f"{load.twice} ran twice, {len(load.waiting)} are lost; {len(troubles)} troubles"
    )
    for trouble in troubles:
        print(trouble)
    return int(bool(troubles or load.twice or load.waiting))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 60.0))
