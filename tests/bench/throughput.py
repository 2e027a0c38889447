"""Tasks per second of a worker with the guard against one without."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.figure import Figure
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Fleet, fleet

TASKS = 3000
ROUNDS = 12


def run() -> list[Figure]:
    """Feed the same no-op tasks to the two in turn, in pairs whose order alternates."""
    with (
        RedisServer() as redis_server,
        tempfile.TemporaryDirectory() as directory,
        fleet(
            Path(directory),
            broker_url=redis_server.url(0),
            result_backend=redis_server.url(1),
            task_ignore_result=True,
        ) as workers,
    ):
        quiet = ("--loglevel", "WARNING", "--without-mingle")
        for name, guarded in (("guarded", True), ("bare", False)):
            worker = workers.launch(name, "-Q", name, *quiet, guarded=guarded)
            worker.ask("ping")
        for name in ("guarded", "bare"):
            _tasks_per_s(workers, redis_server, name)
        rates: dict[str, list[float]] = {"guarded": [], "bare": []}
        for number in range(ROUNDS):
            for name in sorted(rates, reverse=bool(number % 2)):
                rates[name].append(_tasks_per_s(workers, redis_server, name))
    pairs = zip(rates["guarded"], rates["bare"], strict=True)
    ratios = [with_guard / without for with_guard, without in pairs]
    quartiles = statistics.quantiles(ratios, n=4)
    return [
        Figure(
            "tasks/s with the guard, of those without it",
            statistics.median(ratios),
            "ratio",
            aim=0.99,
            better="more",
            note=(
                f"median of {ROUNDS} pairs, quartiles {quartiles[0]:.3f} and {quartiles[2]:.3f}; "
                f"{statistics.median(rates['bare']):.0f} tasks/s without the guard here"
            ),
        )
    ]


def _tasks_per_s(workers: Fleet, redis_server: RedisServer, queue: str) -> float:
    """Fill the queue while nobody reads it; then time it from the first task to the last."""
    worker = next(w for w in workers.workers if w.name.startswith(queue))
    worker.ask("cancel_consumer", queue=queue)
    done = f"done-{queue}"
    redis_server.client.delete(done)
    with workers.app.producer_pool.acquire() as producer:
        for _ in range(TASKS):
            workers.app.send_task("harness.add", (1, 2), queue=queue, producer=producer)
        workers.app.send_task(
            "harness.push", (redis_server.url(0), done), queue=queue, producer=producer
        )
    began = time.perf_counter()
    workers.app.control.add_consumer(queue, destination=[worker.name])
    if redis_server.client.blpop([done], timeout=120) is None:
        raise RuntimeError(f"{queue} did not finish {TASKS} tasks:\n{worker.text()}")
    return TASKS / (time.perf_counter() - began)
