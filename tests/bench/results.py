"""What a cleanup of the results costs: ``python -m tests.bench.results [keys]``.

Every figure is a ratio to another of the same run, so that a slow machine or a busy one changes
little. The aims are printed beside the figures; the exit code says nothing of them.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.harness.redis_server import RedisServer
from tests.harness.results import DAY_S, date, policy, record, run
from worker_guard.results.cleanup_run import STRATEGIES, CleanupRun
from worker_guard.results.selection import VALUE_LIMIT_BYTES, Kind, classify, judge
from worker_guard.results.strategy import DRY_RUN, FULL_SPEED, REAL, ResultsActor

KEYS = 300_000
GROWTH = (10_000, 100_000, 1_000_000)
PAGE_KEYS = 1000
ROUNDS = 3
LOGGED_US = 300


def fill(client: Any, count: int) -> None:
    """Results of which half are old, and every other one has no TTL."""
    client.flushall()
    with client.pipeline(transaction=False) as pipe:
        for i in range(count):
            task_id = str(uuid.uuid4())
            age_s = random.uniform(0, DAY_S / 2) + (2 * DAY_S if i % 2 else 0)
            value = json.dumps({**record(task_id), "date_done": date(age_s)})
            pipe.set(f"celery-task-meta-{task_id}", value, ex=None if i % 4 < 2 else DAY_S)
            if len(pipe) == 5000:
                pipe.execute()
        pipe.execute()


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def pages(client: Any) -> Iterator[list[bytes]]:
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, count=PAGE_KEYS)
        yield keys
        if not cursor:
            return


def bare_scan(client: Any) -> None:
    """The limit: every key's name, and nothing read."""
    for _ in pages(client):
        pass


def one_at_a_time(client: Any, count: int) -> None:
    """As cleanup scripts do it: SCAN, then GET and TTL for each key."""
    rules = policy()
    for keys in pages(client):
        for key in keys:
            kind = classify(key, rules)
            if kind is Kind.RESULT:
                judge(kind, client.get(key), client.pttl(key), rules)
            count -= 1
            if count <= 0:
                return


def pages_with_pipelines(client: Any) -> None:
    """SCAN pages with the values of each page read in one round trip, and judged here."""
    rules = policy()
    for keys in pages(client):
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.pttl(key)
                pipe.getrange(key, 0, VALUE_LIMIT_BYTES)
            answers = iter(pipe.execute())
        for key in keys:
            pttl = next(answers)
            judge(classify(key, rules), next(answers), pttl, rules)


def cleaned(client: Any, actor: ResultsActor, strategy: str) -> CleanupRun:
    cleanup = CleanupRun(client, policy(), actor=actor, pace=FULL_SPEED, first_strategy=strategy)
    run(cleanup)
    return cleanup


def calls_ms(client: Any, cleanup: Callable[[], object]) -> tuple[float, list[float]]:
    """How long a cleanup takes (s), and its longer script calls on the server (ms)."""
    client.config_set("slowlog-max-len", 100_000)
    # Not 0: the commands within a script would be logged as well, and leave no room for it.
    client.config_set("slowlog-log-slower-than", LOGGED_US)
    client.slowlog_reset()
    seconds = timed(cleanup)
    client.config_set("slowlog-log-slower-than", -1)
    return seconds, [
        entry["duration"] / 1000
        for entry in client.slowlog_get(100_000)
        if entry["command"].upper().startswith(b"EVAL")
    ]


def say(what: str, figure: str, aim: str = "") -> None:
    print(f"{what:58} {figure:>16}  {aim}".rstrip(), flush=True)


def speed(client: Any, count: int) -> None:
    """Keys in a second, each strategy, as ratios."""
    fill(client, count)
    sample = min(count, 20_000)
    for strategy in STRATEGIES:
        cleaned(client, DRY_RUN, strategy)
    rounds: dict[str, list[float]] = {}
    # In turn, so that a neighbour on the machine meets them all; the best of each counts.
    measured: tuple[tuple[str, Callable[[], object], int], ...] = (
        ("bare SCAN", lambda: bare_scan(client), count),
        ("one at a time", lambda: one_at_a_time(client, sample), sample),
        ("pages with pipelines", lambda: pages_with_pipelines(client), count),
        *(
            (f"dry run, {strategy}", partial(cleaned, client, DRY_RUN, strategy), count)
            for strategy in STRATEGIES
        ),
    )
    for _ in range(ROUNDS):
        for name, function, share in measured:
            rounds.setdefault(name, []).append(share / timed(function))
    best = {name: max(rates) for name, rates in rounds.items()}
    for name, rate in best.items():
        say(name, f"{rate:,.0f} keys/s")
    fastest = best[f"dry run, {STRATEGIES[0]}"]
    say("cleanup against one key at a time", f"{fastest / best['one at a time']:.1f}", "aim: 20")
    say("cleanup against pages with pipelines", f"{fastest / best['pages with pipelines']:.2f}")
    say("cleanup against a bare SCAN", f"{fastest / best['bare SCAN']:.2f}", "aim: 0.3")
    calls: list[float] = []
    for strategy in STRATEGIES:
        fill(client, count)
        scan_s = timed(lambda: bare_scan(client))
        seconds, of_strategy = calls_ms(client, partial(cleaned, client, REAL, strategy))
        calls += of_strategy
        say(
            f"real cleanup that deletes half, {strategy}",
            f"{count / seconds:,.0f} keys/s",
            f"{scan_s / seconds:.2f} of a bare SCAN",
        )
    say(f"longest of {len(calls)} script calls of 0.3 ms or more", f"{max(calls):.1f} ms", "aim: 5")
    say("99th percentile of them", f"{statistics.quantiles(calls, n=100)[98]:.1f} ms")
    say("calls over 5 ms", f"{sum(call > 5 for call in calls)}")


def growth(client: Any) -> None:
    """How time and this process's memory grow with the keyspace."""
    for count in GROWTH:
        fill(client, count)
        seconds = timed(lambda: cleaned(client, DRY_RUN, STRATEGIES[0]))
        gc.collect()
        tracemalloc.start()
        cleaned(client, DRY_RUN, STRATEGIES[0])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        say(
            f"{count:,} keys",
            f"{seconds * 1e6 / count:.1f} us/key",
            f"{seconds:.2f} s, {peak / 1024:.0f} KiB at most",
        )


def main(count: int = KEYS) -> None:
    with RedisServer() as server:
        print(f"{count:,} keys, Redis {server.client.info('server')['redis_version']}")
        speed(server.client, count)
        growth(server.client)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
