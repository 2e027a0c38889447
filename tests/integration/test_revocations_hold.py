"""Revocations hold: each row of the table in docs/revocations.md, on real workers.

Where a row says what plain Celery does, it stands beside the guard in the same test.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu.connection import Connection

from tests.conftest import MakeFleet
from tests.harness.fronts import Cable
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Fleet, Worker, wait_for
from worker_guard.revoked.record import Made, Record, Revocation, open_record
from worker_guard.values.source import Way

RUNS, DISCARDED = "runs", "discarded"

#: Long enough for a revoke to arrive first, short enough to wait for.
ETA_S = 4.0

WEEK_S = 604_800.0

REVOKING = "tests.harness.revoking_app"


class Site:
    """Workers of one kind: "plain", "statedb" (plain with a statedb), or "guarded"."""

    def __init__(self, fleet: Fleet, kind: str, directory: Path) -> None:
        self.fleet = fleet
        self.app = fleet.app
        self._guarded = kind == "guarded"
        self._statedb = directory if kind == "statedb" else None

    def start(self, name: str, *options: str, **arguments: Any) -> Worker:
        """Start a worker of this kind, and wait until it takes tasks."""
        return self.launch(name, *options, **arguments).ready()

    def launch(self, name: str, *options: str, **arguments: Any) -> Worker:
        """Start a worker of this kind, alone (no mingle) unless ``mingle``."""
        alone = () if arguments.pop("mingle", False) else ("--without-mingle",)
        kept = () if self._statedb is None else (f"--statedb={self._statedb / name}.state",)
        return self.fleet.launch(name, *alone, *kept, *options, guarded=self._guarded, **arguments)

    def revoke(self, worker: Worker, task_id: str) -> None:
        """An operator revokes; this worker has heard it, and it is on record if that is kept."""
        self.app.control.revoke(task_id)
        worker.logged(f"Tasks flagged as revoked: {task_id}")
        if self._guarded:
            wait_for(lambda: task_id in on_record(self.fleet), "the revocation to be recorded")


@pytest.fixture
def make_site(make_fleet: MakeFleet, tmp_path: Path) -> Any:
    """Makes workers of one kind."""
    return lambda kind, **conf: Site(make_fleet(**conf), kind, tmp_path)


def kinds(plain: str, statedb: str, guarded: str) -> pytest.MarkDecorator:
    """What happens to the task at workers of each kind."""
    expected = {"plain": plain, "statedb": statedb, "guarded": guarded}
    return pytest.mark.parametrize(("kind", "expected"), list(expected.items()), ids=list(expected))


def the_record(fleet: Fleet, lifetime_s: float | None = WEEK_S) -> Record:
    """The record of this fleet, as the commands of an operator open it."""
    return open_record(fleet.results.backend, lifetime_s=lifetime_s, timeout_s=5.0)


def listed(fleet: Fleet) -> list[Revocation]:
    """What is on record."""
    return [each for page in the_record(fleet).pages() for each in page]


def on_record(fleet: Fleet) -> set[Any]:
    """The ids and stamps that are on record."""
    return {each.target for each in listed(fleet)}


def put_on_record(fleet: Fleet, *task_ids: str, **arguments: Any) -> None:
    """Revoke without any worker."""
    the_record(fleet, **arguments).put({task_id: Made(Way.REVOKE, 0.0) for task_id in task_ids})


def outcome(worker: Worker, task_id: str) -> str:
    """Wait until the worker has run or discarded this task."""

    def found() -> str:
        text = worker.text()
        if f"Task harness.add[{task_id}] succeeded" in text:
            return RUNS
        return DISCARDED if f"Discarding revoked task: harness.add[{task_id}]" in text else ""

    return wait_for(found, f"{task_id} to run or to be discarded")


def happens(site: Site, worker: Worker, task_id: str = "x") -> str:
    """Send the task, and wait for what happens."""
    site.fleet.send("add", 1, 2, task_id=task_id)
    return outcome(worker, task_id)


def put_back(worker: Worker, reason: str) -> None:
    """Wait until it has said that it put ids back for this reason, and for no other."""
    wait_for(lambda: worker.events("revocations_put_back"), "ids to be put back")
    assert {e["reason"] for e in worker.events("revocations_put_back")} == {reason}


# -- restarts ------------------------------------------------------------------------------


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_revoked_while_no_worker_is_up(make_site: Any, kind: str, expected: str) -> None:
    """Plain Celery has nobody to hear it. The message is the worker's first."""
    site = make_site(kind)
    site.app.control.revoke("x")
    put_on_record(site.fleet, "x")
    site.fleet.send("add", 1, 2, task_id="x")
    worker = site.start("w")
    assert outcome(worker, "x") == expected
    if kind == "guarded":
        (restored,) = worker.events("revocations_restored")
        assert (restored["revocations"], restored["stamps"]) == (1, 0)


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_each_pool_reads_the_record_before_its_first_message(make_site: Any, pool: str) -> None:
    """Prefork is in the test above."""
    site = make_site("guarded")
    put_on_record(site.fleet, "x")
    site.fleet.send("add", 1, 2, task_id="x")
    worker = site.start("w", "-P", pool)
    assert outcome(worker, "x") == DISCARDED


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_all_workers_are_killed(make_site: Any, kind: str, expected: str) -> None:
    """A task with an ETA is revoked, and its worker killed with -9; the broker delivers again."""
    assert restarted_with_eta(make_site(kind), signal.SIGKILL) == expected


@kinds(plain=RUNS, statedb=DISCARDED, guarded=DISCARDED)
def test_all_workers_are_restarted(make_site: Any, kind: str, expected: str) -> None:
    """The same with a warm shutdown: a statedb is written then."""
    assert restarted_with_eta(make_site(kind), signal.SIGTERM) == expected


def restarted_with_eta(site: Site, signum: int) -> str:
    first = site.start("w")
    site.fleet.send("add", 1, 2, task_id="x", countdown=ETA_S)
    first.logged("Task harness.add[x] received")
    site.revoke(first, "x")
    first.stop(signum)
    # Kombu looks for a killed worker's messages when it connects, and then only every 100 s.
    again = {"broker_transport_options": {"visibility_timeout": 0.01}}
    return outcome(site.start("w", conf=again), "x")


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_revoked_by_stamped_headers_before_a_restart(
    make_site: Any, kind: str, expected: str
) -> None:
    """Celery keeps stamps in memory only."""
    site = make_site(kind)
    first = site.start("w")
    site.app.control.revoke_by_stamped_headers({"customer": ["17"]})
    wait_for(lambda: stamp_is_known(site, first), "the revoke to arrive")
    first.stop()
    worker = site.start("w")
    site.fleet.send("add", 1, 2, task_id="x", stamped_headers=["customer"], customer="17")
    assert outcome(worker, "x") == expected
    if kind == "guarded":
        assert worker.events("revocations_restored")[0]["stamps"] == 1
        assert happens(site, worker, "other") == RUNS


def stamp_is_known(site: Site, worker: Worker) -> bool:
    """Whether the worker discards a task that bears the stamp."""
    task_id = site.fleet.send("add", 1, 2, stamped_headers=["customer"], customer="17")
    return outcome(worker, task_id) == DISCARDED


# -- workers that come later, or were away ---------------------------------------------------


@pytest.mark.parametrize("peer_guarded", [True, False], ids=["guarded-peer", "unguarded-peer"])
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "plain"])
def test_a_new_worker_beside_one_that_heard_it(
    make_fleet: MakeFleet, guarded: bool, peer_guarded: bool
) -> None:
    """Mingle brings it, with a guard or without."""
    fleet = make_fleet()
    peer = fleet.start("peer", "-Q", "other", guarded=peer_guarded)
    fleet.app.control.revoke("x")
    peer.logged("Tasks flagged as revoked: x")
    fleet.send("add", 1, 2, task_id="x")
    new = fleet.start("new", guarded=guarded)
    assert outcome(new, "x") == DISCARDED


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_a_new_worker_beside_none_that_heard_it(make_site: Any, kind: str, expected: str) -> None:
    """The one that heard it was killed."""
    site = make_site(kind)
    first = site.start("first", "-Q", "other")
    site.revoke(first, "x")
    first.stop(signal.SIGKILL)
    site.fleet.send("add", 1, 2, task_id="x")
    assert outcome(site.start("new", mingle=True), "x") == expected


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_missed_while_the_connection_was_lost(
    make_site: Any, redis_server: RedisServer, kind: str, expected: str
) -> None:
    """The other worker that heard it is gone when this one is back. Its first message then."""
    with Cable(redis_server.port) as cable:
        missed_by_one_worker(make_site(kind), cable, cable.url(), expected)


def missed_by_one_worker(site: Site, cable: Cable, by_cable: str, expected: str) -> None:
    other = site.start("other", "-Q", "other")
    # It is asked nothing: an answer that is on its way when the cable is cut would be sent again
    # and again, in the main loop, until the broker is back.
    worker = site.launch("w", mingle=True, conf={"broker_url": by_cable}).logged(" ready.")
    cable.cut()
    worker.logged("Connection to broker lost")
    site.revoke(other, "x")
    other.stop(signal.SIGKILL)
    site.fleet.send("add", 1, 2, task_id="x")
    cable.mend()
    assert outcome(worker, "x") == expected
    if expected == DISCARDED:
        assert worker.events("revocations_restored")[-1]["revocations"] == 1


# -- what Celery and the application do to the set -------------------------------------------


SMALL = {"CELERY_WORKER_REVOKES_MAX": "200"}
SHORT = {"CELERY_WORKER_REVOKE_EXPIRES": "2"}


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_a_full_set(make_site: Any, kind: str, expected: str) -> None:
    """300 messages expire at a worker whose set has room for 200."""
    site = make_site(kind, worker_guard_revoked_grace=3600.0)  # no sweep makes room meanwhile
    worker = site.start("w", environ=SMALL)
    site.revoke(worker, "x")
    for number in range(300):
        site.fleet.send("add", 1, 2, task_id=f"expired-{number}", expires=-1)
    worker.logged("Discarding revoked task: harness.add[expired-299]")
    assert happens(site, worker) == expected
    if kind == "guarded":
        put_back(worker, "set_full")
        assert len(worker.revoked() - {"x"}) <= 200


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
@pytest.mark.parametrize("dropped_by", ["hello", "merge"])
def test_aged_out(make_site: Any, dropped_by: str, kind: str, expected: str) -> None:
    """Celery drops what is old when a peer starts, and when another set is merged."""
    site = make_site(kind)
    worker = site.start("w", environ=SHORT, app_module=REVOKING)
    site.revoke(worker, "x")
    time.sleep(2.1)
    if dropped_by == "hello":
        site.start("peer", "-Q", "other", mingle=True)
        worker.logged("sync with peer@test")
    else:
        worker.ask("merge_revoked_set", task_id="applications")
    assert happens(site, worker) == expected
    if kind == "guarded":
        put_back(worker, "aged_out")


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_the_application_empties_the_set(make_site: Any, kind: str, expected: str) -> None:
    """By ``clear()``: the guard can't know that an operator wanted it."""
    site = make_site(kind)
    worker = site.start("w", app_module=REVOKING)
    site.revoke(worker, "x")
    worker.ask("clear_revoked_set")
    assert happens(site, worker) == expected
    if kind == "guarded":
        put_back(worker, "replaced")


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_the_application_replaces_the_set(make_site: Any, kind: str, expected: str) -> None:
    """Celery then adds to the new set, and looks into the old one."""
    site = make_site(kind)
    worker = site.start("w", app_module=REVOKING)
    site.revoke(worker, "before")
    worker.ask("replace_revoked_set")
    site.app.control.revoke("x")
    worker.logged("Tasks flagged as revoked: x")
    assert happens(site, worker, "before") == DISCARDED
    assert happens(site, worker) == expected


@kinds(plain=RUNS, statedb=RUNS, guarded=RUNS)
def test_the_application_takes_an_id_out(make_site: Any, kind: str, expected: str) -> None:
    """By ``discard()``: that is its own decision, and it holds, after a restart too."""
    site = make_site(kind)
    worker = site.start("w", app_module=REVOKING)
    site.revoke(worker, "x")
    worker.ask("discard_revoked", task_id="x")
    assert happens(site, worker) == expected
    wait_for(lambda: not on_record(site.fleet), "it to be off the record")
    worker.stop()
    again = site.start("w")
    assert again.revoked() == set()


# -- the end of a revocation -----------------------------------------------------------------


def test_the_lifetime_is_over(make_site: Any) -> None:
    """It is left to Celery then; but not one whose message this worker still holds."""
    site = make_site("guarded", worker_guard_revocation_lifetime=1.5)
    worker = site.start("w", app_module=REVOKING)
    site.fleet.send("add", 1, 2, task_id="waits", countdown=8)
    worker.logged("Task harness.add[waits] received")
    for task_id in ("x", "waits"):
        site.app.control.revoke(task_id)
        worker.logged(f"Tasks flagged as revoked: {task_id}")
    wait_for(lambda: worker.events("revocations_ended"), "the lifetime to be over")
    assert worker.revoked() == {"x", "waits"}, "Celery still has both"
    worker.ask("clear_revoked_set")
    assert worker.revoked() == {"waits"}
    assert happens(site, worker) == RUNS
    assert outcome(worker, "waits") == DISCARDED
    (ended, *_) = worker.events("revocations_ended")
    assert ended["revocations"] == 1


def test_the_record_ends_too(make_site: Any, redis_server: RedisServer) -> None:
    """A worker that starts later does not enter it, and its keys go."""
    site = make_site("guarded", worker_guard_revocation_lifetime=1.0)
    made = Made(Way.REVOKE, 700.0)  # its entry stays for ten minutes, since others may hold it
    the_record(site.fleet, lifetime_s=1.0).put({"x": made})
    worker = site.start("w")
    assert happens(site, worker) == RUNS
    assert worker.events("revocations_restored") == []
    results = redis_server.client
    results.execute_command("SELECT", 1)
    wait_for(lambda: not results.keys("worker-guard-revocations*"), "the entry to be removed")


def take_back(fleet: Fleet, *task_ids: str) -> None:
    """As ``celery guard unrevoke`` does: first on record, then at the workers that are up."""
    the_record(fleet).take_back(task_ids)
    fleet.app.control.broadcast("guard_unrevoke", arguments={"task_id": list(task_ids)})


@pytest.mark.parametrize("peer_guarded", [True, False], ids=["guarded-peer", "unguarded-peer"])
def test_taken_back(make_site: Any, peer_guarded: bool) -> None:
    """It comes back neither by a peer's mingle, nor from the statedb of a worker that was down."""
    site = make_site("guarded")
    statedb = f"--statedb={site.fleet.directory / 'down.state'}"
    down = site.start("down", statedb)
    peer = site.fleet.start("peer", "-Q", "other", guarded=peer_guarded)
    site.revoke(down, "x")
    peer.logged("Tasks flagged as revoked: x")
    down.stop()

    worker = site.start("w")
    take_back(site.fleet, "x")
    wait_for(lambda: worker.revoked() == set(), "the id to leave")
    assert happens(site, worker) == RUNS
    worker.stop()
    if peer_guarded:
        assert peer.revoked() == set()
    else:
        assert peer.revoked() == {"x"}, "an unguarded worker keeps it"

    back = site.start("down", statedb, mingle=True)
    assert "sync with 1 nodes" in back.text()
    assert back.revoked() == set()
    assert happens(site, back, "x") == RUNS
    assert on_record(site.fleet) == set()


def test_an_old_statedb_brings_nothing_back(make_site: Any, tmp_path: Path) -> None:
    """The id runs as the first message, however much else of the statedb waits to be recorded."""
    site = make_site("guarded")
    kept = f"--statedb={tmp_path / 'kept.state'}"
    first = site.start("w", kept)
    site.app.control.revoke([f"other-{number}" for number in range(3000)])
    site.revoke(first, "x")
    assert first.stop() == 0
    take_back(site.fleet, "x")
    site.fleet.send("add", 1, 2, task_id="x")
    assert outcome(site.start("w", kept), "x") == RUNS


def test_revoked_again_after_it_was_taken_back(make_site: Any) -> None:
    """What counts is what was done last."""
    site = make_site("guarded")
    first = site.start("w")
    site.revoke(first, "x")
    take_back(site.fleet, "x")
    wait_for(lambda: first.revoked() == set(), "the id to leave")
    site.app.control.revoke("x")
    wait_for(lambda: "x" in on_record(site.fleet), "the revocation to be recorded")
    first.stop(signal.SIGKILL)
    assert happens(site, site.start("w")) == DISCARDED


# -- the result backend ----------------------------------------------------------------------


@pytest.fixture
def results() -> Iterator[RedisServer]:
    """A result backend of its own."""
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("failure", ["down", "hangs"])
def test_the_result_backend_fails_at_the_start(
    make_site: Any, results: RedisServer, failure: str
) -> None:
    """The worker starts, says so, and enters what is on record when it answers again."""
    site = make_site("guarded", result_backend=results.url(), task_ignore_result=True)
    put_on_record(site.fleet, "x")
    raw = results.client.dump("worker-guard-revocations")
    since = results.client.dump("worker-guard-revocations-since")
    assert raw
    assert since
    if failure == "down":
        results.kill()
    else:
        results.pause()
    worker = site.fleet.launch("w", "--without-mingle")
    worker.logged("ready.")
    assert held_for_s(worker) < 5.0
    worker.failure("revocations")
    assert worker.events("revocations_restored") == []
    if failure == "down":
        results.start()
        results.client.restore("worker-guard-revocations-since", 0, since)
        results.client.restore("worker-guard-revocations", 0, raw)
    else:
        results.resume()
    (restored,) = wait_for(lambda: worker.events("revocations_restored"), "the record to be read")
    assert restored["revocations"] == 1
    assert happens(site, worker) == DISCARDED


def held_for_s(worker: Worker) -> float:
    """Seconds from the guard's start to the worker's ``ready.``; one machine, one clock."""
    (started,) = worker.events("started")
    ready = next(line for line in worker.text().splitlines() if line.endswith("ready."))
    at = datetime.strptime(ready[1:24], "%Y-%m-%d %H:%M:%S,%f").astimezone()
    return (
        at - datetime.fromisoformat(started["timestamp"].replace("Z", "+00:00"))
    ).total_seconds()


def test_a_result_backend_that_lost_its_keys(make_site: Any, results: RedisServer) -> None:
    """The workers that are up record everything again."""
    site = make_site("guarded", result_backend=results.url())
    first = site.start("w")
    site.revoke(first, "x")
    results.client.flushall()
    wait_for(lambda: on_record(site.fleet) == {"x"}, "it to be recorded again")
    first.stop(signal.SIGKILL)
    assert happens(site, site.start("w")) == DISCARDED


def test_without_a_redis_backend_a_worker_holds_what_it_heard(make_site: Any) -> None:
    """The start event says that nothing is on record."""
    site = make_site("guarded", result_backend="rpc://")
    worker = site.start("w", app_module=REVOKING)
    assert "not a key-value store" in worker.events("started")[0]["parts"]["revocations"]
    site.app.control.revoke("x")
    worker.logged("Tasks flagged as revoked: x")
    worker.ask("clear_revoked_set")
    assert happens(site, worker) == DISCARDED


def test_results_that_are_ignored_change_nothing(make_site: Any) -> None:
    """The record is no task's result."""
    site = make_site("guarded", task_ignore_result=True)
    first = site.start("w")
    site.revoke(first, "x")
    first.stop(signal.SIGKILL)
    assert happens(site, site.start("w")) == DISCARDED


# -- a dry run -------------------------------------------------------------------------------


def test_a_dry_run_only_counts(make_site: Any, results: RedisServer) -> None:
    """Nothing is entered, put back, or written; the events say what would have been."""
    site = make_site("guarded", result_backend=results.url(), task_ignore_result=True)
    put_on_record(site.fleet, "x")
    results.client.config_resetstat()
    worker = site.start("w", "--guard-dry-run", app_module=REVOKING)
    (restored,) = worker.events("revocations_restored")
    assert (restored["revocations"], restored["dry_run"]) == (1, True)
    assert worker.revoked() == set()
    assert happens(site, worker) == RUNS
    site.app.control.revoke("y")
    worker.logged("Tasks flagged as revoked: y")
    worker.ask("clear_revoked_set")
    put_back(worker, "replaced")
    assert worker.revoked() == set()
    assert worker.stop() == 0
    written = {
        "zadd",
        "zrem",
        "hset",
        "hdel",
        "set",
        "pexpire",
        "persist",
        "del",
        "unlink",
        "expire",
        "lpush",
        "ltrim",
        "rename",
    }
    # Those that a script runs are counted by themselves; a script that only reads is no write.
    assert not written & results.calls().keys()


# -- beside unguarded workers ----------------------------------------------------------------


def test_what_only_an_unguarded_worker_heard(make_site: Any) -> None:
    """It is recorded by the first guarded worker that inherits it; with the former it is lost."""
    site = make_site("guarded")
    unguarded = site.fleet.start("unguarded", "-Q", "other", guarded=False)
    site.app.control.revoke("x")
    unguarded.logged("Tasks flagged as revoked: x")
    first = site.start("w", mingle=True)
    assert happens(site, first) == DISCARDED


# -- RabbitMQ as the broker ------------------------------------------------------------------


@pytest.fixture
def rabbitmq() -> str:
    """The URL of a RabbitMQ whose queues may be used: no test starts one."""
    url = os.environ.get("WORKER_GUARD_TEST_RABBITMQ")
    if url is None:
        pytest.skip("WORKER_GUARD_TEST_RABBITMQ names no RabbitMQ, as in amqp://127.0.0.1:5672//")
    with Connection(url) as connection, connection.SimpleQueue("work") as queue:
        queue.clear()
    return url


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_rabbitmq_delivers_to_a_worker_after_kill(
    make_site: Any, rabbitmq: str, kind: str, expected: str
) -> None:
    """It delivers a killed worker's messages at once; results, and the record, are in Redis."""
    assert restarted_with_eta(make_site(kind, broker_url=rabbitmq), signal.SIGKILL) == expected


@kinds(plain=RUNS, statedb=RUNS, guarded=DISCARDED)
def test_rabbitmq_loses_a_connection(
    make_site: Any, rabbitmq: str, kind: str, expected: str
) -> None:
    """What was revoked meanwhile is known before the first message of the next connection."""
    site = make_site(kind, broker_url=rabbitmq)
    parts = urlsplit(rabbitmq)
    with Cable(parts.port or 5672) as cable:
        by_cable = parts._replace(netloc=f"guest:guest@127.0.0.1:{cable.port}").geturl()
        missed_by_one_worker(site, cable, by_cable, expected)
