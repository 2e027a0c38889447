"""What a cleanup of the results costs: ``python -m tests.bench.results [keys]``.

Every figure is a ratio to a peer of the same round, so that a slow machine or a busy one changes
little. Cleanup and peers delete the old half, which is written again before each. The goals are
printed beside the figures; the exit code says nothing of them.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import redis
from redis.utils import HIREDIS_AVAILABLE

from tests.bench import result_peers
from tests.harness.redis_server import RedisServer
from tests.harness.results import DAY_S, NOW, TASK_PREFIX, cleanup, date, record
from worker_guard.results.cleanup_run import DRY_RUN, REAL, ResultsActor

KEYS = 300_000
GROWTH = (10_000, 100_000, 1_000_000)
ROUNDS = 3
#: Keys of the peer that asks for one at a time: more would take minutes.
SAMPLE = 20_000
#: Shorter calls of the script are counted, not listed.
LOGGED_US = 300
SCRIPTS = ("eval", "evalsha")


@dataclass(frozen=True)
class Mix:
    """One of ``every`` results is of ``size_bytes``, the others are small."""

    name: str
    every: int = 0
    size_bytes: int = 0


MIXES = (
    Mix("small"),
    Mix("5 % of 60 KB", every=20, size_bytes=60_000),
    Mix("1 % of 1 MB", every=100, size_bytes=1_000_000),
)

GUARD, PIPELINED, TAILS, ONE, SCAN = (
    "the guard",
    "pipelined client (PTTL, head, tail)",
    "pipelined client (tails only)",
    "one key at a time",
    "bare SCAN",
)

PEERS: dict[str, Callable[[Any], object]] = {
    PIPELINED: result_peers.pipelined,
    TAILS: result_peers.tails_only,
    ONE: lambda client: result_peers.one_at_a_time(client, SAMPLE),
    SCAN: result_peers.bare_scan,
}


class Results:
    """Results of one mix, of which half are old, and every other one has no TTL."""

    def __init__(self, client: Any, count: int, mix: Mix, now: float = NOW) -> None:
        self._client, self._mix, self.count, self._ahead_s = client, mix, count, now - NOW
        self._ids = [str(uuid.uuid4()) for _ in range(count)]

    def write(self) -> None:
        """Write all of them into an empty database."""
        self._client.flushall()
        self._write(range(self.count))

    def write_old(self) -> None:
        """Write the old half again."""
        self._write(range(1, self.count, 2))

    def _write(self, numbers: Iterable[int]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            size = 0
            for number in numbers:
                key, value, ttl_s = self._result(number)
                pipe.set(key, value, ex=ttl_s)
                size += len(value)
                if size > 4_000_000:
                    pipe.execute()
                    size = 0
            pipe.execute()

    def _result(self, number: int) -> tuple[str, bytes, int | None]:
        task_id = self._ids[number]
        age_s = random.uniform(0, DAY_S / 2) + (2 * DAY_S if number % 2 else 0)
        # Pairs of numbers, as every second number is old.
        large = self._mix.every and number // 2 % self._mix.every == 0
        value = {**record(task_id), "date_done": date(age_s - self._ahead_s)}
        if large:
            value["result"] = "x" * self._mix.size_bytes
        # As if the backend had given it a TTL of three days.
        ttl_s = None if number % 4 < 2 else int(3 * DAY_S - age_s)
        return f"{TASK_PREFIX.decode()}{task_id}", json.dumps(value).encode(), ttl_s

    def left(self) -> tuple[int, int]:
        """How many old results are left, and how many fresh ones are gone."""
        names = [f"{TASK_PREFIX.decode()}{task_id}" for task_id in self._ids]
        fresh, old = names[::2], names[1::2]
        return self._exist(old), len(fresh) - self._exist(fresh)

    def _exist(self, names: list[str]) -> int:
        return sum(self._client.exists(*names[at : at + 1000]) for at in range(0, len(names), 1000))


@dataclass
class Measured:
    """What the rounds of one contender took, for each key of them."""

    wall_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    """What the rounds of one mix came to."""

    mix: Mix
    of: dict[str, Measured]
    calls_ms: list[float] = field(default_factory=list)
    calls: int = 0
    old_left: int = 0
    fresh_gone: int = 0

    def speed_of(self, peer: str) -> float:
        """Keys in a second of the guard against the peer's: the median of the rounds."""
        return _median_ratio(self.of[peer].wall_us, self.of[GUARD].wall_us)

    def processor_of(self, peer: str) -> float:
        """Redis's processor time by the guard against that by the peer, likewise."""
        return _median_ratio(self.of[GUARD].redis_us, self.of[peer].redis_us)

    def call_ms(self, share: float) -> float:
        """What this share of the calls did not exceed. The shorter ones are not on record."""
        longer = int(self.calls * (1 - share))
        ranked = sorted(self.calls_ms, reverse=True)
        return ranked[longer] if longer < len(ranked) else LOGGED_US / 1000


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def compare(server: RedisServer, count: int, mix: Mix) -> Outcome:
    """Run the guard and its peers in turn, so that a busy neighbour meets them all."""
    client = server.client
    results = Results(client, count, mix)
    results.write()
    cleanup(client, actor=REAL)  # the first one sends the script
    outcome = Outcome(mix, {name: Measured() for name in (GUARD, *PEERS)})
    for _ in range(ROUNDS):
        results.write_old()
        with _slow_calls(client, outcome):
            _measure(client, outcome.of[GUARD], lambda: _clean(client, count), count)
        old_left, fresh_gone = results.left()
        outcome.old_left += old_left
        outcome.fresh_gone += fresh_gone
        for name, peer in PEERS.items():
            if name is not SCAN:
                results.write_old()
            share = min(SAMPLE, count) if name is ONE else count
            _measure(client, outcome.of[name], lambda peer=peer: peer(client), share)  # type: ignore[misc]
    return outcome


def _clean(client: Any, count: int, actor: ResultsActor = REAL) -> None:
    counts = cleanup(client, actor=actor)
    if counts.keys_scanned < count:
        raise RuntimeError(f"the cleanup looked at {counts.keys_scanned} of {count} keys")


def _measure(client: Any, measured: Measured, run: Callable[[], object], keys: int) -> None:
    before, began = _processor_s(client), time.perf_counter()
    run()
    measured.wall_us.append((time.perf_counter() - began) / keys * 1e6)
    measured.redis_us.append((_processor_s(client) - before) / keys * 1e6)


def _processor_s(client: Any) -> float:
    """Redis's processor time: that of the thread that everybody waits for."""
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user_main_thread"]) + float(cpu["used_cpu_sys_main_thread"])


@contextmanager
def _slow_calls(client: Any, outcome: Outcome) -> Iterator[None]:
    """Add the script's calls to the outcome, as the server's clock takes them."""
    client.config_resetstat()
    client.config_set("slowlog-max-len", 100_000)
    # Not 0: the commands within a script would be logged as well, and leave no room for it.
    client.config_set("slowlog-log-slower-than", LOGGED_US)
    client.slowlog_reset()
    yield
    client.config_set("slowlog-log-slower-than", -1)
    stats = client.info("commandstats")
    outcome.calls += sum(
        stats[f"cmdstat_{name}"]["calls"] for name in SCRIPTS if f"cmdstat_{name}" in stats
    )
    outcome.calls_ms += [
        entry["duration"] / 1000
        for entry in client.slowlog_get(100_000)
        if entry["command"].split()[0].lower().decode() in SCRIPTS
    ]


# -- memory --------------------------------------------------------------------------------

_PEAK = "[int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')][0]"
_BARE = f"""
import sys, redis
redis.Redis.from_url(sys.argv[1]).ping()
print({_PEAK})
"""
_CELERY = f"""
import sys, celery
app = celery.Celery(backend=sys.argv[1])
app.backend.client.ping()
print({_PEAK})
"""
_CLEANING = f"""
import sys, celery
from worker_guard.results.backend import open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup
from worker_guard.settings import read_settings
app = celery.Celery(backend=sys.argv[1])
app.conf.result_expires = {3 * DAY_S}
backend = open_result_backend(app, read_settings(app.conf), timeout_s=10)
run = FullSpeedCleanup(backend, max_age_s={DAY_S}, dry_run=False, by="b", trigger="cli")
run.run()
assert run.counts.expired_results_deleted == int(sys.argv[2]), run.counts
print({_PEAK})
"""


@dataclass(frozen=True)
class Memory:
    """Peaks of resident memory (MB) of processes that hold a client, an app, or clean."""

    redis_py: float
    celery: float
    cleaning: float


def memory(server: RedisServer, count: int) -> Memory:
    """Clean in a process of its own, beside one with redis-py alone, and one with a Celery app."""
    Results(server.client, count, MIXES[0], now=time.time()).write()

    def peak_mb(program: str) -> float:
        command = [sys.executable, "-c", program, server.url(), str(count // 2)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return int(done.stdout) / 1000

    return Memory(peak_mb(_BARE), peak_mb(_CELERY), peak_mb(_CLEANING))


# -- the table -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure for each mix; ``goal`` is None where none is set."""

    what: str
    figures: list[float]
    goal: float | None = None
    better: Literal["more", "less"] = "less"
    form: str = ".2f"

    def __str__(self) -> str:
        goal = verdict = ""
        if self.goal is not None:
            goal = f"{'≥' if self.better == 'more' else '≤'} {self.goal:g}"
            verdict = "reached" if self._reached(self.goal) else "NOT REACHED"
        figures = " / ".join(f"{figure:{self.form}}" for figure in self.figures)
        return f"| {self.what} | {goal} | {figures} | {verdict} |"

    def _reached(self, goal: float) -> bool:
        if self.better == "more":
            return min(self.figures) >= goal
        return max(self.figures) <= goal


def rows(outcomes: list[Outcome], used: Memory) -> list[Row]:
    """Every goal of the cleanup, and what helps to read it."""

    def row(what: str, figure: Callable[[Outcome], float], **more: Any) -> Row:
        return Row(what=what, figures=[figure(outcome) for outcome in outcomes], **more)

    def speed(peer: str, goal: float, **more: Any) -> Row:
        return row(
            f"speed, of: {peer}", lambda o: o.speed_of(peer), goal=goal, better="more", **more
        )

    processor = "Redis's processor time"
    small = statistics.median(outcomes[0].of[GUARD].redis_us)
    return [
        row("keys/s", lambda o: 1e6 / statistics.median(o.of[GUARD].wall_us), form=",.0f"),
        speed(PIPELINED, 3),
        speed(TAILS, 1.5),
        speed(ONE, 20, form=".1f"),
        speed(SCAN, 0.18),
        row(f"{processor} (µs/key)", lambda o: statistics.median(o.of[GUARD].redis_us)),
        row(f"{processor}, of: {PIPELINED}", lambda o: o.processor_of(PIPELINED), goal=1.1),
        row(f"{processor}, of: {TAILS}", lambda o: o.processor_of(TAILS)),
        row(
            f"{processor}, of: small results",
            lambda o: statistics.median(o.of[GUARD].redis_us) / small,
            goal=1.4,
        ),
        row("99 % of the calls (ms)", lambda o: o.call_ms(0.99), goal=5),
        row("longest call (ms)", lambda o: o.call_ms(1)),
        Row(
            what="memory, over a process with redis-py (MB)",
            figures=[used.cleaning - used.redis_py],
            goal=5,
        ),
        Row(
            what="memory, over a process with a Celery app (MB)",
            figures=[used.cleaning - used.celery],
        ),
        row("old results left", lambda o: o.old_left, goal=0, form="d"),
        row("fresh results deleted", lambda o: o.fresh_gone, goal=0, form="d"),
    ]


def growth(client: Any) -> None:
    """How the time grows with the keyspace."""
    for count in GROWTH:
        Results(client, count, MIXES[0]).write()
        began = time.perf_counter()
        _clean(client, count, DRY_RUN)
        print(
            f"{count:,} keys: {(time.perf_counter() - began) * 1e6 / count:.1f} us/key", flush=True
        )


def main(count: int = KEYS) -> None:
    """Print the table in Markdown, as the documentation quotes it."""
    with RedisServer() as server:
        print(
            f"{count:,} results; Redis {server.client.info('server')['redis_version']}, "
            f"redis-py {redis.__version__} {'with' if HIREDIS_AVAILABLE else 'WITHOUT'} hiredis, "
            f"Python {platform.python_version()}; medians of {ROUNDS} rounds",
            flush=True,
        )
        outcomes = []
        for mix in MIXES:
            outcomes.append(compare(server, count, mix))
            print(f"measured: {mix.name}", flush=True)
        used = memory(server, count)
        print(f"| | goal | {' / '.join(mix.name for mix in MIXES)} | |")
        print("|---|---|---|---|")
        for row in rows(outcomes, used):
            print(row, flush=True)
        growth(server.client)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
