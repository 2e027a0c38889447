"""The results are reached as the backend is configured: socket, TLS, Sentinel."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.harness.redis_server import RedisServer, free_port, server_program
from tests.harness.results import encoded
from tests.harness.workers import wait_for
from worker_guard.celery_internals import REDIS_TIMEOUT_S
from worker_guard.results.backend import open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup
from worker_guard.settings import read_settings


def cleaned(url: str, **values: Any) -> int:
    """How many results a cleanup through this backend deletes."""
    app = Celery("test", set_as_current=False, broker="memory://", backend=url)
    app.conf.update(values)
    backend = open_result_backend(app, read_settings(app.conf), timeout_s=10.0)
    job = FullSpeedCleanup(backend, max_age_s=1.0, dry_run=False, by="test", trigger="cli")
    job.run()
    outcome = job.outcome()
    assert outcome is not None
    return job.counts.expired_results_deleted


def put_old(client: Any, key: str) -> None:
    """A result of long ago."""
    client.set(key, encoded(age_s=0).replace(b"2027-", b"2001-"))


def test_a_unix_socket(tmp_path: Path) -> None:
    """And the database that its URL names."""
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)) as server:
        two = redis.Redis(port=server.port, db=2)
        put_old(two, "celery-task-meta-1")
        put_old(server.client, "celery-task-meta-1")
        assert cleaned(f"redis+socket://{path}?virtual_host=2") == 1
        assert two.dbsize() == 0
        assert server.client.dbsize() == 1
        two.close()


def test_a_password_and_a_global_prefix() -> None:
    """Only keys behind the prefix are results."""
    with RedisServer() as server:
        put_old(server.client, "proj_celery-task-meta-1")
        put_old(server.client, "celery-task-meta-1")
        server.client.config_set("requirepass", "secret")
        server.client.auth("secret")
        url = f"redis://:secret@127.0.0.1:{server.port}/0"
        options = {"global_keyprefix": "proj_"}
        app = Celery("test", set_as_current=False, broker="memory://", backend=url)
        app.conf.result_backend_transport_options = options
        put_old(server.client, app.backend.get_key_for_task("2"))
        # Celery 5.3 puts one more "_" behind the prefix.
        mine = app.backend.get_key_for_task("1") == b"proj_celery-task-meta-1"
        assert cleaned(url, result_backend_transport_options=options) == 1 + mine
        assert server.client.exists("celery-task-meta-1")


def test_responses_that_the_url_would_have_decoded() -> None:
    """The guard reads bytes, whatever the application reads."""
    with RedisServer() as server:
        put_old(server.client, "celery-task-meta-1")
        server.client.set("celery-task-meta-2", b"\xff\xfe")
        assert cleaned(server.url() + "?decode_responses=true") == 1


@contextlib.contextmanager
def tls_front(port: int, directory: Path) -> Iterator[int]:
    """A port that speaks TLS and passes everything on to this one."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        # A client that refuses the certificate hangs up in the handshake.
        with contextlib.suppress(OSError), plain:
            client = context.wrap_socket(plain, server_side=True)
            with client, socket.create_connection(("127.0.0.1", port)) as server:
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                threading.Thread(target=serve, args=(plain,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
def test_tls(tmp_path: Path) -> None:
    """With the certificate checked."""
    with RedisServer() as server, tls_front(server.port, tmp_path) as port:
        put_old(server.client, "celery-task-meta-1")
        url = f"rediss://localhost:{port}/0?ssl_cert_reqs=required&ssl_ca_certs="
        assert cleaned(url + str(tmp_path / "cert.pem").replace("/", "%2F")) == 1
        with pytest.raises(redis.ConnectionError, match="certificate"):
            cleaned(f"rediss://localhost:{port}/0?ssl_cert_reqs=required")


def test_sentinel(tmp_path: Path) -> None:
    """The master that Sentinel names is cleaned."""
    port = free_port()
    with RedisServer() as master:
        put_old(master.client, "celery-task-meta-1")
        conf = tmp_path / "sentinel.conf"
        conf.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {master.port} 1\n")
        process = subprocess.Popen(
            [server_program(), str(conf), "--sentinel"], stdout=subprocess.DEVNULL
        )
        try:
            sentinel = redis.Redis(port=port)
            wait_for(lambda: _names_a_master(sentinel), "Sentinel to know its master")
            options = {"master_name": "main"}
            url = f"sentinel://127.0.0.1:{port}/0"
            assert cleaned(url, result_backend_transport_options=options) == 1
        finally:
            process.kill()
            process.wait(10)


def _names_a_master(sentinel: Any) -> bool:
    try:
        return bool(sentinel.execute_command("SENTINEL", "get-master-addr-by-name", "main"))
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("timeout_s", [REDIS_TIMEOUT_S, 1.0])
def test_sentinels_that_say_nothing_are_each_asked_once(timeout_s: float) -> None:
    """They share the time that one answer may take; Celery's own clients wait for minutes."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [listener.getsockname()[1] for listener in listeners]
        app = Celery("test", set_as_current=False, broker="memory://")
        app.conf.result_backend = ";".join(f"sentinel://127.0.0.1:{port}/0" for port in ports)
        app.conf.result_backend_transport_options = {"master_name": "main"}
        backend = open_result_backend(app, read_settings(app.conf), timeout_s=timeout_s)
        manager = backend.client.connection_pool.sentinel_manager
        waits = [s.connection_pool.connection_kwargs for s in manager.sentinels]
        assert sum(kwargs["socket_timeout"] for kwargs in waits) <= timeout_s
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            backend.check()
        assert [connections(listener) for listener in listeners] == [1, 1, 1]


def connections(listener: socket.socket) -> int:
    """How many connections wait there to be taken."""
    listener.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count
