"""The commands leave nothing in the broker, however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.harness.odd_app import AFTER, ANSWER
from tests.harness.redis_server import RedisServer
from tests.harness.terminal import Terminal, celery, environ_of, terminal
from tests.harness.workers import ROOT, Fleet, fleet, wait_for
from worker_guard.celery_internals import Mailbox

#: Kombu's table of who gets control replies; a question is under way while it has a member more.
REPLIES = b"_kombu.binding.reply.celery.pidbox"

#: So that a question is under way most of the time: nobody knows how many workers will answer.
LONG = ("--timeout", "3")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker, on a Redis of its own."""
    with (
        RedisServer() as server,
        fleet(
            tmp_path_factory.mktemp("nothing"),
            broker_url=server.url(),
            result_backend=server.url(1),
            # Its own look at the broker would leave notes in the meantime.
            worker_guard_broker_schedule=None,
        ) as one,
    ):
        one.server = server  # type: ignore[attr-defined]
        one.start("w", "--pool=solo")
        yield one


def server_of(workers: Fleet) -> RedisServer:
    server: RedisServer = workers.server  # type: ignore[attr-defined]
    return server


def held(server: RedisServer) -> dict[bytes, Any]:
    """Each key of the broker, with the members of those that are sets.

    Without the lock that a worker takes from time to time, and that goes by itself.
    """
    keys = set(server.client.scan_iter()) - {b"unacked_mutex"}
    sets = {key for key in keys if server.client.type(key) == b"set"}
    return {key: server.client.smembers(key) if key in sets else None for key in keys}


def under_way(server: RedisServer, before: dict[bytes, Any]) -> None:
    """Wait until a question is being asked."""
    known = before.get(REPLIES, set())
    wait_for(lambda: server.client.smembers(REPLIES) - known, "a question to be asked")


def ended(screen: Terminal, how: str) -> None:
    """End the command in this way."""
    if how in {"q", "\x03"}:
        screen.type(how)
    elif how == "closed":
        os.close(screen.master)
        screen.process.wait(30)
        screen.master, _ = os.pipe()
        return
    else:
        screen.process.send_signal(getattr(signal, how))
    wait_for(lambda: screen.process.poll() is not None or screen.text() is None, "its end")


@pytest.mark.parametrize("how", ["q", "\x03", "SIGTERM", "SIGHUP", "SIGQUIT", "closed"])
def test_watch_leaves_nothing(workers: Fleet, how: str) -> None:
    """Whoever ends it, in the middle of a question."""
    server = server_of(workers)
    before = held(server)
    environ = environ_of(workers.app.conf["harness"])
    with terminal(*celery("guard", "watch", *LONG), environ=environ) as screen:
        screen.shows("w@test")
        under_way(server, before)
        ended(screen, how)
    assert held(server) == before


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("command", ["status", "watch"])
def test_who_is_ended_while_it_first_asks_leaves_nothing(
    workers: Fleet, command: str, how: str
) -> None:
    """Before anything is shown."""
    server = server_of(workers)
    before = held(server)
    environ = environ_of(workers.app.conf["harness"])
    with terminal(*celery("guard", command, "--timeout", "60"), environ=environ) as screen:
        under_way(server, before)
        ended(screen, how)
        if how != "SIGINT":
            assert screen.process.returncode == 128 + getattr(signal, how)
    assert held(server) == before


def test_watch_that_fails_leaves_nothing(workers: Fleet) -> None:
    """A defect of the screen's own, in the middle of a question."""
    server = server_of(workers)
    before = held(server)
    code = """
import sys
from celery.bin.celery import main
from worker_guard.commands.status import live
draw = live.Watch.dashboard
def failing(self):
    if not self.asked.begin() and self.monotonic() > self._begun_mono + 0.5:
        raise RuntimeError("a defect")
    return draw(self)
live.Watch.dashboard = failing
sys.argv = ["celery", "-A", "tests.harness.app", "guard", "watch", "--timeout", "5"]
main()
"""
    environ = environ_of(workers.app.conf["harness"])
    with terminal(sys.executable, "-c", code, environ=environ) as screen:
        assert screen.ended() == (1, "RuntimeError: a defect\n")
    assert held(server) == before


def test_a_connection_that_is_lost_leaves_nothing(workers: Fleet) -> None:
    """The broker is away for a moment in the middle of a question."""
    server = server_of(workers)
    before = held(server)
    environ = environ_of(workers.app.conf["harness"])
    with terminal(*celery("guard", "watch", *LONG), environ=environ) as screen:
        screen.shows("w@test")
        under_way(server, before)
        server.pause()
        screen.shows("The broker")
        server.resume()
        screen.type("q")
        assert screen.ended() == (0, "")
    assert held(server) == before


@pytest.mark.parametrize(
    "command",
    [
        ("cleanup",),
        ("cleanup", "--dry-run"),
        ("history",),
        ("revoke", "some-id"),
        ("unrevoke", "some-id"),
        ("revocations",),
        ("audit",),
        ("status",),
        ("status", "--json"),
    ],
    ids=" ".join,
)
def test_no_other_command_leaves_anything(workers: Fleet, command: tuple[str, ...]) -> None:
    """When it comes to its end. A cleanup keeps the notes of its look, which end by themselves."""
    server = server_of(workers)
    before = held(server)
    if command == ("cleanup",):
        before[b"worker-guard-broker-last-look"] = None
    done = subprocess.run(
        celery("guard", *command),
        cwd=ROOT,
        env=environ_of(workers.app.conf["harness"]),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    assert held(server) == before
    assert server.client.ttl("worker-guard-broker-last-look") != -1


def test_a_worker_that_answers_late_leaves_nothing(tmp_path: Path) -> None:
    """Its answer comes when nobody asks any more."""
    with RedisServer() as server, fleet(tmp_path, broker_url=server.url()) as workers:
        asked_enough = tmp_path / "asked-enough"
        late = {ANSWER: '{"version": "9"}', AFTER: str(asked_enough)}
        worker = workers.start(
            "late", "--pool=solo", app_module="tests.harness.odd_app", environ=late
        )
        before = held(server)
        done = subprocess.run(
            celery("guard", "status", "--timeout", "1"),
            cwd=ROOT,
            env=environ_of(workers.app.conf["harness"]),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        asked_enough.touch()
        worker.ask("ping")  # it takes up one command after the other
        assert held(server) == before


def test_an_answer_that_comes_while_the_queue_is_deleted_is_deleted_too(workers: Fleet) -> None:
    """Workers that had looked the queue up by then make its list anew."""
    server = server_of(workers)
    before = held(server)
    app = Celery("asker", broker=server.url(), set_as_current=False)
    with app.connection_for_write() as connection:
        mailbox = Mailbox(app)
        assert mailbox.ask(connection, "ping", to=(), limit=None, timeout_s=0.5)
        queue = mailbox._mailbox.reply_queue.name

        def reply_late(_seconds: float) -> None:
            # One is taken by the read that is still under way.
            server.client.lpush(queue, *[late_reply(queue.partition(".")[0])] * 2)
            assert queue.encode() in held(server)

        mailbox.clear(connection, rest=reply_late)
        assert not mailbox.leaves_something
    assert held(server) == before
    app.close()


def late_reply(oid: str) -> str:
    """A reply as a worker puts it into the list."""
    to = {"exchange": "reply.celery.pidbox", "routing_key": oid}
    properties = {"delivery_info": to, "delivery_tag": "1", "delivery_mode": 1}
    content = {"content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps({"body": "{}", **content, "headers": {}, "properties": properties})
