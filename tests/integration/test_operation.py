"""What operators see and do: command line, logs, dry run, faults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import celery
import pytest

from tests.conftest import MakeFleet
from tests.harness.app import CONFIGURATION, UNGUARDED
from tests.harness.redis_server import RedisServer
from tests.harness.workers import ROOT, Fleet, Worker, wait_for

EXPIRED = {f"expired-{n}" for n in range(12)}

SHARED_FIELDS = {"event", "level", "timestamp", "logger", "worker", "pid", "dry_run"}


def run_celery(
    *arguments: str, conf: dict[str, Any] | None = None, guarded: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a celery command to its end."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CELERY")}
    environ |= {CONFIGURATION: json.dumps(conf or {}), "PYTHONPATH": str(ROOT)}
    environ |= {} if guarded else {UNGUARDED: "1"}
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.harness.app", *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# -- command line --------------------------------------------------------------------------


def test_help_shows_the_flag_in_its_group() -> None:
    """``celery worker --help`` has the group "Worker Guard Options"."""
    shown = run_celery("worker", "--help").stdout
    group = shown[shown.index("Worker Guard Options") :]
    assert "--guard-dry-run" in group.splitlines()[1]


def test_the_flag_without_the_step_is_a_usage_error() -> None:
    """It names the line to add, and is never silently ignored."""
    done = run_celery("worker", "--guard-dry-run", guarded=False)
    assert done.returncode == 2
    assert 'app.steps["worker"].add(WorkerGuard)' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_flag_with_a_guard_that_is_off_is_an_error() -> None:
    """A dry run of nothing is no dry run."""
    done = run_celery("worker", "--guard-dry-run", conf={"worker_guard_enabled": False})
    assert done.returncode == 2
    assert "worker_guard_enabled is False" in done.stderr


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"worker_guard_interval": "often"}, "worker_guard_interval is 'often'; allowed: seconds"),
        ({"worker_guard_intervall": 5}, "did you mean worker_guard_interval?"),
    ],
)
def test_a_bad_setting_stops_the_worker_with_one_line(conf: dict[str, Any], said: str) -> None:
    """The worker does not start; the one line says what to do."""
    done = run_celery("worker", conf=conf)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "worker_guard" in line]
    assert line.startswith("ImproperlyConfigured: ")
    assert said in line
    assert "Traceback" not in done.stderr


def test_remote_commands_on_the_command_line(
    make_fleet: MakeFleet, redis_server: RedisServer
) -> None:
    """``inspect guard`` is small whatever the set's size; ``guard_sweep`` reports its counts."""
    fleet = make_fleet(worker_guard_interval=3600.0, worker_guard_revoked_grace=0.0)
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle")
    wait_for(lambda: worker.revoked() == EXPIRED, "the ids to be kept")
    conf = fleet.app.conf["harness"]
    # The answer of one that is named ends the wait.
    patiently = ("--json", "--destination", worker.name, "--timeout", "60")

    shown = json.loads(run_celery("inspect", *patiently, "guard", conf=conf).stdout)[worker.name]
    assert shown["revoked"]["expired"] == len(EXPIRED)
    assert not any(task_id in json.dumps(shown) for task_id in EXPIRED)

    preview = run_celery("control", *patiently, "guard_sweep", "true", conf=conf)
    told = json.loads(preview.stdout)[0][worker.name]["ok"]
    assert (told["revoked_tasks_cleared"], told["dry_run"]) == (12, True)
    assert worker.revoked() == EXPIRED
    assert worker.events("cleanup_completed")[-1]["dry_run"] is True

    swept = run_celery("control", *patiently, "guard_sweep", conf=conf)
    told = json.loads(swept.stdout)[0][worker.name]["ok"]
    assert (told["revoked_tasks_cleared"], told["dry_run"]) == (12, False)
    assert worker.revoked() == set()
    event = worker.events("cleanup_completed")[-1]
    assert (event["trigger"], event["dry_run"], event["level"]) == ("control", False, "info")

    refused = worker.ask("guard_sweep", dry_run="maybe")
    assert refused == {"error": "dry_run is 'maybe'; allowed: true or false"}
    assert "Traceback" not in worker.text()


def test_a_guard_that_is_off_does_nothing(make_fleet: MakeFleet) -> None:
    """``worker_guard_enabled`` False: no event, no sweep, and the commands say so."""
    fleet = make_fleet(worker_guard_enabled=False)
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle")
    assert "worker_guard_enabled is False" in worker.ask("guard")["error"]
    assert "worker_guard_enabled is False" in worker.ask("guard_sweep")["error"]
    wait_for(lambda: worker.revoked() == EXPIRED, "the ids to be kept")
    assert worker.stop() == 0
    assert worker.events() == []


# -- dry run -------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(make_fleet: MakeFleet) -> None:
    """The set is the same, Redis saw no write, and the counts are those of a real run.

    The result backend is a server of its own, where results are ignored: it sees the guard alone.
    """
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), task_ignore_result=True)
        fleet.expire(*EXPIRED)
        peer = fleet.start("peer", "--without-mingle", guarded=False)
        wait_for(lambda: peer.revoked() == EXPIRED, "the ids to be kept")
        fleet.results.backend.mark_as_revoked("expired-0", "expired")

        worker = fleet.start("w", "--guard-dry-run", "-Q", "dry")
        # From 5.6 on Celery itself records a revoke in the result backend; that is not counted.
        fleet.app.control.revoke("operators")
        wait_for(lambda: "operators" in worker.revoked(), "the revoke to arrive")
        before = results.calls()
        fleet.send("add", 1, 2, task_id="own", expires=-1, queue="dry")
        wait_for(lambda: worker.cleared() == 2, "two ids to be reported")
        sweeps = worker.ask("guard")["totals"]["sweeps"]
        wait_for(lambda: worker.ask("guard")["totals"]["sweeps"] > sweeps + 3, "more sweeps")
        assert worker.revoked() == EXPIRED | {"own", "operators"}
        assert worker.cleared() == 2
        assert worker.stop() == 0
        calls = results.calls()
        called = {name for name, count in calls.items() if count != before.get(name, 0)}

        assert all(event["dry_run"] is True for event in worker.events())
        assert {"getrange", "mget"} <= set(calls)
        # The script that is tried has no command that writes.
        reads = {"getrange", "mget", "zmscore", "info", "eval", "pttl"}
        assert called <= {*reads, "hello", "select", "client"}
        assert results.client.keys("worker-guard-*") == []


# -- logs ----------------------------------------------------------------------------------


def test_events_are_bare_json_lines_on_stderr(make_fleet: MakeFleet) -> None:
    """Each line parses, and has the fields that all events share."""
    fleet = make_fleet()
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle")
    wait_for(lambda: worker.cleared() == 12, "the ids to be cleared")
    worker.stop()
    lines = [line for line in worker.text().splitlines() if '"worker_guard.' in line]
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "worker_guard.started"
    assert events[-1]["event"] == "worker_guard.stopped"
    for event in events:
        assert event.keys() >= SHARED_FIELDS
        assert event["worker"] == worker.name
        assert event["pid"] == worker.process.pid
        assert event["logger"] == "worker_guard"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["timestamp"])
    started = events[0]
    assert started["celery_version"] == celery.__version__
    assert (
        started["parts"].pop("recycling")
        == "worker_guard_child_memory_limit and worker_guard_total_memory_limit are None"
    )
    assert started["parts"].pop("unblock") == "worker_guard_unblock_after is None"
    assert started["parts"].pop("metrics_port") == "worker_guard_metrics_port is None"
    off = started["parts"].pop("heartbeat")
    assert off == "worker_guard_heartbeat_file is None"
    assert started["parts"] == dict.fromkeys(
        (
            *(
                "alerts",
                "broker",
                "health",
                "killed_children",
                "stall",
                "memory",
                "metrics",
                "operator_marks",
                "redis_memory",
                "results",
                "revocations",
                "revoked",
            ),
            "revoked_verify",
        ),
        "on",
    )
    assert started["settings"]["worker_guard_interval"] == 0.3


def test_events_follow_the_logfile_through_a_rotation(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    """They stand in ``--logfile``, not on stderr, and follow it when it is moved away."""
    fleet = make_fleet()
    log = tmp_path / "worker.log"
    worker = fleet.start("w", "--without-mingle", log=log, to_logfile=True)
    assert worker.events("started")
    assert '"event"' not in Path(f"{log}.stderr").read_text()
    log.rename(tmp_path / "worker.log.1")
    worker.ask("guard_sweep")
    wait_for(lambda: log.exists() and worker.events("cleanup_completed"), "the new file")


def test_events_after_detach(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """A worker that detached itself logs them into its file."""
    fleet = make_fleet()
    log, pidfile = tmp_path / "worker.log", tmp_path / "worker.pid"
    conf = fleet.app.conf["harness"]
    done = run_celery(
        *("worker", "-n", "w@test", "-l", "INFO", "-c", "1", "--without-mingle", "--detach"),
        *("--guard-dry-run", "--logfile", str(log), "--pidfile", str(pidfile)),
        conf=conf,
    )
    assert done.returncode == 0, done.stderr
    wait_for(lambda: log.exists() and " ready." in log.read_text(), "the worker to be ready")
    os.kill(int(pidfile.read_text()), signal.SIGTERM)
    wait_for(lambda: not pidfile.exists(), "the worker to end")
    events = [json.loads(x) for x in log.read_text().splitlines() if x.startswith('{"event"')]
    assert events[0]["event"] == "worker_guard.started"
    assert events[0]["dry_run"] is True


def test_the_applications_structlog_configuration_is_respected(make_fleet: MakeFleet) -> None:
    """Where the application configured structlog, events go its way."""
    fleet = make_fleet()
    worker = fleet.start("w", "--without-mingle", app_module="tests.harness.structlog_app")
    assert "event='worker_guard.started' level='info' worker='w@test'" in worker.text()


def test_console_format(make_fleet: MakeFleet) -> None:
    """``worker_guard_log_format`` "console" is for eyes."""
    worker = make_fleet(worker_guard_log_format="console").start("w", "--without-mingle")
    (line,) = [x for x in worker.text().splitlines() if "worker_guard.started" in x]
    assert not line.startswith("{")
    assert "celery_version=" in line


def test_the_workers_log_level_is_respected(make_fleet: MakeFleet) -> None:
    """At debug each sweep is seen, at info only those that did something."""
    fleet = make_fleet()
    quiet = fleet.start("quiet", "--without-mingle")
    wait_for(lambda: quiet.ask("guard")["totals"]["sweeps"] > 2, "sweeps")
    assert quiet.events("cleanup_completed") == []
    loud = fleet.start("loud", "--without-mingle", "--loglevel", "DEBUG")
    wait_for(lambda: len(loud.events("cleanup_completed")) > 2, "sweeps in the log")


def test_django_style_namespace(make_fleet: MakeFleet) -> None:
    """``CELERY_WORKER_GUARD_INTERVAL`` under the namespace CELERY."""
    worker = make_fleet().start(
        "w", "--without-mingle", app_module="tests.harness.django_style_app"
    )
    assert worker.events("started")[0]["settings"]["worker_guard_interval"] == 0.3


# -- backfill ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--without-mingle",), ()], ids=["alone", "mingles"])
def test_a_backfill_is_explained(make_fleet: MakeFleet, options: tuple[str, ...]) -> None:
    """Which tasks expired, how long they waited, and whether they were born expired.

    A worker that mingles has asked its broker for answers of its peers when it begins to ask for
    tasks: that there is no answer does not say that there are no tasks.
    """
    fleet = make_fleet(worker_guard_interval=3600.0)
    fleet.expire(*(f"waited-{n}" for n in range(7)))
    for n in range(5):
        fleet.send("sleep", 1, task_id=f"born-{n}", expires=-10)
    time.sleep(1)
    worker = fleet.start("w", *options)
    wait_for(lambda: worker.text().count("Discarding") == 12, "the messages to be discarded")
    worker.ask("guard_sweep")
    wait_for(lambda: worker.events("expired_backfill_detected"), "the event")
    (event,) = worker.events("expired_backfill_detected")
    assert event["level"] == "warning"
    assert event["expired_tasks"] == 12
    assert event["tasks"] == {"harness.add": 7, "harness.sleep": 5}
    assert event["causes"] == {**NO_CAUSES, "waited_in_queue": 7, "born_expired": 5}
    assert 1 < event["waited_s_p50"] <= event["waited_s_max"] < 60


NO_CAUSES = dict.fromkeys(("waited_in_queue", "held_until_eta", "born_expired", "clock_differs"), 0)


def send_by_a_clock_behind(fleet: Fleet, behind_s: float, task_id: str) -> None:
    """What a sender whose clock is behind publishes: a minute to live, by its own clock."""
    expires = datetime.now(timezone.utc) + timedelta(seconds=60 - behind_s)
    amqp = fleet.app.amqp
    message = amqp.create_task_message(task_id, "harness.add", (1, 2), {}, expires=expires)
    with fleet.app.producer_pool.acquire(block=True) as producer:
        amqp.send_task_message(
            producer, "harness.add", message, queue=amqp.queues["work"], expiration=60
        )


def expired(worker: Worker, count: int) -> dict[str, Any]:
    """What a sweep tells, once so many messages have expired."""
    wait_for(lambda: worker.text().count("Discarding") == count, "the messages to be discarded")
    worker.ask("guard_sweep")
    wait_for(lambda: worker.events("expired_backfill_detected"), "the event")
    return worker.events("expired_backfill_detected")[0]


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_no_cause_is_told_that_the_worker_knows_better(make_fleet: MakeFleet, pool: str) -> None:
    """Those that are held until an ETA, and those of a clock that is behind, waited for nobody."""
    fleet = make_fleet(worker_guard_interval=3600.0)
    worker = fleet.start("w", "-P", pool, "--without-mingle")
    for n in range(3):
        fleet.send("add", 1, 2, task_id=f"held-{n}", countdown=2.0, expires=1.0)
        fleet.send("retry_later", 12.0, task_id=f"retried-{n}", expires=10.0)
    for n in range(6):
        send_by_a_clock_behind(fleet, 3600.0, f"behind-{n}")
    event = expired(worker, 12)
    assert event["causes"] == {**NO_CAUSES, "held_until_eta": 6, "clock_differs": 6}
    assert (event["waited_s_p50"], event["waited_s_max"]) == (None, None)


def test_messages_that_wait_for_a_busy_worker_wait_in_the_queue(make_fleet: MakeFleet) -> None:
    """Nothing is wrong with a clock then, though the worker takes messages all the time."""
    fleet = make_fleet(worker_guard_interval=3600.0, worker_prefetch_multiplier=1)
    worker = fleet.start("w", "-P", "solo", "--without-mingle")
    fleet.send("sleep", 4)
    worker.logged("harness.sleep")
    for n in range(12):
        fleet.send("add", 1, 2, task_id=f"late-{n}", expires=1.0)
    event = expired(worker, 12)
    assert event["causes"] == {**NO_CAUSES, "waited_in_queue": 12}
    assert event["waited_s_p50"] > 1


def test_messages_that_wait_for_a_broker_that_hangs_wait_in_the_queue(
    make_fleet: MakeFleet, redis_server: RedisServer
) -> None:
    """That no message came does not say that the queue was empty: only the broker can."""
    fleet = make_fleet(worker_guard_interval=3600.0)
    worker = fleet.start("w", "--without-mingle")
    with redis_server.client.monitor() as monitor:
        # The worker has just asked for a message, and is told nothing of those that come.
        next(c for c in monitor.listen() if c["command"].startswith("BRPOP"))
        os.kill(worker.process.pid, signal.SIGSTOP)
    for n in range(12):
        fleet.send("add", 1, 2, task_id=f"late-{n}", expires=0.01)
    time.sleep(2.5)
    os.kill(worker.process.pid, signal.SIGCONT)
    event = expired(worker, 12)
    assert event["causes"] == {**NO_CAUSES, "waited_in_queue": 12}


# -- faults --------------------------------------------------------------------------------


def test_a_sweep_that_raises_never_touches_the_worker(make_fleet: MakeFleet) -> None:
    """Tasks go on, the failure is reported with longer and longer pauses, nothing leaks."""
    fleet = make_fleet(worker_guard_interval=0.1)
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle", app_module="tests.harness.broken_app")
    wait_for(lambda: len(worker.events("part_failed")) >= 4, "the part to fail")
    assert fleet.succeeds("add", 1, 2) == 3
    failures = worker.events("part_failed")
    assert [e["consecutive_failures"] for e in failures[:4]] == [1, 2, 3, 4]
    assert [e["retry_in_s"] for e in failures[:4]] == [0.1, 0.2, 0.4, 0.8]
    assert {e["part"] for e in failures} == {"revoked"}
    assert failures[0]["error"].startswith("AssertionError: broken")
    assert "secret" not in worker.text()
    assert worker.revoked() == EXPIRED
    assert worker.stop() == 0


def test_the_guard_outlives_a_broker_restart(make_fleet: MakeFleet) -> None:
    """Timers that died with the connection are armed again, and no more than before."""
    with RedisServer() as broker:
        fleet = make_fleet(broker_url=broker.url())
        fleet.expire("before")
        worker = fleet.start("w", "--without-mingle", "--loglevel", "DEBUG")
        wait_for(lambda: worker.cleared() == 1, "the first id to be cleared")
        for again in (1, 2):
            broker.kill()
            wait_for(
                lambda again=again: worker.text().count("Connection to broker lost") >= again,  # type: ignore[misc]
                "the worker to lose its broker",
            )
            broker.start()
            fleet.send("add", 1, 2, task_id=f"after-{again}", expires=-1)
            wait_for(lambda again=again: worker.cleared() == 1 + again, "the next id")  # type: ignore[misc]
        seen = len(worker.events("cleanup_completed"))
        more = wait_for(
            lambda: found if len(found := worker.events("cleanup_completed")[seen:]) > 10 else [],
            "more sweeps",
        )
        ends = [datetime.fromisoformat(e["timestamp"].replace("Z", "+00:00")) for e in more]
        # Each is due 0.27 to 0.33 s after the last, a slow host only adds to that; doubled timers
        # would come in between.
        assert min((b - a).total_seconds() for a, b in pairwise(ends)) > 0.26
        assert worker.stop() == 0


def test_a_result_backend_that_hangs(make_fleet: MakeFleet) -> None:
    """Look-ups fail and are reported, no id is cleared, tasks run; then it heals."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), task_ignore_result=True)
        # Written as a worker would have: the ids that the peer brings are proven.
        fleet.expire(*EXPIRED)
        peer = fleet.start("peer", "--without-mingle", guarded=False)
        wait_for(lambda: peer.revoked() == EXPIRED, "the ids to be kept")
        for task_id in EXPIRED:
            fleet.results.backend.mark_as_revoked(task_id, "expired")
        results.pause()
        worker = fleet.start("w", "-Q", "own")
        fleet.send("add", 1, 2, task_id="own", expires=-1, queue="own")

        def failed() -> set[str]:
            return {event["part"] for event in worker.events("part_failed")}

        wait_for(lambda: "revoked_verify" in failed(), "the failure to be reported")
        assert failed() <= {"revoked_verify", "revocations", "results", "redis_memory"}
        fleet.send("add", 1, 2, task_id="runs", queue="own")
        worker.logged("Task harness.add[runs]")
        worker.logged("harness.add[runs] succeeded")
        assert worker.cleared() == 0
        results.resume()
        wait_for(lambda: worker.cleared() == 1 + len(EXPIRED), "all ids to be cleared")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT], ids=["warm", "cold"])
def test_a_worker_with_a_dead_result_backend_stops(
    make_fleet: MakeFleet, tmp_path: Path, signum: int
) -> None:
    """It holds no shutdown up. What could bear a mark stays, and the operator's id is noted."""
    with RedisServer() as results:
        fleet = make_fleet(
            result_backend=results.url(), task_ignore_result=True, worker_guard_interval=3600.0
        )
        fleet.expire(*EXPIRED)
        statedb = f"--statedb={tmp_path / 'state'}"
        worker = fleet.start("w", "--without-mingle", statedb)
        wait_for(lambda: worker.revoked() == EXPIRED, "the ids to be kept")
        results.kill()
        fleet.app.control.revoke("operators")
        worker.logged("Tasks flagged as revoked: operators")
        worker.stop(signum)
        assert worker.events("stopped")[0]["revoked_tasks_cleared"] == 0
        again = fleet.start("w", "--without-mingle", statedb, "-Q", "other")
        assert again.revoked() == {"operators", *EXPIRED}
        assert again.ask("guard")["revoked"]["operator"] == 1


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ({"result_backend": None}, "DisabledBackend is not a key-value store"),
        ({"result_backend": "rpc://"}, "RPCBackend is not a key-value store"),
        ({"result_serializer": "pickle", "accept_content": ["json", "pickle"]}, "pickled"),
        ({"worker_guard_revoked_verify": False}, "worker_guard_revoked_verify is False"),
    ],
)
def test_without_proof_ids_from_elsewhere_stay(
    make_fleet: MakeFleet, conf: dict[str, Any], reason: str
) -> None:
    """The start event says why they are not verified; own expired ids go all the same."""
    fleet = make_fleet(**conf)
    fleet.expire(*EXPIRED)
    environ = {"C_FORCE_ROOT": "1"}  # Celery refuses pickle to root
    peer = fleet.start("peer", "--without-mingle", guarded=False, environ=environ)
    wait_for(lambda: peer.revoked() == EXPIRED, "the ids to be kept")
    worker = fleet.start("w", "-Q", "own", environ=environ)
    assert reason in worker.events("started")[0]["parts"]["revoked_verify"]
    fleet.send("add", 1, 2, task_id="own", expires=-1, queue="own")
    wait_for(lambda: worker.cleared() == 1, "the own id to be cleared")
    wait_for(lambda: worker.ask("guard")["totals"]["sweeps"] > 6, "several sweeps")
    assert worker.revoked() == EXPIRED
