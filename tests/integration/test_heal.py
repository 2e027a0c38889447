"""The main job on real workers: expired ids go, operators' revocations stay."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
import redis

from tests.conftest import MakeFleet
from tests.harness.redis_server import RedisServer
from tests.harness.revoking_app import BEFORE_START, REPLACED
from tests.harness.workers import Fleet, Worker, wait_for

EXPIRED = {f"expired-{n}" for n in range(12)}

needs_spawn = pytest.mark.skipif(
    tuple(int(n) for n in celery.__version__.split(".")[:2]) < (5, 7),
    reason="worker_pool_start_method came with Celery 5.7",
)


def healed(worker: Worker, *kept: str) -> None:
    """Wait until only these ids are left in the worker's set."""
    wait_for(lambda: worker.revoked() == set(kept), f"{worker.name} to hold only {kept}")


def swept(worker: Worker, times: int = 3) -> None:
    """Wait until the worker's guard has swept so often from now on."""
    for _ in range(times):
        seen = worker.ask("guard")["totals"]["sweeps"]
        wait_for(lambda seen=seen: worker.ask("guard")["totals"]["sweeps"] > seen, "a sweep")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pool", "conf"),
    [
        ("prefork", {}),
        pytest.param("prefork", {"worker_pool_start_method": "spawn"}, marks=needs_spawn),
        ("solo", {}),
        ("threads", {}),
        ("gevent", {}),
    ],
    ids=["prefork-fork", "prefork-spawn", "solo", "threads", "gevent"],
)
def test_heals_on_each_pool(make_fleet: MakeFleet, pool: str, conf: dict[str, Any]) -> None:
    """Expired ids are cleared, an operator's stays, and an id can be used again."""
    fleet = make_fleet(**conf)
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "-P", pool, "--without-mingle")
    fleet.app.control.revoke("operators")

    wait_for(lambda: worker.cleared() == len(EXPIRED), "the ids to be cleared")
    healed(worker, "operators")
    assert fleet.succeeds("add", 1, 2, task_id="expired-0") == 3
    assert worker.events("started")[0]["pool"] == pool
    assert worker.stop() == 0
    assert worker.events("stopped")[0]["revoked_tasks_cleared"] == len(EXPIRED)
    assert "Traceback" not in worker.text()


def test_without_the_guard_a_reused_id_is_discarded(make_fleet: MakeFleet) -> None:
    """The incident itself, so that the tests above say something."""
    fleet = make_fleet()
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle", guarded=False)
    wait_for(lambda: worker.revoked() == EXPIRED, "the ids to be kept")
    fleet.send("add", 1, 2, task_id="expired-0")
    wait_for(
        lambda: worker.text().count("Discarding revoked task: harness.add[expired-0]") == 2,
        "the reused id to be discarded",
    )


def test_a_retry_of_a_cleared_id_runs(make_fleet: MakeFleet) -> None:
    """``retry()`` reuses the id, so it was hurt too."""
    fleet = make_fleet()
    fleet.expire("again", task="retry_once")
    worker = fleet.start("w", "--without-mingle")
    wait_for(lambda: worker.cleared() == 1, "the id to be cleared")
    assert fleet.succeeds("retry_once", "done", task_id="again") == "done"


def test_without_an_event_loop(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """A transport without one: the timer is a thread, the sweep runs in the consumer's."""
    folders = {name: tmp_path / name for name in ("queue", "control")}
    for folder in folders.values():
        folder.mkdir()
    options = {
        "data_folder_in": str(folders["queue"]),
        "data_folder_out": str(folders["queue"]),
        "control_folder": str(folders["control"]),
    }
    fleet = make_fleet(broker_url="filesystem://", broker_transport_options=options)
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle")
    wait_for(lambda: worker.cleared() == len(EXPIRED), "the ids to be cleared")
    assert fleet.succeeds("add", 1, 2, task_id="expired-0") == 3


# -- an operator's revocation, by each way -------------------------------------------------


def expires_at_worker(fleet: Fleet, task_id: str) -> None:
    """Send a task that the running worker holds until after it has expired."""
    fleet.send("add", 1, 2, task_id=task_id, countdown=2.5, expires=1.5)


def send_expired(fleet: Fleet, *task_ids: str) -> None:
    """Send tasks to a running worker that have expired by the time it looks at them."""
    for task_id in task_ids:
        fleet.send("add", 1, 2, task_id=task_id, expires=-1)


def discarded(worker: Worker, task_id: str) -> None:
    """Wait until the worker has discarded this task."""
    worker.logged(f"Discarding revoked task: harness.add[{task_id}]")


def on_record(results: redis.Redis, task_id: str) -> bool:
    """Whether this Redis has the operator's revocation of this id."""
    return results.zscore("worker-guard-revocations", f"id:{task_id}") is not None


@pytest.fixture
def results(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """The result backend of the fleets that have no other."""
    client = redis.Redis.from_url(redis_server.url(1))
    yield client
    client.close()


@pytest.fixture
def worker(make_fleet: MakeFleet, request: pytest.FixtureRequest) -> Worker:
    """One guarded worker, with an expired id to tell that its sweeps work."""
    fleet = make_fleet()
    fleet.expire("plain")
    running = fleet.start("w", "--without-mingle")
    running.fleet = fleet
    return running


def test_revoked_before_it_expires(worker: Worker) -> None:
    """An operator revokes; then the message expires."""
    expires_at_worker(worker.fleet, "both")
    worker.app.control.revoke("both")
    discarded(worker, "both")
    wait_for(worker.cleared, "the plain id to be cleared")
    swept(worker)
    assert worker.revoked() == {"both"}


def test_revoked_after_it_expired(make_fleet: MakeFleet) -> None:
    """The message expires; then, before the sweep, an operator revokes."""
    fleet = make_fleet(worker_guard_interval=3600.0, worker_guard_revoked_grace=0.0)
    fleet.expire("plain", "both")
    worker = fleet.start("w", "--without-mingle")
    wait_for(lambda: worker.revoked() == {"plain", "both"}, "the messages to expire")
    fleet.app.control.revoke("both")
    wait_for(lambda: worker.ask("guard")["revoked"]["operator"] == 1, "the revoke to arrive")
    worker.ask("guard_sweep")
    assert worker.revoked() == {"both"}


def test_revoked_after_it_was_cleared(worker: Worker) -> None:
    """The id was cleared; then an operator revokes it, and it expires again."""
    wait_for(lambda: worker.cleared() == 1, "the id to be cleared")
    worker.app.control.revoke("plain")
    expires_at_worker(worker.fleet, "plain")
    wait_for(lambda: worker.text().count("Discarding revoked task: harness.add[plain]") == 2, "")
    swept(worker)
    assert worker.revoked() == {"plain"}


def test_terminated(worker: Worker) -> None:
    """An operator terminates, by both commands; one of the messages expires, too."""
    expires_at_worker(worker.fleet, "both")
    worker.app.control.terminate("both")
    worker.app.control.revoke("other", terminate=True)
    discarded(worker, "both")
    wait_for(worker.cleared, "the plain id to be cleared")
    swept(worker)
    assert worker.revoked() == {"both", "other"}


def test_a_running_task_terminated(worker: Worker) -> None:
    """A task is ended while it runs."""
    worker.fleet.send("sleep", 60, task_id="running")
    worker.logged("Task harness.sleep[running] received")
    wait_for(lambda: worker.ask("active"), "the task to run")
    worker.app.control.terminate("running", signal="SIGKILL")
    wait_for(lambda: worker.cleared() == 1, "the plain id to be cleared")
    swept(worker)
    assert worker.revoked() == {"running"}


def test_revoked_by_stamped_headers_is_only_reported(worker: Worker) -> None:
    """``revoked_stamps`` is left alone, and its size is shown."""
    worker.app.control.revoke_by_stamped_headers({"customer": ["17"]})
    wait_for(lambda: worker.ask("guard")["revoked"]["stamps"] == 1, "the stamp to be shown")
    wait_for(lambda: worker.cleared() == 1, "the plain id to be cleared")
    swept(worker)
    assert worker.ask("guard")["revoked"]["stamps"] == 1


# -- mingle and hello ----------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded-peer", "unguarded-peer"])
def test_ids_from_a_peer_by_mingle(make_fleet: MakeFleet, guarded: bool) -> None:
    """A worker that starts later clears what expired, and keeps what an operator revoked.

    A guarded peer does not hand on what it knows to have expired.
    """
    fleet = make_fleet()
    fleet.expire(*EXPIRED)
    slow = {"worker_guard_interval": 3600.0, "worker_guard_revoked_grace": 3600.0}
    first = fleet.start("w1", "--without-mingle", guarded=guarded, conf=slow)
    wait_for(lambda: first.revoked() == EXPIRED, "the ids to be kept")
    fleet.app.control.revoke("operators")
    wait_for(lambda: "operators" in first.revoked(), "the revoke to arrive")

    second = fleet.start("w2")
    assert "sync with 1 nodes" in second.text()
    healed(second, "operators")
    swept(second)
    assert second.revoked() == {"operators"}
    assert second.cleared() == (0 if guarded else len(EXPIRED))


def test_ids_from_a_peer_by_hello(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """A peer that starts later brings its ids; the guarded worker clears those that expired."""
    fleet = make_fleet()
    fleet.expire(*EXPIRED)
    statedb = f"--statedb={tmp_path / 'state'}"
    peer = fleet.start("peer", "--without-mingle", statedb, guarded=False)
    wait_for(lambda: peer.revoked() == EXPIRED, "the ids to be kept")
    fleet.app.control.revoke("operators")
    wait_for(lambda: "operators" in peer.revoked(), "the revoke to arrive")
    peer.stop()

    guarded = fleet.start("guarded", "--without-mingle")
    fleet.start("peer", statedb, guarded=False)
    assert "sync with peer@test" in guarded.text()
    wait_for(lambda: guarded.cleared() == len(EXPIRED), "the ids to be cleared")
    swept(guarded)
    assert guarded.revoked() == {"operators"}


def test_an_operators_revocation_that_expired_at_a_peer(make_fleet: MakeFleet) -> None:
    """The peer's expiry overwrites the result of the revoke: the revocation is still on record.

    The peer that discards the message has no guard, so that only the guarded worker, which has
    left by the time the message expires, could say that an operator revoked it.
    """
    fleet = make_fleet()
    witness = fleet.start("witness", "-Q", "other", "--without-mingle")
    peer = fleet.start("peer", "--without-mingle", guarded=False)
    expires_at_worker(fleet, "both")
    fleet.app.control.revoke("both")
    wait_for(lambda: "both" in witness.revoked(), "the revoke to arrive")
    witness.stop()
    discarded(peer, "both")
    expires_at_worker(fleet, "plain")
    discarded(peer, "plain")

    late = fleet.start("late")
    wait_for(lambda: late.cleared() == 1, "the plain id to be cleared")
    swept(late)
    assert late.revoked() == {"both"}


def test_a_revoke_that_no_guard_heard_and_that_left_no_record(make_fleet: MakeFleet) -> None:
    """The id is there before any expiry wrote a record: that it expires later proves nothing.

    So it is before Celery 5.6; later releases record the revoke, which is taken away here.
    """
    fleet = make_fleet()
    peer = fleet.start("peer", "--without-mingle", guarded=False)
    fleet.app.control.revoke("both")
    wait_for(lambda: "both" in peer.revoked(), "the revoke to arrive")
    fleet.results.backend.forget("both")

    guarded = fleet.start("guarded", "-Q", "other")
    mark = "worker-guard-operator-both"
    wait_for(lambda: fleet.results.backend.get(mark), "the id to be asked for, and marked")
    assert guarded.ask("guard")["revoked"]["unproven"] == 1
    fleet.send("add", 1, 2, task_id="both", expires=-1)
    discarded(peer, "both")
    swept(guarded, 5)
    assert guarded.revoked() == {"both"}
    late = fleet.start("late", "-Q", "other")
    swept(late, 5)
    assert late.revoked() == {"both"}


# -- statedb -------------------------------------------------------------------------------


def test_statedb_of_an_unguarded_worker_heals(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """What an unguarded worker left behind is cleared on proof; the operator's id is not."""
    fleet = make_fleet()
    fleet.expire(*EXPIRED)
    statedb = f"--statedb={tmp_path / 'state'}"
    before = fleet.start("w", "--without-mingle", statedb, guarded=False)
    wait_for(lambda: before.revoked() == EXPIRED, "the ids to be kept")
    fleet.app.control.revoke("operators")
    wait_for(lambda: "operators" in before.revoked(), "the revoke to arrive")
    before.stop()

    after = fleet.start("w", "--without-mingle", statedb)
    healed(after, "operators")
    swept(after)
    assert after.revoked() == {"operators"}


def test_statedb_that_a_guarded_worker_leaves_is_clean(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    """The last sweep waits for no grace; a worker without the guard reads what is left."""
    fleet = make_fleet(worker_guard_interval=3600.0, worker_guard_revoked_grace=3600.0)
    fleet.expire(*EXPIRED)
    statedb = f"--statedb={tmp_path / 'state'}"
    guarded = fleet.start("w", "--without-mingle", statedb)
    wait_for(lambda: guarded.revoked() == EXPIRED, "the ids to be kept")
    fleet.app.control.revoke("operators")
    wait_for(lambda: "operators" in guarded.revoked(), "the revoke to arrive")
    assert guarded.stop() == 0
    assert guarded.events("stopped")[0]["revoked_tasks_cleared"] == len(EXPIRED)

    unguarded = fleet.start("w", "--without-mingle", statedb, guarded=False)
    assert unguarded.revoked() == {"operators"}


def test_statedb_remembers_operators_without_the_result_backend(
    make_fleet: MakeFleet, tmp_path: Path, results: redis.Redis
) -> None:
    """Over a restart the note in the statedb holds where nothing could be recorded."""
    fleet = make_fleet()
    statedb = f"--statedb={tmp_path / 'state'}"
    first = fleet.start("w", "--without-mingle", statedb)
    fleet.app.control.revoke("both")
    wait_for(lambda: "both" in first.revoked(), "the revoke to arrive")
    first.stop()
    assert on_record(results, "both")
    results.flushdb()

    second = fleet.start("w", "--without-mingle", statedb)
    assert second.ask("guard")["revoked"]["operator"] == 1
    expires_at_worker(fleet, "both")
    discarded(second, "both")
    swept(second)
    assert second.revoked() == {"both"}


# -- age -----------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
def test_nothing_ages_out(make_fleet: MakeFleet, guarded: bool) -> None:
    """Celery drops a revocation by age only where its set is full; a guarded worker does no more.

    So a task that is due after that age, and was revoked, does not run.
    """
    fleet = make_fleet()
    worker = fleet.start(
        "w", "--without-mingle", guarded=guarded, environ={"CELERY_WORKER_REVOKE_EXPIRES": "1"}
    )
    fleet.app.control.revoke("due-later")
    worker.logged("Tasks flagged as revoked: due-later")
    send_expired(fleet, "plain")
    discarded(worker, "plain")
    if guarded:
        # The plain id is cleared by a sweep that begins a grace, and more than that age, later.
        wait_for(lambda: worker.cleared() == 1, "the plain id to be cleared")
        send_expired(fleet, "plain-2")
        wait_for(lambda: worker.cleared() == 2, "another one to be cleared")
        swept(worker)
        assert worker.ask("guard")["revoked"]["operator"] == 1
    else:
        time.sleep(1.5)
    fleet.send("add", 1, 2, task_id="due-later")
    discarded(worker, "due-later")


def test_a_revocation_ends_unless_its_message_is_held(make_fleet: MakeFleet) -> None:
    """One that waits for its ETA here stays revoked, however late it is due."""
    fleet = make_fleet(worker_guard_revocation_lifetime=0.5)
    worker = fleet.start("w", "--without-mingle")
    fleet.send("add", 1, 2, task_id="due-later", countdown=3600)
    worker.logged("Task harness.add[due-later] received")
    fleet.app.control.revoke("due-later")
    for number in range(1, 4):
        fleet.app.control.revoke(f"gone-{number}")
        wait_for(
            lambda number=number: len(worker.events("revocations_ended")) == number,  # type: ignore[misc]
            "the end of the one whose message is not held",
        )
    assert [event["revocations"] for event in worker.events("revocations_ended")] == [1, 1, 1]
    # What has ended is left to Celery, which keeps it for a while.
    assert worker.revoked() == {"due-later", "gone-1", "gone-2", "gone-3"}


def test_what_is_taken_back_at_a_worker_runs_there(make_fleet: MakeFleet) -> None:
    """The other ids stay revoked; a dry run takes nothing back."""
    fleet = make_fleet()
    worker = fleet.start("w", "--without-mingle")
    dry = fleet.start("dry", "--without-mingle", "--guard-dry-run", "-Q", "other")
    fleet.app.control.revoke(["x", "y"])
    for each in (worker, dry):
        wait_for(lambda each=each: each.revoked() == {"x", "y"}, "the revoke to arrive")  # type: ignore[misc]
    assert worker.ask("guard_unrevoke", task_id=["x", "unknown"]) == {"ok": "taken back: 1"}
    assert "dry run" in dry.ask("guard_unrevoke", task_id=["x"])["error"]
    assert (worker.revoked(), dry.revoked()) == ({"y"}, {"x", "y"})
    fleet.send("add", 1, 2, task_id="x")
    worker.logged("Task harness.add[x] succeeded")
    fleet.send("add", 1, 2, task_id="y")
    discarded(worker, "y")


def test_an_id_that_expires_again_and_again_gets_free(make_fleet: MakeFleet) -> None:
    """Such as that of a Beat entry with an id of its own, at a worker that is behind."""
    fleet = make_fleet(worker_guard_revoked_grace=2.0)
    worker = fleet.start("w", "--without-mingle")

    def cleared_meanwhile() -> bool:
        send_expired(fleet, "fixed")  # within each grace many times
        return worker.cleared() > 0

    wait_for(cleared_meanwhile, "the id to be cleared although it goes on expiring")


# -- revoked by another worker, or by the application ---------------------------------------


def test_an_id_that_expired_here_and_was_revoked_elsewhere(
    make_fleet: MakeFleet, results: redis.Redis
) -> None:
    """The worker that heard the revoke is gone; the record is not."""
    fleet = make_fleet()
    witness = fleet.start("witness", "--without-mingle", "-Q", "other")
    fleet.app.control.revoke("both")
    wait_for(lambda: on_record(results, "both"), "the record")
    witness.stop()

    worker = fleet.start("w", "--without-mingle")
    assert worker.events("revocations_restored")[0]["revocations"] == 1
    send_expired(fleet, "both", "plain")
    wait_for(lambda: worker.cleared() == 1, "the plain id to be cleared")
    swept(worker)
    assert worker.revoked() == {"both"}
    assert worker.ask("guard")["revoked"]["operator"] == 1
    fleet.send("add", 1, 2, task_id="both")
    wait_for(
        lambda: worker.text().count("Discarding revoked task: harness.add[both]") == 2,
        "the later task to be discarded",
    )


def test_what_expired_waits_until_the_marks_can_be_read(make_fleet: MakeFleet) -> None:
    """While the result backend is away nothing is cleared; when it is back, all is."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), worker_guard_revoked_grace=3.0)
        worker = fleet.start("w", "--without-mingle")
        send_expired(fleet, *EXPIRED)
        wait_for(lambda: worker.ask("guard")["revoked"]["expired"] == 12, "the ids to expire")
        results.kill()
        worker.failure("revoked_verify")
        swept(worker)
        assert worker.revoked() == EXPIRED
        assert worker.cleared() == 0
        results.start()
        wait_for(lambda: worker.cleared() == len(EXPIRED), "the ids to be cleared")


def test_without_a_key_value_backend_what_expired_here_is_cleared(make_fleet: MakeFleet) -> None:
    """There are no marks then, and a worker knows the revokes that it heard, as plain Celery."""
    fleet = make_fleet(result_backend="rpc://")
    worker = fleet.start("w", "--without-mingle")
    fleet.app.control.revoke("operators")
    send_expired(fleet, *EXPIRED, "operators")
    healed(worker, "operators")


def test_ids_that_the_application_puts_in_before_the_start(make_fleet: MakeFleet) -> None:
    """They are no peer's, and no statedb's: their record "expired" is no proof."""
    fleet = make_fleet()
    for task_id in ("applications", "plain"):
        fleet.results.backend.mark_as_revoked(task_id, "expired")
    worker = fleet.start(
        "w",
        "--without-mingle",
        app_module="tests.harness.revoking_app",
        environ={BEFORE_START: "applications"},
    )
    assert worker.ask("guard")["revoked"]["operator"] == 1
    send_expired(fleet, "plain")
    wait_for(lambda: worker.cleared() == 1, "the plain id to be cleared")
    swept(worker)
    assert worker.revoked() == {"applications"}


@pytest.mark.parametrize("way", ["merge_revoked_set", "put_past_update"])
def test_ids_that_the_application_puts_in_while_the_worker_runs(
    make_fleet: MakeFleet, way: str
) -> None:
    """By a set that it merges, or past everything that could be heard of: a sweep finds them."""
    fleet = make_fleet()
    worker = fleet.start("w", "--without-mingle", app_module="tests.harness.revoking_app")
    worker.ask(way, task_id="applications")
    counts = worker.ask("guard")["revoked"]
    assert (counts["total"], counts["operator"]) == (1, 1)
    expires_at_worker(fleet, "applications")
    discarded(worker, "applications")
    send_expired(fleet, "plain")
    wait_for(lambda: worker.cleared() == 1, "the plain id to be cleared")
    swept(worker)
    assert worker.revoked() == {"applications"}


def test_a_set_that_the_application_replaced_before_the_start(make_fleet: MakeFleet) -> None:
    """Celery adds to one set and looks into another: the part is off, and says why."""
    fleet = make_fleet()
    worker = fleet.start(
        "w", "--without-mingle", app_module="tests.harness.revoking_app", environ={REPLACED: "1"}
    )
    parts = worker.events("started")[0]["parts"]
    for part in ("revoked", "revoked_verify", "operator_marks", "revocations"):
        assert "replaced celery.worker.state.revoked" in parts[part]
    counts = worker.ask("guard")["revoked"]
    assert (counts["total"], counts["operator"]) == (0, None)
    assert "replaced" in worker.ask("guard_sweep")["error"]
    assert fleet.succeeds("add", 1, 2) == 3


def test_a_set_that_the_application_replaces_later(make_fleet: MakeFleet) -> None:
    """Nothing is cleared any more, and the failure says why."""
    fleet = make_fleet(worker_guard_revoked_grace=3600.0)
    worker = fleet.start("w", "--without-mingle", app_module="tests.harness.revoking_app")
    send_expired(fleet, "plain")
    discarded(worker, "plain")
    worker.ask("replace_revoked_set")
    assert "replaced celery.worker.state.revoked" in worker.failure("revoked")["error"]
    assert "replaced" in worker.ask("guard_sweep")["error"]
    assert worker.ask("guard")["revoked"]["operator"] is None


def test_an_id_that_a_full_set_drops_as_it_is_added_is_put_back(
    make_fleet: MakeFleet, results: redis.Redis
) -> None:
    """Its stamp is the oldest: so it is in 5.6 after a ``hello`` of a host up for longer."""
    fleet = make_fleet()
    worker = fleet.start(
        "w",
        "--without-mingle",
        app_module="tests.harness.revoking_app",
        environ={"CELERY_WORKER_REVOKES_MAX": "5"},
    )
    worker.ask("fill_with_later_stamps")
    fleet.app.control.revoke("dropped")
    worker.logged("Tasks flagged as revoked: dropped")
    assert "dropped" in worker.revoked()
    wait_for(lambda: worker.events("revocations_put_back"), "the event")
    assert {e["reason"] for e in worker.events("revocations_put_back")} == {"set_full"}
    wait_for(lambda: on_record(results, "dropped"), "the record")
    fleet.send("add", 1, 2, task_id="dropped")
    discarded(worker, "dropped")


# -- a result backend that forgets ---------------------------------------------------------


def test_revocations_that_the_result_backend_lost_are_recorded_again(
    make_fleet: MakeFleet,
) -> None:
    """It restarted without persistence; the guard that knows records them when a peer starts."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url())
        witness = fleet.start("witness", "--without-mingle")
        fleet.app.control.revoke("both")
        wait_for(lambda: witness.revoked() == {"both"}, "the revoke to arrive")
        wait_for(lambda: on_record(results.client, "both"), "the record")
        results.kill()
        results.start()
        fleet.send("add", 1, 2, task_id="both", expires=-1)
        discarded(witness, "both")

        late = fleet.start("late", "-Q", "other")
        wait_for(lambda: on_record(results.client, "both"), "the record to be whole again")
        swept(late, 5)
        assert late.revoked() == {"both"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT], ids=["warm", "cold"])
def test_a_guard_that_stops_leaves_its_record(make_fleet: MakeFleet, signum: int) -> None:
    """It may be the last that knows; a cold shutdown asks the result backend nothing at all."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), worker_guard_interval=3600.0)
        worker = fleet.start("w", "--without-mingle")
        fleet.app.control.revoke("both")
        wait_for(lambda: on_record(results.client, "both"), "the record")
        results.client.flushall()
        results.client.config_resetstat()
        worker.stop(signum)
        assert worker.events("stopped")
        asked = {name.split("_", 1)[1] for name in results.client.info("commandstats")}
        recorded = on_record(results.client, "both")
        assert recorded == (signum == signal.SIGTERM)
        assert recorded or asked <= {"info", "config|resetstat", "config"}


def test_an_id_that_expires_before_it_is_asked_for_is_marked(
    make_fleet: MakeFleet, results: redis.Redis
) -> None:
    """Its record proves nothing then, to a peer neither that gets the id from here."""
    fleet = make_fleet(worker_guard_revoked_verify=False)
    peer = fleet.start("peer", "--without-mingle", "-Q", "other", guarded=False)
    fleet.app.control.revoke("both")
    wait_for(lambda: "both" in peer.revoked(), "the revoke to arrive")
    worker = fleet.start("w")
    assert worker.ask("guard")["revoked"]["unproven"] == 1
    fleet.send("add", 1, 2, task_id="both", expires=-1)
    wait_for(lambda: results.get("worker-guard-operator-both"), "the mark")
    assert results.get("worker-guard-operator-both") == b"unproven"


def test_a_revocation_that_could_not_be_recorded_is_recorded_later(make_fleet: MakeFleet) -> None:
    """The result backend was down; the pause after that failure does not grow for long."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), worker_guard_revoked_grace=7200.0)
        witness = fleet.start("witness", "--without-mingle")
        results.kill()
        fleet.app.control.revoke("both")
        witness.failure("operator_marks")
        results.start()
        wait_for(lambda: on_record(results.client, "both"), "the record")
