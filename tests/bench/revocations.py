"""What it costs that revocations hold: ``python -m tests.bench revocations``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.bench.burst import OPERATORS
from tests.bench.figure import Figure
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Fleet, Worker, fleet, wait_for
from worker_guard.revoked.ledger import Ledger
from worker_guard.revoked.record import Made, Record, open_record
from worker_guard.revoked.restorer import Restorer
from worker_guard.values.source import Target, Way

RECORDED = (0, 1_000, 100_000)
STARTS = 3

MESSAGES, ROOM = 60_000, 50_000
PAIRS = 3

#: The same in a real worker, where each message comes from Redis.
WORKER_MESSAGES = 3_000
WORKER_ROUNDS = 5

EXPIRED, REVOKED = 50_000, 10

FLEET, FLEET_RECORDED = 20, 10_000

QUIET = {"worker_guard_interval": 3600.0, "worker_guard_revoked_grace": 7200.0}


def run() -> list[Figure]:
    """Measure everything; takes some minutes."""
    return [*starts(), *burst(), *worker_burst(), *mingle(), *together()]


# -- the start -----------------------------------------------------------------------------


def starts() -> list[Figure]:
    """From the launch of a worker to its ``ready.``, with so many revocations on record."""
    figures = []
    memory: dict[int, float] = {}
    for recorded in RECORDED:
        with _site() as (workers, results):
            before = results.client.info("memory")["used_memory"]
            _put(workers, recorded)
            size = results.client.info("memory")["used_memory"] - before
            took: dict[bool, list[float]] = {True: [], False: []}
            calls = 0
            for number in range(2 * STARTS):
                guarded = bool(number % 2)
                results.client.config_resetstat()
                began = time.time()
                worker = workers.launch(f"w{number}", "-P", "solo", guarded=guarded)
                worker.logged("ready.")
                took[guarded].append(_ready_at(worker) - began)
                if guarded and recorded:
                    wait_for(lambda w=worker: w.events("revocations_restored"), "the record")  # type: ignore[misc]
                    worker.ask("ping")
                    calls = _calls(results)
                if guarded:
                    memory[recorded] = psutil.Process(worker.process.pid).memory_info().rss
                worker.stop()
            seconds, longest = _read(workers)
        what = f"{recorded:,} on record"
        figures += [
            Figure(
                f"added to the start of a worker, {what}",
                statistics.median(took[True]) - statistics.median(took[False]),
                "s",
                aim=2.0,
                note=f"median of {STARTS}: {statistics.median(took[True]):.2f} s with the guard, "
                f"{statistics.median(took[False]):.2f} s without; {calls} commands to Redis",
            ),
            Figure(
                f"reading and entering them, {what}",
                seconds,
                "s",
                note=f"the longest slice held the loop for {longest * 1000:.1f} ms",
            ),
        ]
        if recorded == RECORDED[-1]:
            figures += [
                Figure("memory of a revocation in Redis", size / recorded, "bytes"),
                Figure(
                    "memory of a revocation in each worker",
                    (memory[recorded] - memory[0]) / recorded,
                    "bytes",
                    note="RSS of a worker with all of them, less that of one with none",
                ),
            ]
    return figures


class _Into:
    """Enters into a ledger alone, to tell the reading from Celery's set."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def enter(self, target: Any, since_mono: float, way: Way) -> bool:
        return self._ledger.restored(target, since_mono, way)

    def take_back(self, target: Any) -> bool:
        return False

    def record_again(self, targets: Sequence[Target]) -> None:
        """Nothing is lost here."""


def _read(workers: Fleet) -> tuple[float, float]:
    """Seconds to read all, and seconds of the longest slice, in this process."""
    ledger = Ledger()
    restorer = Restorer(
        interval_s=30.0,
        record=_record(workers),
        ledger=ledger,
        entrance=_Into(ledger),
        pending=(),
        report=lambda _: None,
        monotonic=time.monotonic,
    )
    slices, total, longest = restorer.run(), 0.0, 0.0
    while True:
        began = time.perf_counter()
        over = next(slices, "over") == "over"
        held = time.perf_counter() - began
        total, longest = total + held, max(longest, held)
        if over:
            return total, longest


# -- a full set ----------------------------------------------------------------------------


def burst() -> list[Figure]:
    """Celery's check of expired messages in a full set, in pairs."""
    ratios, plain_us = [], []
    for _ in range(PAIRS):
        without, kept_without = _burst("plain")
        with_guard, kept = _burst("guarded")
        ratios.append(with_guard / without)
        plain_us.append(without)
    return [
        Figure(
            f"processor time of Request.revoked, {MESSAGES:,} expired, room for {ROOM:,}",
            statistics.median(ratios),
            "ratio",
            note=f"median of {PAIRS} pairs; {statistics.median(plain_us):.0f} us per message "
            "without the guard, with no result stored and nothing logged",
        ),
        Figure(
            f"of {OPERATORS:,} operators' ids, still held",
            kept,
            "ids",
            aim=float(OPERATORS),
            better="more",
            note=f"{kept_without} without the guard",
        ),
    ]


def _burst(kind: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "tests.bench.burst", kind, str(MESSAGES), str(ROOM)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[0]), int(printed[1])


def worker_burst() -> list[Figure]:
    """The same at real workers, whose sets are full from the first round on."""
    spent: dict[str, list[float]] = {"guarded": [], "bare": []}
    with _site(**QUIET) as (workers, results):
        room = {"CELERY_WORKER_REVOKES_MAX": str(WORKER_MESSAGES - OPERATORS)}
        for name in spent:
            worker = workers.launch(
                name, "-P", "solo", "-Q", name, "--without-mingle",
                guarded=name == "guarded", environ=room,
            )  # fmt: skip
            worker.ask("ping")
        operators = [f"operators-{n}" for n in range(OPERATORS)]
        workers.app.control.revoke(operators)
        for number in range(WORKER_ROUNDS + 1):
            for name in sorted(spent, reverse=bool(number % 2)):
                seconds = _seconds_of(workers, results, name, number)
                if number:  # the first one fills the set
                    spent[name].append(seconds)
        kept = {w.name.split("@")[0]: w.revoked() & set(operators) for w in workers.workers}
    ratios = [g / b for g, b in zip(spent["guarded"], spent["bare"], strict=True)]
    each_us = statistics.median(spent["bare"]) / WORKER_MESSAGES * 1e6
    return [
        Figure(
            "processor time of a worker for expired messages, in a full set",
            statistics.median(ratios),
            "ratio",
            aim=1.1,
            note=f"median of {WORKER_ROUNDS} pairs of {WORKER_MESSAGES:,}; {each_us:.0f} us each "
            f"without the guard; {len(kept['guarded'])} operators' ids held, "
            f"{len(kept['bare'])} without it",
        )
    ]


def _seconds_of(workers: Fleet, results: RedisServer, queue: str, number: int) -> float:
    worker = next(w for w in workers.workers if w.name.startswith(queue))
    worker.ask("cancel_consumer", queue=queue)
    _send_expired(workers, queue, f"{queue}-{number}", WORKER_MESSAGES)
    workers.app.send_task("harness.push", (results.url(), f"done-{queue}"), queue=queue)
    process = psutil.Process(worker.process.pid)
    before = process.cpu_times()
    workers.app.control.add_consumer(queue, destination=[worker.name])
    wait_for(lambda: results.client.lpop(f"done-{queue}"), f"{queue} to finish", 180)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)


def _send_expired(workers: Fleet, queue: str, prefix: str, count: int) -> None:
    with workers.app.producer_pool.acquire() as producer:
        for n in range(count):
            workers.app.send_task(
                "harness.add", (1, 2), queue=queue, producer=producer,
                task_id=f"{prefix}-{n:024d}", expires=0.001,
            )  # fmt: skip


# -- mingle --------------------------------------------------------------------------------


def mingle() -> list[Figure]:
    """A guarded worker that starts beside one that has seen so many messages expire."""
    figures = []
    for guarded in (False, True):
        with _site(**QUIET, task_ignore_result=True) as (workers, results):
            _send_expired(workers, "work", "expired", EXPIRED)
            first = workers.launch(
                "first", "-P", "solo", "--without-mingle", "--loglevel", "WARNING", guarded=guarded
            )
            first.ask("ping")
            workers.app.control.revoke([f"operators-{n}" for n in range(REVOKED)])
            wait_for(lambda w=first: len(w.ask("hello", from_node="x")["revoked"]) >= REVOKED, "")  # type: ignore[misc]
            wait_for(lambda: not workers.broker.llen("work"), "the messages to expire", 300)
            reply = first.ask("hello", from_node="bench@test", revoked=None)
            results.client.config_resetstat()
            late = workers.launch(
                "late", "-P", "solo", "-Q", "other", conf={"worker_guard_interval": 1.0}
            )
            late.logged("ready.")
            late.logged("sync complete")
            looked_up = _until_quiet(results)
            took = _logged_at(late, "sync complete") - _logged_at(late, "searching for neighbors")
        beside = "with" if guarded else "without"
        figures += [
            Figure(
                f"a hello of {EXPIRED:,} expired and {REVOKED} revoked ids, {beside} a guard",
                len(json.dumps(reply)) / 1000,
                "kB",
            ),
            Figure(f"look-ups of the worker that starts, peer {beside} a guard", looked_up, "ids"),
            Figure(f"its mingle, peer {beside} a guard", took, "s"),
        ]
    return figures


def _until_quiet(results: RedisServer) -> int:
    """Records read (GETRANGE), as soon as two seconds brought none."""
    seen = -1
    while (now := results.calls().get("getrange", 0)) != seen:
        seen = now
        time.sleep(2)
    return seen


# -- a fleet -------------------------------------------------------------------------------


def together() -> list[Figure]:
    """A fleet that starts at once."""
    with _site() as (workers, results):
        _put(workers, FLEET_RECORDED)
        results.client.config_resetstat()
        for number in range(FLEET):
            workers.launch(f"w{number}", "-P", "solo", app_module="tests.harness.holds_app")
        for worker in workers.workers:
            worker.logged("ready.")
            wait_for(lambda w=worker: w.events("revocations_restored"), "the record")  # type: ignore[misc]
        calls = _calls(results)
        holds = [worker.ask("holds") for worker in workers.workers]
    what = f"{FLEET} workers start at once with {FLEET_RECORDED:,} on record"
    figures = [Figure(f"commands to Redis for each of them: {what}", calls / FLEET, "calls")]
    for which, phase in (("start", "before the first message"), ("later", "in a tick")):
        clock = [held[which][0] * 1000 for held in holds]
        worked = [held[which][1] * 1000 for held in holds]
        figures.append(
            Figure(
                f"the longest hold of a loop {phase}: {what}",
                max(clock),
                "ms",
                note=f"median of the workers {statistics.median(clock):.1f} ms; by the processor "
                f"{max(worked):.1f} ms at most, median {statistics.median(worked):.1f} ms",
            )
        )
    return figures


# -- what they share -----------------------------------------------------------------------


@contextmanager
def _site(**conf: Any) -> Iterator[tuple[Any, RedisServer]]:
    """Workers whose results, and so the record, have a Redis of their own."""
    with (
        RedisServer() as broker,
        RedisServer() as results,
        tempfile.TemporaryDirectory() as directory,
        fleet(
            Path(directory), broker_url=broker.url(), result_backend=results.url(), **conf
        ) as workers,
    ):
        workers.broker = broker.client  # type: ignore[attr-defined]
        yield workers, results


def _record(workers: Fleet) -> Record:
    return open_record(workers.results.backend, lifetime_s=604_800.0, timeout_s=30.0)


def _put(workers: Fleet, count: int) -> None:
    record = _record(workers)
    for first in range(0, count, 1000):
        record.put({f"{n:036d}": Made(Way.REVOKE, 0.0) for n in range(first, first + 1000)})


def _calls(results: RedisServer) -> int:
    ours = {"info", "config"}
    return sum(count for name, count in results.calls().items() if name not in ours)


def _ready_at(worker: Worker) -> float:
    return _logged_at(worker, "ready.")


def _logged_at(worker: Worker, text: str) -> float:
    """When the worker logged this line, in seconds of the epoch."""
    line = next(line for line in worker.text().splitlines() if text in line)
    return datetime.strptime(line[1:24], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
