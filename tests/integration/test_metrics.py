"""Metrics, scraped over HTTP from real workers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.conftest import MakeFleet
from tests.harness.audit_app import COUNTS
from tests.harness.memory import LEAK_MB, file_broker, happened, memory_site
from tests.harness.metrics import (
    dashboard,
    expressions,
    request,
    rules,
    scrape,
    until,
    used,
)
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.workers import ROOT, Fleet, Worker, fleet, wait_for
from worker_guard.metrics.responder import MOST_CONNECTIONS

EXPIRED = {f"expired-{n}" for n in range(12)}

#: What Prometheus adds to each sample: these are no labels of ours.
TARGET = {"job", "instance"}


@pytest.fixture
def port() -> int:
    """A port for the metrics of one worker."""
    return free_port()


Serving = Callable[..., tuple[Fleet, Worker]]


@pytest.fixture
def serving(make_fleet: MakeFleet, port: int) -> Serving:
    """Starts a worker that serves its metrics on the port."""

    def start(*options: str, app_module: str = "tests.harness.app", **conf: Any) -> Any:
        made = make_fleet(worker_guard_metrics_port=port, **conf)
        return made, made.start("w", "--without-mingle", *options, app_module=app_module)

    return start


def send_expired(fleet: Fleet) -> None:
    """Send messages that a worker that is up discards."""
    for task_id in EXPIRED:
        fleet.send("add", 1, 2, task_id=task_id, expires=-1)


def state_of(worker: Worker, part: str) -> str:
    """Whether a part is on, by ``inspect guard``."""
    return str(worker.ask("guard")["parts"][part])


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_a_scrape_on_each_pool(serving: Serving, port: int, pool: str) -> None:
    """What the guard did stands in the metrics; the worker stops as ever, and the port is free."""
    fleet, worker = serving("-P", pool)
    assert worker.events("started")[0]["parts"]["metrics_port"] == "on"
    fleet.app.control.revoke("operators")
    send_expired(fleet)
    page = until(port, "revoked_tasks_cleared_total", 12)
    assert page("info", worker="w@test", pool=pool, dry_run="false") == 1
    assert page("revoked_set_ids") == page("revoked_ids", origin="operator") == 1
    assert page("expired_tasks_total", cause="born_expired") == 12
    assert page("expired_tasks_total", cause="waited_in_queue") == 0
    assert page("part_on", part="metrics_port") == 1
    assert page("alert_threshold", alert="revoked_tasks") == 10
    assert page("part_failures_total", part="revoked") == 0
    assert "process_resident_memory_bytes" in page.text
    assert fleet.succeeds("add", 1, 2) == 3
    assert worker.stop() == 0
    assert "Traceback" not in worker.text()
    assert worker.events("part_failed") == []
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_a_scrape_while_a_task_runs(
    make_fleet: MakeFleet, redis_server: RedisServer, port: int, pool: str
) -> None:
    """Also where the task holds the event loop."""
    fleet = make_fleet(worker_guard_metrics_port=port)
    environ = {COUNTS: redis_server.url(2)}
    app = "tests.harness.audit_app"
    worker = fleet.start("w", "-P", pool, "--without-mingle", app_module=app, environ=environ)
    with redis.Redis.from_url(environ[COUNTS]) as client:
        fleet.send("hold", task_id="long")
        wait_for(lambda: client.exists("holding"), "the task to run")
        assert scrape(port)("info") == 1
        assert "[long] succeeded" not in worker.text()
        client.set("free", 1)
    worker.logged("[long] succeeded")


def test_without_an_event_loop(port: int, redis_server: RedisServer, tmp_path: Path) -> None:
    """A transport without one: the answer takes its time, and comes."""
    broker = file_broker(tmp_path)
    conf = {**broker, "result_backend": redis_server.url(), "worker_guard_metrics_port": port}
    with fleet(tmp_path, **conf) as workers:
        worker = workers.launch("w", "--without-mingle").logged(" ready.")
        assert scrape(port)("info", pool="prefork") == 1
        assert worker.stop() == 0
        assert worker.events("part_failed") == []


def test_what_memory_and_alerts_come_to(
    redis_server: RedisServer, tmp_path: Path, port: int
) -> None:
    """Every metric has a sample; those that dashboard and rules use are there, with the labels."""
    conf = {
        "worker_guard_metrics_port": port,
        "worker_guard_interval": 0.3,
        "worker_guard_parent_memory_limit": "4GiB",
        "worker_guard_alert_recycles_per_hour": 0,
    }
    with memory_site(redis_server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=2")
        site.fleet.send("leak", LEAK_MB)
        happened(worker, "child_recycled")
        page = until(port, "alert_active", 1, alert="recycles_per_hour")
        page = until(port, "children", 2)
        assert page("children_recycled_total") == 1
        assert page("alerts_raised_total", alert="recycles_per_hour") == 1
        assert page("child_memory_limit_bytes") == 50_000_000
        assert page("parent_memory_limit_bytes") == 4 * 1024**3
        described = worker.ask("guard")["memory"]["children"]
        sizes = [child["used_bytes"] for child in described]
        largest, together = page("child_memory_max_bytes"), page("children_memory_bytes")
        assert largest is not None
        assert together is not None
        assert 0.5 * max(sizes) < largest < together < 4 * max(sizes)
        parent = page("parent_memory_bytes")
        assert parent is not None
        assert parent > 10_000_000
        assert page("redis_memory_ratio") is not None

        # It has a sample only after minutes of growth.
        known = {"worker_guard_process_limit_seconds": {"process"}, **page.labels()}
        queries = [*expressions(dashboard()["panels"]), *expressions(dashboard()["templating"])]
        alerts = list(rules(ROOT / "docs/metrics.md"))
        assert len(queries) > 20
        assert len(alerts) > 5
        for query in (*queries, *alerts):
            for name, labels in used(query).items():
                assert name in known, query
                assert labels <= known[name] | TARGET, query
        named = {name for query in queries for name in used(query)}
        assert {"worker_guard_revoked_ids", "worker_guard_alert_active"} <= named
        # Labels that are not bounded would be here: each stands for a fixed set.
        assert {label for labels in known.values() for label in labels} == {
            *("worker", "version", "celery_version", "pool", "dry_run"),
            *("part", "origin", "cause", "trigger", "action", "alert", "oom", "process"),
        }
        assert worker.stop() == 0


def test_bad_requests(serving: Serving, port: int) -> None:
    """Each is refused with its status, and the worker goes on."""
    fleet, worker = serving()
    assert request(port, "/").status == 404
    assert request(port, "/metrics", "POST").status == 405
    assert request(port, "/metrics", "DELETE").headers["Allow"] == "GET, HEAD"
    head = request(port, "/metrics", "HEAD")
    assert (head.status, head.body) == (200, "")
    assert int(head.headers["Content-Length"]) > 1000
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert request(port).headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert fleet.succeeds("add", 1, 2) == 3
    assert "Traceback" not in worker.text()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_slow_clients_hold_nobody_up(serving: Serving, port: int, pool: str) -> None:
    """Silent and dripping ones: tasks go on, another scrape is answered, and they are dropped."""
    fleet, worker = serving("-P", pool)
    silent = [
        socket.create_connection(("127.0.0.1", port), timeout=20)
        for _ in range(MOST_CONNECTIONS + 16)
    ]
    try:
        silent[-1].sendall(b"GET /met")
        assert scrape(port)("info") == 1
        assert fleet.succeeds("add", 1, 2) == 3
        for client in silent:
            assert received(client) == b""
        assert scrape(port)("info") == 1
    finally:
        for client in silent:
            client.close()
    assert worker.events("part_failed") == []
    assert worker.stop() == 0


def received(client: socket.socket) -> bytes:
    """What a client is sent before it is dropped."""
    with contextlib.suppress(ConnectionResetError):  # with what it had sent unread
        return client.recv(100)
    return b""


def test_a_port_that_is_taken(serving: Serving, port: int) -> None:
    """The second worker runs without it, says so, and has it when the first has gone."""
    fleet, first = serving()
    second = fleet.start("second", "--without-mingle")
    reason = second.events("started")[0]["parts"]["metrics_port"]
    assert reason == f"127.0.0.1 port {port}: Address already in use; it is tried again"
    assert second.events("started")[0]["parts"]["metrics"] == "on"
    assert fleet.succeeds("add", 1, 2) == 3
    assert "Address already in use" in second.failure("metrics_port")["error"]
    assert scrape(port)("info", worker="w@test") == 1
    assert first.stop() == 0
    wait_for(lambda: state_of(second, "metrics_port") == "on", "the port")
    assert scrape(port)("info", worker="second@test") == 1
    assert second.stop() == 0


def test_children_do_not_keep_the_port(serving: Serving, port: int) -> None:
    """One that is forked later does not listen; a killed worker's successor has the port."""
    fleet, worker = serving()
    scrape(port)
    fleet.app.control.pool_grow(1, destination=[worker.name])
    main = psutil.Process(worker.process.pid)
    children = wait_for(lambda: found if len(found := main.children()) == 2 else [], "a child")
    for child in children:
        wait_for(
            lambda child=child: port not in listening(child),  # type: ignore[misc]
            "the child to close the port",
        )
    assert port in listening(main)
    main.kill()
    worker.process.wait(10)
    successor = fleet.start("successor", "--without-mingle")
    assert state_of(successor, "metrics_port") == "on"
    assert scrape(port)("info", worker="successor@test") == 1


def listening(process: psutil.Process) -> set[int]:
    """The ports on which a process holds a listening socket."""
    found = process.net_connections(kind="tcp")
    return {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}


def test_the_metrics_outlive_a_broker_restart(serving: Serving, port: int) -> None:
    """Whatever becomes of the connection's timers."""
    with RedisServer() as broker:
        _fleet, worker = serving(broker_url=broker.url())
        assert scrape(port)("info") == 1
        for again in (1, 2):
            broker.kill()
            wait_for(
                lambda again=again: worker.text().count("Connection to broker lost") >= again,  # type: ignore[misc]
                "the worker to lose its broker",
            )
            broker.start()
            wait_for(lambda: worker.ask("ping"), "the worker to be back")
            assert scrape(port)("info") == 1
        assert worker.stop() == 0


def test_the_applications_metrics_are_served_with_the_guards(serving: Serving, port: int) -> None:
    """One registry; where a collector of the application's raises, the scrape fails and says so."""
    fleet, worker = serving(app_module="tests.harness.metrics_app")
    assert worker.ask("break_collector", broken=False) == {"ok": "done"}
    wait_for(lambda: "harness_commands_total 1.0" in scrape(port).text, "the application's")
    worker.ask("break_collector", broken=True)
    wait_for(lambda: request(port).status == 500, "the scrape to fail")
    (failure,) = worker.events("part_failed")
    assert failure["part"] == "metrics"
    assert failure["error"] == "RuntimeError: the application's collector is broken"
    assert fleet.succeeds("add", 1, 2) == 3
    worker.ask("break_collector", broken=False)
    wait_for(lambda: request(port).status == 200, "the scrape to succeed")
    assert worker.stop() == 0


@pytest.mark.parametrize("asked", [True, False])
def test_without_the_library(make_fleet: MakeFleet, port: int, asked: bool) -> None:
    """The start event says what is missing; a port answers probes, and all else runs."""
    fleet = make_fleet(**({"worker_guard_metrics_port": port} if asked else {}))
    fleet.expire(*EXPIRED)
    worker = fleet.start("w", "--without-mingle", app_module="tests.harness.no_prometheus_app")
    parts = worker.events("started")[0]["parts"]
    reason = "prometheus_client is not installed: worker-guard[prometheus]"
    assert parts["metrics"] == reason
    assert parts["metrics_port"] == ("on" if asked else "worker_guard_metrics_port is None")
    wait_for(lambda: worker.cleared() == 12, "the ids to be cleared")
    if asked:
        refused = request(port)
        assert (refused.status, refused.body) == (501, f"{reason}\n")
        assert request(port, "/livez").status == request(port, "/readyz").status == 200
    else:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0
    assert worker.stop() == 0
    assert worker.events("part_failed") == []


def test_no_port_is_opened_unless_it_is_asked_for(make_fleet: MakeFleet) -> None:
    """The figures are on the registry all the same."""
    worker = make_fleet().start("w", "--without-mingle")
    parts = worker.events("started")[0]["parts"]
    assert parts["metrics"] == "on"
    assert parts["metrics_port"] == "worker_guard_metrics_port is None"
    assert listening(psutil.Process(worker.process.pid)) == set()


def test_a_dry_run_serves_what_would_have_been_done(serving: Serving, port: int) -> None:
    """And says that it is one."""
    fleet, _worker = serving("--guard-dry-run")
    send_expired(fleet)
    page = until(port, "revoked_tasks_cleared_total", 12)
    assert page("info", dry_run="true") == 1
    assert page("revoked_set_ids") == 12


def test_in_multiprocess_mode(
    make_fleet: MakeFleet, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard's metrics are served, and stand in none of the files."""
    files = tmp_path / "multiproc"
    files.mkdir()
    fleet = make_fleet(worker_guard_metrics_port=port)
    worker = fleet.start(
        "w",
        "--without-mingle",
        app_module="tests.harness.metrics_app",
        environ={"PROMETHEUS_MULTIPROC_DIR": str(files)},
    )
    worker.ask("break_collector", broken=False)
    assert scrape(port)("info") == 1
    written = b"".join(path.read_bytes() for path in files.iterdir())
    assert b"harness_commands" in written
    assert b"worker_guard_" not in written
