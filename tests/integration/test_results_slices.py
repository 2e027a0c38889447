"""How much of a real Redis, and of the event loop, a cleanup asks for between two pauses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from tests.harness.redis_server import RedisServer
from tests.harness.results import (
    DAY_S,
    all_keys_kept,
    contents,
    encoded,
    fill,
    policy,
    run,
)
from worker_guard.events import Event, PartFailed
from worker_guard.lease import Lease, SeenLease
from worker_guard.results.backend import open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup
from worker_guard.results.cleanup_run import (
    DRY_RUN,
    FULL_SPEED,
    IN_WORKER,
    REAL,
    CleanupCounts,
    CleanupRun,
    check_server,
)
from worker_guard.results.history import History, PrivateHistory
from worker_guard.results.scheduled_cleanup import ScheduledCleanup
from worker_guard.scheduler import Scheduler, run_to_end
from worker_guard.settings import read_settings

#: As long as an answer may be waited for.
SLOW_S = 0.39


class Wire:
    """The round trips of its clients, each of which takes its time by this clock."""

    def __init__(self) -> None:
        self.trips = 0

    def monotonic(self) -> float:
        return self.trips * SLOW_S

    def client(self, server: RedisServer) -> redis.Redis:
        wire = self

        class Counted(redis.Connection):
            def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                wire.trips += 1
                super().send_packed_command(command, check_health)

        pool = redis.ConnectionPool(connection_class=Counted, host="127.0.0.1", port=server.port)
        client = redis.Redis(connection_pool=pool)
        # To connect takes round trips of its own: two connections are there from now on.
        with client.pipeline() as pipe:
            pipe.watch("x")
            client.ping()
        return client


def trips(wire: Wire, slices: Iterator[None]) -> list[int]:
    """How many round trips each slice of these took."""
    found = []
    while True:
        before = wire.trips
        ended = next(slices, "ended") == "ended"
        found.append(wire.trips - before)
        if ended:
            return found


def test_each_step_of_a_cleanup_is_one_round_trip(server: RedisServer, client: Any) -> None:
    """Though the server forgets the script, and others write in between."""
    wire = Wire()
    fill(client)
    for i in range(500):
        client.set(f"celery-task-meta-{i}", encoded())
    one = CleanupRun(wire.client(server), policy(), actor=REAL, pace=IN_WORKER)
    steps = 0
    while not one.finished:
        before = wire.trips
        one.step()
        steps += 1
        assert wire.trips - before <= 1
        if steps % 3 == 0:
            client.script_flush()
            client.set("celery-task-meta-old", encoded(age_s=0))
    assert one.counts.expired_results_deleted > 400


@pytest.mark.parametrize("young", ["by itself", "among others"])
def test_a_result_written_between_any_two_round_trips_stays(
    server: RedisServer, client: Any, young: str
) -> None:
    """Wherever a cleanup stands when a task finishes: each moment is tried, one after the other."""
    others = [] if young == "by itself" else [f"celery-task-meta-{i}" for i in range(3)]
    key, value = "celery-task-meta-rewritten", encoded(age_s=0)
    for moment in range(100):
        client.flushall()
        client.mset(dict.fromkeys([key, *others], encoded()))
        one = CleanupRun(server.client, policy(), actor=REAL, pace=IN_WORKER)
        steps = 0
        while not one.finished:
            if steps == moment:
                client.set(key, value)
            one.step()
            steps += 1
        if moment >= steps:
            # The cleanup came to its end before: nobody wrote.
            assert not client.exists(key)
            break
        assert client.get(key) == value, f"gone, though it was written at {moment} of {steps}"
        assert one.counts.expired_results_deleted == len(others)
    assert moment >= 1


class ResultBackend:
    """A real server, cleaned at the moment of the harness."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def check(self) -> None:
        check_server(self._client, "worker-guard-")

    def begin(self, *, max_age_s: float, actor: Any, pace: Any) -> CleanupRun:
        return CleanupRun(self._client, policy(), actor=actor, pace=pace)


def scheduled_cleanup(
    client: Any, *, dry_run: bool = False, **values: Any
) -> tuple[ScheduledCleanup, list[Event]]:
    """One that is due each day, as a worker has it."""
    events: list[Event] = []
    ours: dict[str, Any] = {
        "longest_wait_s": 30.0,
        "max_age_s": float(DAY_S),
        "schedule": lambda last_run: (last_run < time.time() - DAY_S, 60.0),
        "backend": ResultBackend(client),
        "actor": DRY_RUN if dry_run else REAL,
        "dry_run": dry_run,
        "lease": SeenLease(client, "worker-guard-results-lease")
        if dry_run
        else Lease(client, "worker-guard-results-lease", "w", monotonic=lambda: 0.0),
        "history": PrivateHistory() if dry_run else History(client, "worker-guard-"),
        "by": "w",
        "report": events.append,
        "monotonic": time.monotonic,
        "now": time.time,
    }
    return ScheduledCleanup(**{**ours, **values}), events


def test_a_slow_server_costs_each_slice_one_answer(server: RedisServer, client: Any) -> None:
    """From the first look at the schedule to the history, with a lease that is renewed."""
    wire = Wire()
    slow = wire.client(server)
    expected = fill(client)
    lease = Lease(slow, "worker-guard-results-lease", "w", monotonic=lambda: 50.0 * wire.trips)
    part, events = scheduled_cleanup(slow, lease=lease, monotonic=wire.monotonic)
    # The free time after a slow slice is not waited for.
    part._rest = lambda _started: iter([None])  # type: ignore[method-assign, assignment]
    assert max(trips(wire, part.run())) == 1
    assert events == []
    client.set("worker-guard-results-last-run", "1.0")
    assert max(trips(wire, part.run())) == 1
    (event,) = events
    assert event.expired_results_deleted == expected.expired_results_deleted  # type: ignore[attr-defined]
    assert client.llen("worker-guard-history") == 1
    assert not client.exists("worker-guard-results-lease")
    # Somebody else's lease is looked at in slices, too.
    client.set("worker-guard-results-last-run", "1.0")
    client.set("worker-guard-results-lease", "another")
    assert max(trips(wire, part.run())) == 1


def test_a_last_run_of_the_future_does_not_stop_the_cleanups(client: Any) -> None:
    """It is put right, for all workers, and they count from there."""
    far = time.time() + 30 * DAY_S
    client.set("worker-guard-results-last-run", repr(far))
    part, events = scheduled_cleanup(client)
    run_to_end(part.run())
    assert float(client.get("worker-guard-results-last-run")) == pytest.approx(time.time(), abs=60)
    assert events == []


def test_a_dry_run_cleans_only_where_nobody_does(client: Any) -> None:
    """It looks at the lease of the others, and takes none."""
    fill(client)
    client.set("worker-guard-results-lease", "another")
    part, events = scheduled_cleanup(client, dry_run=True)
    part.history.ran(1.0)
    before = contents(client)
    run_to_end(part.run())
    assert events == []
    client.delete("worker-guard-results-lease")
    with all_keys_kept(client):
        run_to_end(part.run())
    assert len(events) == 1
    assert len(before) == client.dbsize() + 1


def test_a_worker_reads_a_bounded_amount_between_two_pauses(
    server: RedisServer, client: Any
) -> None:
    """Of what the script does not know, however large it is: to parse it holds the event loop."""
    for i in range(20):
        client.set(f"celery-task-meta-{i}", encoded(result="x" * 60_000))
        client.set(f"celery-task-meta-large-{i}", encoded(result="x" * 110_000))
        client.set(f"celery-task-meta-huge-{i}", encoded(result="x" * 300_000))
        client.set(f"celery-task-meta-known-{i}", encoded(f"known-{i}", result="x" * 900_000))
    one = CleanupRun(server.client, policy(), actor=REAL, pace=IN_WORKER)
    sent, most = sent_bytes(client), 0
    while not one.finished:
        one.step()
        sent, before = sent_bytes(client), sent
        most = max(most, sent - before)
    # The rest is the answers' framing, and the INFO by which this test asks.
    assert 110_000 < most < IN_WORKER.largest_bytes + 16 * 1024
    assert one.counts.expired_results_deleted == 60
    assert (one.counts.keys_unreadable, one.counts.task_states_cleaned) == (20, 20)
    assert run(CleanupRun(server.client, policy(ignore_ttl=True), actor=REAL, pace=FULL_SPEED)) == (
        CleanupCounts(20, expired_results_deleted=20)
    )


def sent_bytes(client: Any) -> int:
    """What the server has sent to all of its clients."""
    return int(client.info("stats")["total_net_output_bytes"])


def test_the_duration_of_a_cleanup_is_that_of_its_run(server: RedisServer, client: Any) -> None:
    """Not of what comes before it and after it, the drop of the waiting messages say."""
    fill(client)
    app = Celery("test", set_as_current=False, broker="memory://", backend=server.url())
    backend = open_result_backend(app, read_settings(app.conf), timeout_s=10.0)
    job = FullSpeedCleanup(backend, max_age_s=float(DAY_S), dry_run=False, by="test", trigger="cli")
    built_at = time.time()
    job.run()
    outcome = job.outcome()
    assert outcome is not None
    assert outcome.at >= built_at
    assert outcome.event.duration_s > 0
    assert job.outcome() == outcome


def test_the_lease_is_retaken_by_its_holder_after_a_cleanup_that_failed(client: Any) -> None:
    """After pauses that grow; nobody else gets it meanwhile, and it is given back at the end."""
    fill(client)
    client.set("worker-guard-results-last-run", "1.0")

    class Failing(ResultBackend):
        fails = True

        def begin(self, **arguments: Any) -> CleanupRun:
            cleanup = super().begin(**arguments)
            if self.fails:
                cleanup.step = self.fail  # type: ignore[method-assign]
            return cleanup

        def fail(self) -> None:
            raise redis.ConnectionError("gone")

    backend = Failing(client)
    part, events = scheduled_cleanup(client, backend=backend)
    other, _ = scheduled_cleanup(
        client,
        lease=Lease(client, "worker-guard-results-lease", "other", monotonic=lambda: 0.0),
    )
    loop = Loop(part)
    for _ in range(4):
        loop.run_until_failed()
        assert client.get("worker-guard-results-lease") == b"w"
        client.pexpire("worker-guard-results-lease", 50_000)
        run_to_end(other.run())
        assert client.get("worker-guard-results-lease") == b"w"
    assert [event.retry_in_s for event in loop.failures] == [30.0, 60.0, 120.0, 240.0]
    assert events == []
    backend.fails = False
    while not events:
        loop.tick()
    assert events[0].expired_results_deleted > 0  # type: ignore[attr-defined]
    while client.exists("worker-guard-results-lease"):
        loop.tick()
    assert json.loads(client.lindex("worker-guard-history", 0))["complete"] is True


class Loop:
    """The scheduler's timer, whose time passes by what it is asked to wait."""

    def __init__(self, job: ScheduledCleanup) -> None:
        self.now = 0.0
        self.failures: list[PartFailed] = []
        self._timers: list[tuple[float, Any]] = []
        scheduler = Scheduler(report=self._note, monotonic=lambda: self.now)
        scheduler.add(job)
        scheduler.arm(lambda delay_s, tick: self._timers.append((delay_s, tick)))

    def tick(self) -> None:
        delay_s, tick = self._timers.pop()
        self.now += delay_s
        tick()

    def run_until_failed(self) -> None:
        seen = len(self.failures)
        while len(self.failures) == seen:
            self.tick()

    def _note(self, event: Event) -> None:
        assert isinstance(event, PartFailed)
        self.failures.append(event)


def test_of_two_hundred_workers_that_start_at_once_one_cleans(
    server: RedisServer, client: Any
) -> None:
    """All find it due; who gets the lease after the one that cleaned sees that it was done."""
    fill(client)
    client.set("worker-guard-results-last-run", "1.0")
    all_find_it_due = threading.Barrier(200)
    turn = threading.Semaphore(1)
    found: list[Event] = []
    leases: list[int] = []

    class Patient(Lease):
        """One that all want at once, and that the others then get one after the other."""

        waited = False

        def take(self) -> Iterator[None]:
            all_find_it_due.wait()
            yield from super().take()
            if not self.held:
                turn.acquire()
                self.waited = True
                while not self.held:
                    yield from super().take()

        def release(self) -> Iterator[None]:
            yield from super().release()
            if self.waited:
                turn.release()

    def work(number: int) -> None:
        own = redis.Redis(port=server.port, socket_timeout=60, socket_connect_timeout=60)
        own.ping()
        lease = Patient(own, "worker-guard-results-lease", f"w{number}", monotonic=lambda: 0.0)
        part, events = scheduled_cleanup(own, lease=lease)
        run_to_end(part.run())
        found.extend(events)
        leases.append(number)
        own.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leases) == 200
    assert len(found) == 1
    assert client.llen("worker-guard-history") == 1
    assert not client.exists("worker-guard-results-lease")
