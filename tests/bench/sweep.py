"""A sweep of a full revoked set against the bare ``discard`` calls that it is made of."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

from celery.utils.collections import LimitedSet

from tests.bench.figure import Figure
from worker_guard.backoff import Backoff
from worker_guard.celery_internals import Discarding, held_ids
from worker_guard.revoked.backfill import BackfillCounter
from worker_guard.revoked.ledger import Ledger
from worker_guard.revoked.sweeper import Sweeper
from worker_guard.values.source import Source

IDS = 50_000
ROUNDS = 9


def run() -> list[Figure]:
    """Sweep a set of 50,000 expired ids, and one of which a tenth is expired."""
    bare, swept, holds = [], [], []
    for _ in range(ROUNDS):
        bare.append(_bare_discards())
        seconds, longest = _sweep(expired=IDS, operators=0)
        swept.append(seconds)
        holds.append(longest)
    mixed = [_sweep(expired=IDS // 10, operators=IDS - IDS // 10)[1] for _ in range(ROUNDS)]
    bare_ms = statistics.median(bare) * 1000
    return [
        Figure(
            f"a sweep of {IDS:,} expired ids, of as many bare discards",
            statistics.median(s / b for s, b in zip(swept, bare, strict=True)),
            "ratio",
            aim=1.5,
            note=f"median of {ROUNDS} pairs; the bare discards took {bare_ms:.1f} ms here",
        ),
        Figure(
            "longest time that this sweep held the event loop",
            max(holds) * 1000,
            "ms",
            aim=5.0,
            note=f"the longest slice of {ROUNDS} sweeps; the median of each sweep's longest is "
            f"{statistics.median(holds) * 1000:.2f} ms",
        ),
        Figure(
            f"the same where {IDS - IDS // 10:,} of the ids are an operator's",
            max(mixed) * 1000,
            "ms",
            aim=5.0,
            note=f"the median of each sweep's longest is {statistics.median(mixed) * 1000:.2f} ms",
        ),
    ]


def _filled(ids: list[str]) -> Any:
    revoked = LimitedSet(maxlen=IDS * 2, expires=10_800)
    for task_id in ids:
        revoked.add(task_id)
    return revoked


def _bare_discards() -> float:
    ids = [f"{n:036d}" for n in range(IDS)]
    revoked = _filled(ids)
    gc.collect()
    began = time.perf_counter()
    for task_id in ids:
        revoked.discard(task_id)
    return time.perf_counter() - began


def _sweep(*, expired: int, operators: int) -> tuple[float, float]:
    """Seconds of work, and seconds of the longest slice."""
    ids = [f"{n:036d}" for n in range(expired + operators)]
    revoked, ledger = _filled(ids), Ledger()
    for number, task_id in enumerate(ids):
        is_operators = number % (expired + operators) >= expired
        ledger.added(task_id, Source.OPERATOR if is_operators else Source.EXPIRY, 0.0)
        ledger.confirmed_expired(task_id)
    sweeper = Sweeper(
        interval_s=30.0,
        grace_s=0.0,
        confirmed_grace_s=0.0,
        compare=lambda: _compare(ledger, revoked),
        ledger=ledger,
        revoked=revoked,
        actor=Discarding(revoked),
        marks=None,
        records=None,
        lookups=Backoff("revoked_verify", first_pause_s=30.0, report=lambda _: None),
        backfill=BackfillCounter(),
        on_kept=lambda _id, _operators: None,
        report=lambda _: None,
        monotonic=time.perf_counter,
    )
    gc.collect()
    slices, total, longest = sweeper.run(), 0.0, 0.0
    while True:
        began = time.perf_counter()
        over = next(slices, "over") == "over"
        held = time.perf_counter() - began
        total, longest = total + held, max(longest, held)
        if over:
            break
    if len(revoked) != operators:
        raise RuntimeError(f"{len(revoked)} ids are left where {operators} should be")
    return total, longest


def _compare(ledger: Ledger, revoked: Any) -> None:
    unknown, missing = ledger.compare(held_ids(revoked))
    if unknown or missing:
        raise RuntimeError(f"{len(unknown)} ids are unknown, {len(missing)} are missing")
