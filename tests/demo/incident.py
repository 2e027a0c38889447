"""Messages expire while no worker runs; what becomes of their ids without the guard and with it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.demo.claims import Claims
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Fleet, Worker, fleet, wait_for

MESSAGES = 200
REUSED = "nightly-report"
OPERATORS = "revoked-by-the-operator"
GUARD = {"worker_guard_interval": 1.0, "worker_guard_revoked_grace": 15.0}


@dataclass
class Outcome:
    """What was seen in one replay."""

    expired: int
    first: set[str]
    inherited: set[str]
    second: set[str]
    reused: str
    operators: str


def act(claims: Claims) -> None:
    """Replay the incident twice."""
    print(f"{MESSAGES + 1} messages expire while no worker runs, as when Beat goes on publishing.")
    print("\nWithout the guard:", flush=True)
    bare, _ = _replay(guarded=False)
    claims.check(f"the worker that discards them keeps all {bare.expired} ids",
                 bare.expired == MESSAGES + 1 and len(bare.first) >= MESSAGES + 1)  # fmt: skip
    claims.check("a second worker, started later, catches them by mingle",
                 len(bare.inherited) > MESSAGES and bare.first == bare.second)  # fmt: skip
    claims.check("a new task that reuses one of the ids is discarded", bare.reused == "discarded")

    print('\nWith app.steps["worker"].add(WorkerGuard):', flush=True)
    healed, lines = _replay(guarded=True)
    claims.check("the first worker's set is clean but for the operator's revocation",
                 healed.first == {OPERATORS})  # fmt: skip
    claims.check("a second worker, started later, catches none of them",
                 not healed.inherited and healed.second == {OPERATORS})  # fmt: skip
    claims.check("the task that reuses an id runs", healed.reused == "ran")
    claims.check("the operator's revocation still holds", healed.operators == "discarded")

    print(f"\n{'':34}{'without':>12}{'with the guard':>18}")
    for label, before, after in (
        ("messages that expired", bare.expired, healed.expired),
        ("ids in the first worker's set", len(bare.first), len(healed.first)),
        ("ids in the second's, by mingle", len(bare.second), len(healed.second)),
        ("a task that reuses an id", bare.reused, healed.reused),
        ("a task that the operator revoked", bare.operators, healed.operators),
    ):
        print(f"{label:34}{before!s:>12}{after!s:>18}")
    print("\nThe guard's lines in the two workers' logs, as they are:\n")
    print("\n".join(lines), flush=True)


def _replay(*, guarded: bool) -> tuple[Outcome, list[str]]:
    with (
        RedisServer() as redis_server,
        tempfile.TemporaryDirectory() as directory,
        fleet(
            Path(directory),
            broker_url=redis_server.url(0),
            result_backend=redis_server.url(1),
            **GUARD,
        ) as workers,
    ):
        workers.expire(REUSED, *(f"beat-{n}" for n in range(MESSAGES)))
        first = workers.start("first", "--without-mingle", guarded=guarded)
        wait_for(lambda: _discards(first) == MESSAGES + 1, "the messages to be discarded")
        expired = _discards(first)
        # Before anything is cleared: without the guard, the second takes over all the first has.
        second = workers.start("second", guarded=guarded)
        inherited = second.revoked()
        workers.send("add", 1, 2, task_id=OPERATORS, countdown=20)
        workers.app.control.revoke(OPERATORS)
        for worker in (first, second):
            wait_for(lambda worker=worker: OPERATORS in worker.revoked(), "the revoke")  # type: ignore[misc]
        if guarded:
            wait_for(lambda: first.cleared() > MESSAGES, "it to heal")
        outcome = Outcome(
            expired=expired,
            first=first.revoked(),
            inherited=inherited,
            second=second.revoked(),
            reused=_fate(workers, REUSED),
            operators=_fate(workers, OPERATORS),
        )
        lines = [
            line
            for worker in (first, second)
            for line in worker.text().splitlines()
            if line.startswith('{"event"')
        ]
        return outcome, lines


def _discards(worker: Worker) -> int:
    return worker.text().count("Discarding revoked task")


def _fate(workers: Fleet, task_id: str) -> str:
    """Send a task with this id, and see whether a worker runs it."""
    seen = sum(_mentions(w, task_id) for w in workers.workers)
    workers.send("add", 1, 2, task_id=task_id)

    def decided() -> str:
        if any(f"harness.add[{task_id}] succeeded" in w.text() for w in workers.workers):
            return "ran"
        again = sum(_mentions(w, task_id) for w in workers.workers) > seen
        return "discarded" if again else ""

    return wait_for(decided, f"{task_id} to be run or discarded")


def _mentions(worker: Worker, task_id: str) -> int:
    return worker.text().count(f"Discarding revoked task: harness.add[{task_id}]")
