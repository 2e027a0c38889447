"""Health, of real workers: the heartbeat file, the probe as a program, and the probes by HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FAST
from tests.harness.health_app import UP_BY
from tests.harness.memory import file_broker
from tests.harness.metrics import request
from tests.harness.proxy import Proxy
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.workers import ROOT, Fleet, Worker, fleet, wait_for
from worker_guard.metrics.responder import MOST_CONNECTIONS


class Place:
    """A broker of one's own, a worker with a heartbeat file and a port, and what is asked of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folder = directory / "run"
        self.folder.mkdir()
        self.path = self.folder / "w.json"
        self.port = free_port()
        self.broker = RedisServer()
        self.fleet: Fleet

    def launch(self, *options: str, **arguments: Any) -> Worker:
        return self.fleet.launch(
            "w", "--without-mingle", *options, app_module="tests.harness.health_app", **arguments
        )

    def start(self, *options: str, **arguments: Any) -> Worker:
        return self.launch(*options, **arguments).ready()

    def record(self) -> dict[str, Any]:
        """What stands in the file; it is whole whenever it is read."""
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads(self.path.read_text())
            return found
        return {}

    def until(self, state: str) -> dict[str, Any]:
        """The first record with this state."""

        def there() -> dict[str, Any]:
            found = self.record()
            return found if found.get("state") == state else {}

        return wait_for(there, f"the state {state}; it is {self.record()}")

    def aged(self, max_age_s: float | None) -> dict[str, Any]:
        """The record, if it holds for so long."""
        found = self.record()
        return found if found.get("max_age_s", 0) == max_age_s else {}

    def newer(self, than: dict[str, Any]) -> dict[str, Any]:
        """The first record that is newer."""

        def there() -> dict[str, Any]:
            found = self.record()
            return found if found.get("monotonic", 0) > than["monotonic"] else {}

        return wait_for(there, "a newer record")

    def probe(self, *options: str) -> tuple[int, str]:
        """What the program says, as an exec probe runs it."""
        command = [sys.executable, str(ROOT / "worker_guard_probe.py"), str(self.path), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()

    def asked(self, path: str) -> tuple[int, dict[str, Any]]:
        """What ``/livez`` or ``/readyz`` answers."""
        answer = request(self.port, path)
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(answer.body)

    def hold(self) -> Path:
        """Send a task, wait until it runs, and return the file by which it ends."""
        began, until = self.directory / "began", self.directory / "until"
        self.fleet.send("occupy", str(began), str(until))
        wait_for(began.exists, "the task to run")
        return until


def failures(worker: Worker) -> list[dict[str, Any]]:
    """What failed, besides writes that were slow because this machine was busy."""
    return [e for e in worker.events("part_failed") if "SlowDiskError" not in e["error"]]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    conf = {
        **FAST,
        "broker_url": place.broker.url(),
        "task_ignore_result": True,
        "worker_guard_metrics_port": place.port,
        "worker_guard_heartbeat_file": str(place.folder / "%n.json"),
        "worker_guard_heartbeat_interval": 0.2,
    }
    with place.broker, fleet(tmp_path, **conf) as workers:
        place.fleet = workers
        yield place


@pytest.mark.parametrize("pool", ["gevent", "prefork"])
def test_a_full_pool_that_holds_the_loop(place: Place, pool: str) -> None:
    """It is no death, as long as the tasks take: gevent, and prefork without an event loop."""
    conf = file_broker(place.directory) if pool == "prefork" else {}
    place.fleet.app.conf.update(conf)
    worker = place.launch("-P", pool, conf=conf).logged(" ready.")
    place.until("ready")
    until = place.hold()
    assert place.record()["max_age_s"] == 30.0
    place.fleet.send("occupy", str(place.directory / "second"), str(until))
    held = wait_for(lambda: place.aged(None), "the loop to be held")
    assert held["state"] == "ready"
    assert held["task_since"]
    assert place.probe("--max-age", "0.001")[0] == 1
    assert place.probe()[0] == 0
    until.touch()
    assert wait_for(lambda: place.aged(30.0), "the loop to turn")["task_since"] is None
    assert worker.stop() == 0
    assert failures(worker) == []


@pytest.mark.parametrize(
    "pool", ["prefork", "solo", pytest.param("threads", marks=pytest.mark.slow), "gevent"]
)
def test_from_ready_over_a_lost_broker_to_the_end(place: Place, pool: str) -> None:
    """It is alive all the time; it is ready while it is connected."""
    worker = place.start("-P", pool)
    record = place.until("ready")
    children = 1 if pool == "prefork" else None
    assert (
        record.items()
        >= {
            "worker": "w@test",
            "pid": worker.process.pid,
            "children_up": children,
            "children_expected": children,
            "active_tasks": 0,
            "last_message_s": None,
            "max_age_s": 30.0,
        }.items()
    )
    assert place.probe("--ready") == (0, "yes: w@test is ready")
    ready = (200, {"ready": True, "state": "ready", "why_not": None})
    assert place.asked("/readyz") == ready
    assert place.asked("/livez") == (200, {"alive": True, "state": "ready", "why_not": None})

    place.broker.kill()
    record = place.until("disconnected")
    for _ in range(2):  # it goes on being written, also where the guard's timers stop
        record = place.newer(record)
        assert record["state"] == "disconnected"
    assert place.probe() == (0, "yes: w@test is alive")
    assert place.probe("--ready") == (1, "no: w@test is disconnected from its broker")
    assert place.asked("/livez")[0] == 200
    status, body = place.asked("/readyz")
    assert (status, body["why_not"]) == (503, "it is disconnected from its broker")

    place.broker.start()
    place.until("ready")
    assert place.probe("--ready")[0] == 0
    assert place.asked("/readyz") == ready

    end = place.hold()
    if pool != "solo":
        wait_for(lambda: place.record()["last_message_s"] is not None, "the message to be seen")
    worker.process.send_signal(signal.SIGTERM)
    if pool != "solo":  # its loop turns when the task has ended
        record = place.until("stopping")
        assert (record["active_tasks"], record["max_age_s"]) == (1, None)
        assert place.probe("--max-age", "0.1") == (0, "yes: w@test is alive")
        assert place.probe("--ready") == (1, "no: w@test is shutting down")
    end.touch()
    assert worker.ends() == 0
    assert os.listdir(place.folder) == []
    assert place.probe()[0] == 1
    assert failures(worker) == []


def test_a_start_without_a_broker(place: Place) -> None:
    """It is alive while it waits, and ready when it has connected."""
    place.broker.kill()
    worker = place.launch()
    record = place.until("starting")
    record = place.newer(place.newer(record))
    assert record["state"] == "starting"
    assert place.probe()[0] == 0
    assert place.probe("--ready") == (1, "no: w@test has not connected to its broker yet")
    assert place.asked("/livez")[0] == 200
    assert place.asked("/readyz")[0] == 503
    place.broker.start()
    place.until("ready")
    assert worker.stop() == 0


@contextlib.contextmanager
def port_that_drops() -> Iterator[int]:
    """A port whose queue of connections is full, so that the kernel drops what else comes."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        yield int(full.getsockname()[1])


@pytest.mark.slow
def test_a_network_that_drops_packets(place: Place) -> None:
    """The file holds for as long as a try to connect; HTTP answers if each try is bounded."""
    with port_that_drops() as port:
        conf = {
            "broker_url": f"redis://127.0.0.1:{port}/0",
            "broker_transport_options": {"socket_connect_timeout": 2},
        }
        worker = place.launch(conf=conf).logged("Trying again in 4")
        assert place.until("starting")["max_age_s"] == 300.0
        assert place.probe()[0] == 0
        assert place.asked("/livez")[0] == 200
        assert place.asked("/readyz")[0] == 503
        worker.process.kill()


def test_a_task_of_a_solo_pool_is_no_death(place: Place) -> None:
    """The file says since when it runs, and only ``--max-age`` makes it too old."""
    worker = place.start("-P", "solo")
    end = place.hold()
    record = place.record()
    assert record["task_since"] is not None
    assert (record["state"], record["active_tasks"], record["max_age_s"]) == ("ready", 1, None)
    wait_for(lambda: place.probe("--max-age", "0.5")[0] == 1, "the limit")
    assert f"and runs a task since {record['task_since']}" in place.probe("--max-age", "0.5")[1]
    assert place.probe("--ready")[0] == 0
    assert place.asked("/livez")[0] == place.asked("/readyz")[0] == 200
    assert place.record() == record
    end.touch()
    wait_for(lambda: place.record()["task_since"] is None, "the end of the task")
    assert place.record()["max_age_s"] == 30.0
    assert worker.stop() == 0


def test_a_main_process_that_hangs_and_one_that_is_killed(place: Place) -> None:
    """Its file goes stale, and the successor's replaces it."""
    worker = place.start()
    worker.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: place.probe("--max-age", "1")[0] == 1, "the probe to say no")
        code, why = place.probe("--max-age", "1", "--ready")
        assert code == 1
        assert "w@test wrote its last heartbeat" in why
    finally:
        worker.process.send_signal(signal.SIGCONT)
    wait_for(lambda: place.probe("--max-age", "1")[0] == 0, "the probe to say yes")
    worker.process.kill()
    worker.process.wait(10)
    wait_for(lambda: place.probe("--max-age", "1")[0] == 1, "the killed worker's file to be old")
    (place.folder / ".w.json.tmp").write_text("half a rec")  # where the kill came within a write
    successor = place.start()
    assert place.until("ready")["pid"] == successor.process.pid
    assert place.probe("--max-age", "20", "--ready")[0] == 0
    assert os.listdir(place.folder) == ["w.json"]


def test_children_that_are_not_up(place: Place, tmp_path: Path) -> None:
    """The worker is alive and not ready; one child that is up is enough."""
    up = tmp_path / "up"
    worker = place.launch("--concurrency=2", environ={UP_BY: str(up)}).logged(" ready.")
    record = place.until("no_children")
    assert (record["children_up"], record["children_expected"]) == (0, 2)
    assert place.probe()[0] == 0
    assert place.probe("--ready") == (1, "no: w@test has no child that is up")
    assert place.asked("/livez")[0] == 200
    assert place.asked("/readyz")[1]["why_not"] == "no child is up"
    up.touch()
    place.until("ready")
    assert worker.ask("guard")["health"]["children_up"] > 0
    assert worker.stop() == 0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """The folder on a file system of its own that is soon full."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more is taken."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as filling:
        while True:
            filling.write(b"x" * 4096)


@pytest.mark.parametrize("failure", ["full", "read-only"])
def test_a_disk_that_takes_nothing(place: Place, tmp_path: Path, failure: str) -> None:
    """``part_failed`` and nothing else: tasks run, and the file is written when it can be."""
    with small_disk(place.folder):
        worker = place.start()
        record = place.until("ready")
        if failure == "full":
            fill(place.folder / "filling")
            error = "No space left on device"
        else:
            remount = ["mount", "-o", "remount,ro", str(place.folder)]
            subprocess.run(remount, check=True)
            error = "Read-only file system"
        (failed,) = wait_for(lambda: failures(worker)[:1], "the failure")
        assert failed["part"] == "heartbeat"
        assert error in failed["error"]
        done = tmp_path / "done"
        done.touch()
        place.fleet.send("occupy", str(tmp_path / "ran"), str(done))
        wait_for((tmp_path / "ran").exists, "a task to run")
        assert place.asked("/readyz")[0] == 200
        if failure == "full":
            assert ".w.json.tmp" not in os.listdir(place.folder)
            (place.folder / "filling").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(place.folder)], check=True)
        assert place.newer(record)["state"] == "ready"
        assert worker.stop() == 0
        assert {event["part"] for event in worker.events("part_failed")} == {"heartbeat"}


class Dripping:
    """More clients than there are places, each of which sends a byte now and then, for ever."""

    def __init__(self, port: int, number: int) -> None:
        self._port, self._number = port, number
        self._clients: list[socket.socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def __enter__(self) -> None:
        self._thread.start()
        wait_for(lambda: len(self._clients) == self._number, "the clients")

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _drip(self) -> None:
        while not self._ended.wait(0.2):
            alive = [client for client in self._clients if self._sent(client)]
            while len(alive) < self._number:
                alive.append(socket.create_connection(("127.0.0.1", self._port), timeout=10))
            self._clients = alive

    @staticmethod
    def _sent(client: socket.socket) -> bool:
        """Send a byte; False: it was dropped, and another one comes."""
        try:
            client.sendall(b"G")
        except OSError:
            client.close()
            return False
        return True


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    b"\0" * 20_000,
    b"GET /livez\r\n\r\n",
    b"\r\n\r\n",
)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_crowd_holds_no_probe_up(place: Place, pool: str, tmp_path: Path) -> None:
    """Slow clients, garbage and a hundred probes at once: each probe is answered, tasks run."""
    worker = place.start("-P", pool)
    place.until("ready")
    with Dripping(place.port, MOST_CONNECTIONS + 32):
        for garbage in GARBAGE:
            with socket.create_connection(("127.0.0.1", place.port), timeout=10) as client:
                client.sendall(garbage)
                assert client.recv(100).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
        with ThreadPoolExecutor(100) as crowd:
            answers = list(crowd.map(lambda n: request(place.port, "/livez").status, range(100)))
        assert answers == [200] * 100
        assert place.asked("/readyz")[0] == 200
        place.hold().touch()
    assert failures(worker) == []
    assert worker.stop() == 0


def test_a_stalled_consumer(place: Place) -> None:
    """It is alive and not ready."""
    with Proxy(place.broker.port) as proxy:
        conf = {"broker_url": proxy.url(), "worker_guard_stall_after": 2}
        worker = place.start(conf=conf)
        place.until("ready")
        wait_for(proxy.deaden_consuming, "the connection that waits for messages")
        for _ in range(5):  # Redis gives the first one to the dead connection
            place.fleet.send("add", 1, 2)
        place.until("stalled")
        assert place.probe() == (0, "yes: w@test is alive")
        code, why = place.probe("--ready")
        assert code == 1
        assert "stalled" in why
        assert place.asked("/livez")[0] == 200
        assert place.asked("/readyz")[0] == 503
        worker.process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_main_loop_that_hangs_in_a_read(place: Place, pool: str) -> None:
    """Its heartbeat goes stale. By HTTP it does not answer, or a thread says no after 30 s."""
    with Proxy(place.broker.port) as proxy:
        worker = place.start("-P", pool, conf={"broker_url": proxy.url()})
        place.until("ready")
        proxy.deaden_all()
        wait_for(lambda: place.probe()[0] == 1, "the probe to say no", 120)
        assert "wrote its last heartbeat" in place.probe("--ready")[1]
        if pool == "prefork":
            with pytest.raises(TimeoutError):
                place.asked("/livez")
        else:
            wait_for(lambda: place.asked("/livez")[0] == 503, "the thread to say no", 60)
            assert "has not turned for" in place.asked("/readyz")[1]["why_not"]
        worker.process.kill()


def test_a_dry_run_says_how_it_is(place: Place) -> None:
    """To write the file changes nothing that a worker does."""
    worker = place.start("--guard-dry-run")
    assert place.until("ready")["worker"] == "w@test"
    assert worker.stop() == 0


def test_without_the_setting_there_is_no_file(place: Place) -> None:
    """The start event says so."""
    worker = place.launch(conf={"worker_guard_heartbeat_file": None}).logged(" ready.")
    started = wait_for(lambda: worker.events("started"), "the guard")[0]
    assert started["parts"]["heartbeat"] == "worker_guard_heartbeat_file is None"
    assert started["parts"]["health"] == "on"
    assert os.listdir(place.folder) == []
