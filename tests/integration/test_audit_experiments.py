"""What the audit says will happen, on real workers: the experiments of docs/audit.md."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from tests.conftest import MakeFleet
from tests.harness.app import CONFIGURATION
from tests.harness.audit_app import COUNTS, ENTRY
from tests.harness.redis_server import RedisServer
from tests.harness.workers import ROOT, Fleet, Worker, wait_for
from worker_guard.memory.reader import MemoryReader

APP = "tests.harness.audit_app"

#: From here on a test can have the Redis transport look for unacknowledged messages each second.
OFTEN = tuple(int(part) for part in kombu.__version__.split(".")[:2]) >= (5, 7)


@contextlib.contextmanager
def beat(fleet: Fleet, options: dict[str, Any], **environ: str) -> Iterator[Path]:
    """A real ``celery beat`` with one entry each half second; its log."""
    log = fleet.directory / "beat.log"
    environment = {CONFIGURATION: json.dumps(fleet.app.conf["harness"]), ENTRY: json.dumps(options)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), **environ}
    command = [sys.executable, "-m", "celery", "-A", APP, "beat", "--loglevel", "INFO"]
    command += ["-s", str(fleet.directory / "beat-schedule"), "--pidfile", ""]
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(30)


def waiting(redis_server: RedisServer) -> int:
    """The messages in the queue."""
    return int(redis_server.client.llen("work"))


def start(fleet: Fleet, redis_server: RedisServer, *options: str, **arguments: Any) -> Worker:
    """A worker with the audit's tasks, by default without the guard."""
    environ = {COUNTS: redis_server.url(2), **arguments.pop("environ", {})}
    return fleet.start(
        arguments.pop("name", "w"),
        "--without-mingle",
        *options,
        **{"app_module": APP, "guarded": False, "environ": environ, **arguments},
    )


def counts(redis_server: RedisServer) -> Any:
    """What the tasks wrote down."""
    return redis.Redis.from_url(redis_server.url(2))


def runs(redis_server: RedisServer, task_id: str) -> int:
    """How often the task with this id began."""
    with counts(redis_server) as client:
        return int(client.get(f"runs:{task_id}") or 0)


# -- expiry --------------------------------------------------------------------------------


@pytest.mark.parametrize(("expires", "lost"), [(0.3, True), (3600, False)], ids=["short", "hour"])
def test_runs_that_wait_expire(
    make_fleet: MakeFleet, redis_server: RedisServer, expires: float, lost: bool
) -> None:
    """Beat up, workers down: each run that waits for longer than its expires is discarded."""
    fleet = make_fleet()
    with beat(fleet, {"expires": expires}):
        wait_for(lambda: waiting(redis_server) >= 5, "five runs in the queue")
    sent = waiting(redis_server)
    time.sleep(0.5)  # the youngest, too, is to be older than its expires
    worker = start(fleet, redis_server)
    wait_for(lambda: waiting(redis_server) == 0, "the queue to be empty")
    said = "Discarding revoked task: harness.add" if lost else "] succeeded in "
    wait_for(lambda: worker.text().count(said) == sent, f"{sent} times {said!r}")
    assert len(worker.revoked()) == (sent if lost else 0)


@pytest.mark.parametrize("expires", [None, 1], ids=["none", "interval"])
def test_runs_pile_up(
    make_fleet: MakeFleet, redis_server: RedisServer, expires: float | None
) -> None:
    """Without an expires all that waited run; with one interval they don't, and the next does."""
    fleet = make_fleet()
    options = {"every_s": 1} if expires is None else {"every_s": 1, "expires": expires}
    with beat(fleet, options):
        wait_for(lambda: waiting(redis_server) >= 4, "four runs in the queue")
    queued = redis_server.client.lrange("work", 0, -1)
    piled = [json.loads(raw)["headers"]["expires"] for raw in queued]
    last = datetime.fromisoformat(max(filter(None, piled), default="2000-01-01T00:00:00+00:00"))
    wait_for(lambda: datetime.now(timezone.utc) > last, "the youngest run to have expired")
    worker = start(fleet, redis_server)
    ran, discarded = "] succeeded in ", "Discarding revoked task: harness.add"
    said, never = (ran, discarded) if expires is None else (discarded, ran)
    wait_for(lambda: worker.text().count(said) == len(piled), f"{len(piled)} times {said!r}")
    assert never not in worker.text()
    with beat(fleet, options):
        wait_for(lambda: worker.text().count(ran) >= (expires is None) * len(piled) + 1, "a run")


def test_beat_does_not_catch_up(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """After an outage it sends an overdue entry once, with an expiry counted from then."""
    fleet = make_fleet()
    options = {"every_s": 2, "expires": 3600}
    with beat(fleet, options):
        wait_for(lambda: waiting(redis_server) >= 1, "a run in the queue")
    before = waiting(redis_server)
    time.sleep(5)  # two runs and more that are missed
    back_at = datetime.now(timezone.utc)
    with beat(fleet, options) as log:
        wait_for(lambda: waiting(redis_server) >= before + 2, "two more runs in the queue")
    # Had it caught up they would be sent at once; a slow host can only draw them apart.
    sent = re.findall(r"^\[(\S+ \S+): .* Sending due task", log.read_text(), re.MULTILINE)
    first, second = (datetime.fromisoformat(at.replace(",", ".")) for at in sent[before:][:2])
    assert (second - first).total_seconds() > 1
    for raw in redis_server.client.lrange("work", 0, 1):
        expires = datetime.fromisoformat(json.loads(raw)["headers"]["expires"])
        assert expires >= back_at + timedelta(hours=1)


@pytest.mark.parametrize(
    ("expires", "environ", "conf", "lost"),
    [
        ({"at": -60}, {}, {}, True),
        ({"at": 3600}, {}, {}, False),
        # Three hours behind UTC a naive "in an hour" was two hours ago.
        ({"at": 3600, "naive": True}, {"TZ": "XXX3"}, {}, True),
        ({"at": 3600, "naive": True}, {"TZ": "XXX3"}, {"enable_utc": False}, True),
        ({"at": 3600, "naive": False}, {"TZ": "XXX3"}, {}, False),
    ],
    ids=["computed-before", "ahead", "naive", "naive-without-utc", "aware"],
)
def test_a_fixed_expires(
    make_fleet: MakeFleet,
    redis_server: RedisServer,
    expires: dict[str, Any],
    environ: dict[str, str],
    conf: dict[str, Any],
    lost: bool,
) -> None:
    """An absolute expires that is over makes every run born expired, beside an idle worker."""
    fleet = make_fleet(**conf)
    worker = start(fleet, redis_server)
    said = "Discarding revoked task: harness.add" if lost else "] succeeded in "
    with beat(fleet, {"expires": expires}, **environ):
        wait_for(lambda: worker.text().count(said) >= 3, f"three times {said!r}")
    assert ("] succeeded in " in worker.text()) is not lost


def test_it_expires_before_it_may_begin(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """A countdown that is longer than the expires: an idle worker discards the task."""
    fleet = make_fleet()
    worker = start(fleet, redis_server)
    fleet.send("add", 1, 2, task_id="early", countdown=1.5, expires=1)
    worker.logged("Discarding revoked task: harness.add[early]")


def test_beat_cannot_send_a_timedelta(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """Beat logs an error at each run, and the queue stays empty."""
    fleet = make_fleet()
    with beat(fleet, {"expires": {"timedelta": 3600}}) as log:
        wait_for(lambda: log.read_text().count("Message Error") >= 2, "two errors of Beat")
    assert waiting(redis_server) == 0
    with pytest.raises((TypeError, AttributeError)):
        fleet.send("add", 1, 2, expires=timedelta(hours=1))


@pytest.mark.parametrize(
    "options",
    [
        {"countdown": {"timedelta": 5}},
        {"countdown": "5"},
        {"expires": float("inf")},
        {"expires": float("nan")},
        {"expires": 1e12},
        {"entry": {"options": 5}},
    ],
    ids=str,
)
def test_what_beat_cannot_send(
    make_fleet: MakeFleet, redis_server: RedisServer, options: dict[str, Any]
) -> None:
    """Beat logs an error at each run, and the queue stays empty."""
    with beat(make_fleet(), options) as log:
        wait_for(lambda: log.read_text().count("Message Error") >= 2, "two errors of Beat")
    assert waiting(redis_server) == 0


@pytest.mark.parametrize(("expires", "lost"), [("1999", True), ("3600", False)])
def test_a_number_as_text_is_a_year(
    make_fleet: MakeFleet, redis_server: RedisServer, expires: str, lost: bool
) -> None:
    """It is sent as it is; 1999, which would be half an hour, was over at arrival."""
    fleet = make_fleet()
    with beat(fleet, {"expires": expires}):
        wait_for(lambda: waiting(redis_server) >= 1, "a run in the queue")
    (raw,) = redis_server.client.lrange("work", 0, 0)
    assert json.loads(raw)["headers"]["expires"] == expires
    said = "Discarding revoked task: harness.add" if lost else "] succeeded in "
    start(fleet, redis_server).logged(said)


# -- entries and settings that are none -----------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"expires": 30}, "got an unexpected keyword argument 'expires'"),
        ({"schedule": "30"}, "'str' object has no attribute 'app'"),
        ({"schedule": None}, "'NoneType' object has no attribute"),
    ],
    ids=str,
)
def test_an_entry_that_beat_cannot_load(
    make_fleet: MakeFleet, redis_server: RedisServer, entry: dict[str, Any], says: str
) -> None:
    """Beat ends at its start, and sends nothing."""
    with beat(make_fleet(), {"entry": entry}) as log:
        wait_for(lambda: "beat raised exception" in log.read_text(), "Beat's end")
    assert says in log.read_text()
    assert waiting(redis_server) == 0


def test_an_entry_without_a_task(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """Beat sends it, and a worker throws each message away."""
    fleet = make_fleet()
    worker = start(fleet, redis_server)
    with beat(fleet, {"entry": {"task": None}}):
        worker.logged("Received unregistered task of type None")
    wait_for(lambda: waiting(redis_server) == 0, "the queue to be empty")


@pytest.mark.parametrize(
    "conf", [{"result_expires": "1 day"}, {"worker_prefetch_multiplier": "x"}], ids=str
)
def test_a_setting_of_another_kind_stops_the_worker(
    make_fleet: MakeFleet, conf: dict[str, Any]
) -> None:
    """It ends by itself, and was never ready."""
    fleet = make_fleet(**conf)
    worker = fleet.launch("w", "--without-mingle", guarded=False)
    wait_for(lambda: worker.process.poll() is not None, "the worker's end")
    assert worker.process.returncode != 0
    assert " ready." not in worker.text()


# -- acknowledgement -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "reject", "expected"),
    [
        (True, None, ("FAILURE", 1)),
        (True, False, ("FAILURE", 1)),
        (False, True, ("FAILURE", 1)),
        (True, True, ("SUCCESS", 2)),
    ],
    ids=["late-alone", "reject-false", "reject-alone", "both"],
)
def test_a_task_whose_child_is_killed(
    make_fleet: MakeFleet,
    redis_server: RedisServer,
    late: bool,
    reject: bool | None,
    expected: tuple[str, int],
) -> None:
    """Only both settings together bring it back; False does not requeue."""
    fleet = make_fleet(task_acks_late=late, task_reject_on_worker_lost=reject)
    worker = start(fleet, redis_server)
    task_id = fleet.send("die_once")

    def state() -> Any:
        record = fleet.results.backend.get_task_meta(task_id, cache=False)
        return record["status"] if record["status"] in ("SUCCESS", "FAILURE") else ""

    assert (wait_for(state, "an end of the task"), runs(redis_server, task_id)) == expected
    # Not even later: the worker takes the next one.
    fleet.succeeds("add", 1, 2)
    assert runs(redis_server, task_id) == expected[1]
    assert worker.process.poll() is None


# -- memory --------------------------------------------------------------------------------


def pids(fleet: Fleet, task: str, *args: Any, times: int = 2) -> int:
    """In how many processes the task ran."""
    return len({fleet.succeeds(task, *args) for _ in range(times)})


@pytest.mark.parametrize(
    ("limit", "processes"),
    # 200 was meant as megabytes; 20,000 KiB is below what a new child inherits.
    [(200, 2), (20_000, 2), (400_000, 1)],
    ids=["megabytes", "below-newborn", "enough"],
)
def test_a_limit_below_a_newborn_childs_size(
    make_fleet: MakeFleet, redis_server: RedisServer, limit: int, processes: int
) -> None:
    """Each task gets a child of its own, and the revoked set stays as it is all the same."""
    fleet = make_fleet(worker_max_memory_per_child=limit)
    fleet.expire("old")
    worker = start(fleet, redis_server)
    assert pids(fleet, "pid") == processes
    assert worker.revoked() == {"old"}
    main = MemoryReader("rss").read(worker.process.pid, None)
    assert main is not None
    assert (main.rss_bytes > limit * 1024) is (processes > 1)


@pytest.mark.parametrize(
    ("limit", "processes"), [(150_000, 2), (150_000_000, 1)], ids=["KiB", "bytes"]
)
def test_the_limit_is_in_kib(
    make_fleet: MakeFleet, redis_server: RedisServer, limit: int, processes: int
) -> None:
    """A limit of 150 MB that is given as bytes is never reached by children of 200 MB."""
    fleet = make_fleet(worker_max_memory_per_child=limit)
    start(fleet, redis_server, app_module="tests.harness.memory_app")
    assert pids(fleet, "spike", 200) == processes


def test_a_limit_that_is_no_number(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """The child dies after its task."""
    fleet = make_fleet(worker_max_memory_per_child="400MB")
    worker = start(fleet, redis_server)
    fleet.send("add", 1, 2)
    wait_for(lambda: "exited with" in worker.text(), "a child that died")


def test_both_limits(make_fleet: MakeFleet, redis_server: RedisServer) -> None:
    """Celery's limit replaces a child for a peak that is over; the guard saw nothing to do."""
    fleet = make_fleet(
        worker_max_memory_per_child=150_000,
        worker_guard_child_memory_limit="400MB",
        worker_guard_memory_interval=0.1,
    )
    worker = start(fleet, redis_server, app_module="tests.harness.memory_app", guarded=True)
    assert pids(fleet, "spike", 200) == 2
    assert not worker.events("child_over_limit")
    assert not worker.events("child_recycle_requested")


# -- results -------------------------------------------------------------------------------


@pytest.mark.parametrize("expires", [None, 0, 86400])
def test_the_lifetime_of_results(
    make_fleet: MakeFleet, redis_server: RedisServer, expires: int | None
) -> None:
    """None and 0 give a result no lifetime at all."""
    fleet = make_fleet(result_expires=expires)
    start(fleet, redis_server)
    fleet.succeeds("add", 1, 2, task_id="kept")
    client = fleet.results.backend.client
    assert (client.ttl("celery-task-meta-kept") == -1) is (not expires)


# -- delivery ------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["countdown", "late"])
def test_a_message_that_is_held_too_long_comes_twice(
    make_fleet: MakeFleet, redis_server: RedisServer, held: str
) -> None:
    """Longer than visibility_timeout: by a countdown, or by running with late acknowledgement."""
    options = {
        "visibility_timeout": 1,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    fleet = make_fleet(broker_transport_options=options, task_acks_late=held == "late")
    first = start(fleet, redis_server)
    # Before kombu 5.7 a worker looks 10 s after it connected.
    long_s = 6 if OFTEN else 20
    seconds, countdown = (long_s, None) if held == "late" else (0, long_s)
    task_id = fleet.send("count", seconds, countdown=countdown)
    first.logged(f"harness.count[{task_id}] received")
    start(fleet, redis_server, name="second")
    wait_for(lambda: runs(redis_server, task_id) >= 2, "a second run")


@pytest.mark.parametrize(("multiplier", "reserved"), [(0, 3), (4, 3), (1, 1)])
def test_prefetched_messages_expire_beside_an_idle_worker(
    make_fleet: MakeFleet, redis_server: RedisServer, multiplier: int, reserved: int
) -> None:
    """What one worker has taken no other can run; with a multiplier of 1 it takes one more."""
    fleet = make_fleet(worker_prefetch_multiplier=multiplier)
    busy = start(fleet, redis_server, name="busy")
    idle = start(fleet, redis_server, "-Q", "other", name="idle")
    fleet.send("hold")
    with counts(redis_server) as client:
        wait_for(lambda: client.exists("holding"), "the long task to run")
        ids = [fleet.send("add", 1, 2, expires=2 if multiplier != 1 else 600) for _ in range(3)]

        def received(worker: Worker) -> int:
            return sum(f"[{one}] received" in worker.text() for one in ids)

        wait_for(lambda: received(busy) == reserved, "the busy worker to reserve")
        fleet.app.control.add_consumer("work", destination=[idle.name])
        wait_for(lambda: received(idle) == 3 - reserved, "the idle worker to take the others")
        if multiplier != 1:
            time.sleep(2.1)  # longer than their expires
        client.set("free", 1)
    if multiplier != 1:
        said = "Discarding revoked task: harness.add"
        wait_for(lambda: busy.text().count(said) == reserved, f"{reserved} times {said!r}")
    assert received(idle) == 3 - reserved


# -- the guard -----------------------------------------------------------------------------


def test_a_statedb_carries_expired_ids_over(
    make_fleet: MakeFleet, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Without the guard they survive the restart, and a reused one is discarded."""
    fleet = make_fleet()
    fleet.expire("old")
    statedb = ("--statedb", str(tmp_path / "state"))
    first = start(fleet, redis_server, *statedb)
    wait_for(lambda: first.revoked() == {"old"}, "the id to be kept")
    assert first.stop() == 0
    second = start(fleet, redis_server, *statedb)
    assert second.revoked() == {"old"}
    fleet.send("add", 1, 2, task_id="old")
    second.logged("Discarding revoked task: harness.add[old]")


@pytest.mark.parametrize(
    ("options", "conf", "part", "reason"),
    [
        (("-P", "solo"), {"worker_guard_child_memory_limit": "400MB"}, "recycling", "children"),
        ((), {"result_backend": None}, "results", "Redis"),
        ((), {"worker_guard_recycle_concurrency": 2}, "recycling", "child_memory_limit"),
        ((), {"worker_guard_metrics_host": "127.0.0.1"}, "metrics_port", "metrics_port is None"),
    ],
    ids=["no-children", "no-redis", "no-limit", "no-port"],
)
def test_a_part_that_this_worker_does_not_have(
    make_fleet: MakeFleet,
    redis_server: RedisServer,
    options: tuple[str, ...],
    conf: dict[str, Any],
    part: str,
    reason: str,
) -> None:
    """The start event says why it is off, whatever the settings say."""
    fleet = make_fleet(**conf)
    worker = start(fleet, redis_server, *options, guarded=True)
    assert reason in worker.events("started")[0]["parts"][part]
