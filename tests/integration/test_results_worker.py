"""The results part in real workers, the task, and the commands, on a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import timezone
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import celery
import pytest
from celery import Celery

from tests.harness import guard_command
from tests.harness.app import CONFIGURATION
from tests.harness.fronts import InMidCleanup
from tests.harness.guard_command import RESULTS
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.results import DAY_S, check_filled, cluster_node, contents, encoded
from tests.harness.results import fill as fill_at_now
from tests.harness.workers import ROOT, Fleet, Worker, fleet, wait_for
from worker_guard.events import CleanupCompleted
from worker_guard.results.cleanup_run import CleanupCounts

#: Real cleanups go by the real time, at which everything in the harness is of the future but for
#: what is made older by this.
PATTERNS = {"worker_guard_state_patterns": ["app-state:*"]}
needs_spawn = pytest.mark.skipif(
    tuple(int(n) for n in celery.__version__.split(".")[:2]) < (5, 7),
    reason="worker_pool_start_method came with Celery 5.7",
)
LEASE = "worker-guard-results-lease"
LAST_RUN = "worker-guard-results-last-run"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


@pytest.fixture(autouse=True)
def the_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the harness's records be as old as they say at the time of the test."""
    import tests.harness.results as harness

    shift = harness.NOW - int(time.time())
    kinds = {}
    for name, (value, ttl, fate) in harness.KINDS.items():
        moved = value
        for age in (0, 2 * DAY_S):
            for zone in (timezone.utc, None):
                old, new = harness.date(age, zone), harness.date(age + shift, zone)
                moved = moved.replace(old.encode(), new.encode())
        kinds[name] = (moved, ttl, fate)
    monkeypatch.setattr(harness, "KINDS", kinds)


def fill(client: Any) -> CleanupCounts:
    """The harness's keys, and what a cleanup does to them; it scans the guard's own keys too."""
    return replace(fill_at_now(client), keys_scanned=0)


def done(entry: dict[str, Any]) -> CleanupCounts:
    """The counts of an event, of the task's return value, or of the history."""
    return CleanupCounts(0, *(int(entry[name]) for name in list(asdict(CleanupCounts()))[1:]))


def conf(server: RedisServer, **values: Any) -> dict[str, Any]:
    return {
        "broker_url": server.url(1),
        "result_backend": server.url(0),
        "worker_guard_interval": 0.5,
        # As the harness's rules have it: an age of a day, and three days that the backend gives.
        "result_expires": 3 * DAY_S,
        "worker_guard_results_max_age": DAY_S,
        **PATTERNS,
        **values,
    }


def guard(server: RedisServer, *arguments: str, **values: Any) -> subprocess.CompletedProcess[str]:
    """``celery guard …``, as an operator runs it."""
    return guard_command.guard(conf(server, **values), *arguments)


def make_due(server: RedisServer) -> None:
    """Let the schedule believe that the last cleanup was long ago."""
    server.client.set(LAST_RUN, "1.0")


def cleanups(*workers: Any) -> list[dict[str, Any]]:
    return [
        event
        for worker in workers
        for event in worker.events("cleanup_completed")
        if event["trigger"] == "schedule"
    ]


def settled(server: RedisServer) -> bool:
    """Whether a cleanup by schedule has come to its end, and gave its lease back."""
    last = float(server.client.get(LAST_RUN) or 0)
    return last > 1e9 and not server.client.exists(LEASE)


def test_of_three_workers_one_cleans(tmp_path: Path, server: RedisServer) -> None:
    """By schedule, once, with what it did in the log and in the history."""
    expected = fill(server.client)
    make_due(server)
    with fleet(tmp_path, **conf(server, worker_guard_results_schedule=3600)) as workers:
        three = [workers.launch(name) for name in "abc"]
        for worker in three:
            worker.ready()
        wait_for(lambda: cleanups(*three), "a cleanup")
        wait_for(lambda: settled(server), "the lease to be given back")
        for worker in three:
            worker.stop()
        (event,) = cleanups(*three)
        assert done(event) == expected
        assert (event["level"], event["dry_run"]) == ("info", False)
        stops = [worker.events("stopped")[0] for worker in three]
        assert sum(stop["expired_results_deleted"] for stop in stops) == (
            expected.expired_results_deleted
        )
        assert all(worker.events("started")[0]["parts"]["results"] == "on" for worker in three)
    check_filled(server.client)
    listed = json.loads(guard(server, "history", "--json").stdout)
    assert [(done(entry), entry["by"]) for entry in listed] == [(expected, event["worker"])]
    table = guard(server, "history").stdout.splitlines()
    assert table[0].split()[:3] == ["started", "(UTC)", "target"]
    assert event["worker"] in table[1]


def test_a_dry_run_worker_writes_nothing(tmp_path: Path, server: RedisServer) -> None:
    """Not the last run, nor a lease, nor the history; by schedule and by the task."""
    expected = fill(server.client)
    before = contents(server.client)
    values = conf(server, worker_guard_results_schedule=1, result_backend=server.url(0))
    with fleet(tmp_path, **values) as workers:
        worker = workers.start("w", "--guard-dry-run")
        wait_for(lambda: cleanups(worker), "a cleanup")
        workers.app.send_task("worker_guard.cleanup", ignore_result=True)
        by_task = wait_for(
            lambda: [e for e in worker.events("cleanup_completed") if e["trigger"] == "task"],
            "the task's cleanup",
        )
        assert [done(e) for e in [cleanups(worker)[0], *by_task]] == [expected, expected]
        assert all(e["dry_run"] for e in worker.events())
    assert contents(server.client) == before


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_task_cleans_and_returns_what_it_did(
    tmp_path: Path, server: RedisServer, pool: str
) -> None:
    """And logs one line of JSON, from whichever process or thread it runs in."""
    expected = fill(server.client)
    with fleet(tmp_path, **conf(server, worker_guard_results_schedule=None)) as workers:
        worker = workers.start("w", "--pool", pool)
        assert "is None" in worker.events("started")[0]["parts"]["results"]
        assert "worker_guard.cleanup" in worker.text()
        preview = call(server, dry_run=True)
        statistics = call(server)
        assert done(preview) == done(statistics) == expected
        assert (preview["dry_run"], statistics["dry_run"]) == (True, False)
        assert (statistics["trigger"], statistics["complete"]) == ("task", True)
        events = [e for e in worker.events("cleanup_completed") if e["trigger"] == "task"]
        assert [(done(e), e["dry_run"]) for e in events] == [(expected, True), (expected, False)]
        server.client.set(LEASE, "another")
        assert "another cleanup" in call(server)["skipped"]
        with pytest.raises(AssertionError, match="hours, above 0"):
            call(server, max_age_hours=0)
    check_filled(server.client)
    assert len(json.loads(guard(server, "history", "--json").stdout)) == 1


@pytest.mark.parametrize(
    ("pool", "values"),
    [
        pytest.param("prefork", {"worker_pool_start_method": "spawn"}, marks=needs_spawn),
        ("threads", {}),
        ("solo", {}),
        ("gevent", {}),
    ],
    ids=["spawn", "threads", "solo", "gevent"],
)
def test_each_pool_cleans(
    tmp_path: Path, server: RedisServer, pool: str, values: dict[str, Any]
) -> None:
    """By schedule and by the task, as with prefork."""
    expected = fill(server.client)
    make_due(server)
    with fleet(tmp_path, **conf(server, worker_guard_results_schedule=3600, **values)) as workers:
        worker = workers.start("w", "--pool", pool)
        wait_for(lambda: settled(server), "a cleanup")
        (event,) = cleanups(worker)
        assert done(event) == expected
        check_filled(server.client)
        again = call(server)
        assert (again["expired_results_deleted"], again["complete"]) == (0, True)
        assert worker.stop() == 0
        (stopped,) = worker.events("stopped")
        assert stopped["expired_results_deleted"] == expected.expired_results_deleted
        assert "Traceback" not in worker.text()


def test_a_cleanup_cut_off_by_a_shutdown_says_what_it_did(
    tmp_path: Path, server: RedisServer
) -> None:
    """The worker ends warmly, gives the lease back, and the next one starts over."""
    crowd(server, 40_000)
    make_due(server)
    workers: Fleet
    # There is no worker yet.
    terminate = lambda: workers.workers[0].process.terminate()  # noqa: E731, PLW0108
    with (
        InMidCleanup(server.port, terminate) as front,
        fleet(tmp_path, **cleaned_by(front, server)) as workers,
    ):
        first = workers.launch("first")
        assert first.ends() == 0
        left = results_left(server)
        assert left > 20_000
        (event,) = cleanups(first)
        (stopped,) = first.events("stopped")
        assert event["expired_results_deleted"] == 40_000 - left
        assert stopped["expired_results_deleted"] == 40_000 - left
        assert not server.client.exists(LEASE)
        assert server.client.get(LAST_RUN) == b"1.0"
        second = workers.start("second")
        wait_for(lambda: cleanups(second), "the cleanup by another")
        assert results_left(server) == 20_000


def call(server: RedisServer, **arguments: Any) -> Any:
    """What the task returns; read as it stands, so that no client holds on to a server's end."""
    client = Celery("client", set_as_current=False, broker=server.url(1))
    client.conf.task_default_queue = "work"
    key = f"celery-task-meta-{client.send_task('worker_guard.cleanup', kwargs=arguments).id}"
    client.close()
    wait_for(lambda: server.client.exists(key), "the task's result")
    answer = json.loads(server.client.getdel(key) or b"")
    assert answer["status"] == "SUCCESS", answer["result"]
    return answer["result"]


def test_a_worker_killed_in_mid_cleanup_leaves_it_to_another(
    tmp_path: Path, server: RedisServer
) -> None:
    """Once the lease has run out; what both did adds up."""
    crowd(server, 20_000)
    make_due(server)
    workers: Fleet
    # There is no worker yet.
    kill = lambda: workers.workers[0].process.kill()  # noqa: E731, PLW0108
    with (
        InMidCleanup(server.port, kill) as front,
        fleet(tmp_path, **cleaned_by(front, server)) as workers,
    ):
        first = workers.launch("first")
        first.ends()
        assert server.client.pttl(LEASE) > 0
        assert results_left(server) > 10_000
        second = workers.start("second")
        # What a test can't wait for: the minute that a dead worker's lease lasts.
        server.client.delete(LEASE)
        wait_for(lambda: cleanups(second), "the other's cleanup")
        assert results_left(server) == 10_000


def cleaned_by(front: InMidCleanup, server: RedisServer, **values: Any) -> dict[str, Any]:
    """The configuration of a worker whose cleanup, which is due, goes by this front."""
    by_front = {"result_backend": front.url(), "worker_guard_results_schedule": 3600}
    return conf(server, **by_front, **values)


def crowd(server: RedisServer, count: int) -> None:
    """Results of which every other one is old."""
    with server.client.pipeline(transaction=False) as pipe:
        now = time.time()
        for i in range(count):
            done_at = time.gmtime(now - (2 * DAY_S if i % 2 else 0))
            value = json.loads(encoded(f"{i:x}"))
            value["date_done"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", done_at)
            pipe.set(f"celery-task-meta-{i:x}", json.dumps(value))
        pipe.execute()


def failed_parts(worker: Worker) -> set[str]:
    """The parts that failed, by the worker's log."""
    return {event["part"] for event in worker.events("part_failed")}


def results_left(server: RedisServer) -> int:
    return len(server.client.keys("celery-task-meta-*"))


@pytest.mark.parametrize(
    "fault",
    [
        "hangs",
        "loses the lease",
        pytest.param("dies", marks=pytest.mark.slow),
        pytest.param("is read-only", marks=pytest.mark.slow),
    ],
)
def test_a_fault_of_the_results_redis_never_reaches_the_worker(
    tmp_path: Path, server: RedisServer, fault: str
) -> None:
    """The part is paused and tried again; tasks run on meanwhile; nothing young is gone."""
    crowd(server, 20_000)
    make_due(server)
    faults: dict[str, Callable[[], Any]] = {
        "hangs": server.pause,
        "dies": server.kill,
        "loses the lease": lambda: server.client.set(LEASE, "another", ex=5),
        "is read-only": lambda: server.client.replicaof("127.0.0.1", free_port()),
    }
    with RedisServer() as broker, InMidCleanup(server.port, faults[fault]) as front:
        values = cleaned_by(front, server, broker_url=broker.url())
        with fleet(tmp_path, **values) as workers:
            worker = workers.start("w")
            wait_for(lambda: front.acted, "the cleanup to be under way")
            if fault != "loses the lease":
                wait_for(lambda: "results" in failed_parts(worker), "the failure")
                # The server is shared with the part that looks at its memory.
                assert failed_parts(worker) <= {"results", "redis_memory"}
                # The consumer answers, as it could not if the loop were held.
                assert worker.ask("ping") == {"ok": "pong"}
            if fault == "hangs":
                server.resume()
            elif fault == "dies":
                server.start()
                crowd(server, 1000)
                make_due(server)
            elif fault == "is read-only":
                server.client.replicaof("NO", "ONE")
            if fault != "loses the lease":
                server.client.delete(LEASE)
            left = 500 if fault == "dies" else 10_000
            wait_for(lambda: results_left(server) == left, "the cleanup to come to its end")
            assert worker.ask("ping") == {"ok": "pong"}
            assert worker.stop() == 0


def test_guard_cleanup_cleans_from_its_own_process(server: RedisServer) -> None:
    """A dry run first, then for people, then for machines."""
    expected = fill(server.client)
    would = guard(server, "cleanup", *RESULTS, "--dry-run", "--json")
    assert would.returncode == 0, would.stderr
    assert done(json.loads(would.stdout)["targets"]["results"]) == expected
    cleaned = guard(server, "cleanup", *RESULTS)
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert f"{expected.expired_results_deleted} results deleted, older than 24 h" in cleaned.stdout
    check_filled(server.client)
    again = json.loads(guard(server, "cleanup", *RESULTS, "--json", "--max-age", "1").stdout)
    assert again["expired_results_deleted"] == 0
    assert again["targets"]["results"]["max_age_s"] == 3600
    assert [e["trigger"] for e in json.loads(guard(server, "history", "--json").stdout)] == [
        "cli",
        "cli",
    ]


def test_the_history_keeps_the_last_hundred(server: RedisServer) -> None:
    """And says so where there is none."""
    from worker_guard.results.history import History, Outcome

    assert "No cleanup" in guard(server, "history").stdout
    kept = History(server.client, "worker-guard-")
    for i in range(120):
        kept.add(
            Outcome(
                at=float(i),
                by="w@test",
                max_age_s=1.0,
                event=CleanupCounts().event(trigger="schedule", duration_s=1.0),
            )
        )
    server.client.lpush("worker-guard-history", "not JSON")
    assert [entry["at"] for entry in kept.entries()] == [float(i) for i in range(119, 20, -1)]
    assert len(guard(server, "history").stdout.splitlines()) == 100
    # The sweeps of a fleet push no cleanup of the results out.
    for i in range(200, 310):
        event = CleanupCompleted(revoked_tasks_cleared=1)
        kept.add(Outcome(at=float(i), by="w@test", event=event))
    listed = [(entry["at"], entry["target"]) for entry in kept.entries()]
    assert listed[:100] == [(float(i), "revoked") for i in range(309, 209, -1)]
    assert listed[100:] == [(float(i), "results") for i in range(119, 20, -1)]


def test_purge_queues_asks_first(server: RedisServer) -> None:
    """Not where the answer stands, and ``--yes`` answers; a dry run only counts."""
    app = Celery("client", set_as_current=False, broker=server.url(1))
    app.conf.task_default_queue = "work"
    for _ in range(3):
        app.send_task("harness.add", (1, 2))
    waiting = 3
    refused = guard(server, "cleanup", *RESULTS, "--purge-queues", "--json")
    assert refused.returncode == 1
    assert f"Drop the {waiting} messages" in refused.stderr
    assert refused.stdout == ""
    assert "--yes" in refused.stderr
    would = guard(server, "cleanup", *RESULTS, "--purge-queues", "--dry-run", "--json")
    assert json.loads(would.stdout)["messages_purged"] == waiting
    with app.connection_for_read() as connection:
        assert connection.default_channel.queue_declare("work", passive=True)[1] == waiting
    purged = guard(server, "cleanup", *RESULTS, "--purge-queues", "--yes")
    assert purged.returncode == 0, purged.stderr
    assert "3 waiting messages dropped" in purged.stdout
    app.close()


def test_nothing_is_purged_after_a_step_that_failed(server: RedisServer) -> None:
    """The messages are dropped last, and only if all before that was done."""
    app = Celery("client", set_as_current=False, broker=server.url(1))
    app.conf.task_default_queue = "work"
    app.send_task("harness.add", (1, 2))
    away = {"result_backend": f"redis://127.0.0.1:{free_port()}/0"}
    said = guard(server, "cleanup", *RESULTS, "--purge-queues", "--yes", **away)
    assert said.returncode == 69
    assert "The waiting messages were not dropped" in said.stderr
    with app.connection_for_read() as connection:
        assert connection.default_channel.queue_declare("work", passive=True)[1] == 1
    app.close()


@pytest.mark.parametrize(
    ("arguments", "values", "code", "line"),
    [
        (["cleanup", "--max-age", "0"], {}, 2, "hours, above 0"),
        (["cleanup", "--max-age", "x"], {}, 2, "not a valid float"),
        (["cleanup", "--yes"], {}, 2, "--purge-queues"),
        (
            ["cleanup", *RESULTS],
            {"result_expires": None, "worker_guard_results_max_age": None},
            2,
            "how old a result may get",
        ),
        (
            ["cleanup", *RESULTS],
            {"worker_guard_state_patterns": ["*"]},
            2,
            "worker_guard_state_patterns",
        ),
        (
            ["cleanup", *RESULTS],
            {"result_backend": "cache+memory://"},
            2,
            "no Redis result backend",
        ),
        (["history"], {"result_backend": "rpc://"}, 2, "no Redis result backend"),
        (["cleanup", *RESULTS], {"result_backend": "redis://:secret@127.0.0.1:1/0"}, 69, "refused"),
        (["history"], {"result_backend": "redis://:secret@127.0.0.1:1/0"}, 69, "refused"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    server: RedisServer, arguments: list[str], values: dict[str, Any], code: int, line: str
) -> None:
    """With its exit code, and without a traceback or a password."""
    said = guard(server, *arguments, **values)
    assert (said.returncode, said.stdout) == (code, "")
    assert line in said.stderr
    assert "Traceback" not in said.stderr
    assert "secret" not in said.stderr
    if "Usage:" not in said.stderr:
        assert len(said.stderr.splitlines()) == 1


def test_ctrl_c_stops_it_with_the_counts_so_far(server: RedisServer) -> None:
    """Which are those of what is gone."""
    crowd(server, 100_000)
    begun: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    with InMidCleanup(server.port, lambda: begun.get().send_signal(signal.SIGINT)) as front:
        values = conf(server, result_backend=front.url())
        process = guard_command.guard_process(values, "cleanup", *RESULTS, "--json")
        begun.put(process)
        out, err = process.communicate(timeout=60)
    said = json.loads(out)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    # The call that was under way, too.
    gone = 100_000 - results_left(server)
    assert 0 < said["expired_results_deleted"] == gone < 100_000
    assert said["targets"]["results"]["complete"] is False


def on_a_terminal(values: dict[str, Any]) -> bytes:
    """What ``celery guard cleanup`` shows there."""
    master, slave = pty.openpty()
    environ = {**os.environ, CONFIGURATION: json.dumps(values), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.harness.app", "guard", "cleanup", *RESULTS],
        cwd=ROOT,
        env=environ,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(master, 4096):
            shown += piece
    os.close(master)
    assert process.wait(60) == 0, shown.decode()
    return shown


def test_a_terminal_gets_a_progress_bar(server: RedisServer) -> None:
    """And a pipe does not."""
    fill(server.client)
    shown = on_a_terminal(conf(server))
    assert b"Cleaning" in shown
    assert b"100%" in shown


def test_a_bar_that_can_not_be_drawn_is_no_obstacle(server: RedisServer) -> None:
    """A user may be allowed all that a cleanup needs, and not to ask how many keys there are."""
    expected = fill(server.client)
    server.client.execute_command("ACL", "SETUSER", "u", "on", "nopass", "~*", "+@all", "-dbsize")
    shown = on_a_terminal(conf(server, result_backend=f"redis://u:x@127.0.0.1:{server.port}/0"))
    assert b"Cleaning" not in shown
    assert f"{expected.expired_results_deleted} results deleted".encode() in shown


def test_a_cluster_is_refused_in_one_line(tmp_path: Path) -> None:
    """Before anything is changed; in a worker, as the part's failure."""
    with cluster_node() as node:
        node.client.cluster("addslots", *range(16384))
        node.client.config_set("cluster-require-full-coverage", "no")
        said = guard(node, "cleanup", *RESULTS)
        assert said.returncode == 2
        assert "Redis Cluster" in said.stderr
        with RedisServer() as broker:
            values = conf(node, broker_url=broker.url(), result_backend=node.url())
            with fleet(tmp_path, **values) as workers:
                worker = workers.start("w")
                failed = wait_for(lambda: worker.events("part_failed"), "the refusal")
                assert "Redis Cluster" in failed[0]["error"]
        assert node.client.dbsize() == 0
