"""``celery guard watch`` on a real terminal, with real workers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.harness.redis_server import RedisServer
from tests.harness.terminal import Terminal, celery, environ_of, terminal
from tests.harness.workers import ROOT, Fleet, fleet
from worker_guard.values.counts import count

#: The cursor is hidden, and a screen besides the one with the shell's lines is used; and back.
SWITCHED = ((b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?1049h", b"\x1b[?1049l"))

COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker with two children, on a Redis of its own."""
    with (
        RedisServer() as server,
        fleet(
            tmp_path_factory.mktemp("watch"),
            broker_url=server.url(),
            result_backend=server.url(1),
            worker_guard_interval=0.5,
            worker_guard_memory_interval=0.5,
            worker_guard_child_memory_limit="200MB",
        ) as one,
    ):
        one.start("w", "--concurrency=2")
        yield one


@contextmanager
def watching(workers: Fleet, *options: str, **how: Any) -> Iterator[Terminal]:
    """A terminal in which the worker is watched."""
    environ = environ_of(workers.app.conf["harness"], **how.pop("environ", {}))
    command = celery("guard", "watch", "--interval", "0.5", *options)
    with terminal(*command, environ=environ, **how) as screen:
        yield screen


def assert_restored(screen: Terminal) -> None:
    """The terminal is as it was: what is typed is shown, and the cursor and the screen are back."""
    assert screen.current_modes() == screen.modes
    for switched_on, switched_back in SWITCHED:
        assert screen.sent.count(switched_on) == 1
        assert screen.sent.rindex(switched_back) > screen.sent.rindex(b"w@test")


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("key", ["q", "Q", "\x03"], ids=["q", "Q", "ctrl-c"])
def test_it_shows_the_workers_until_it_is_ended(workers: Fleet, columns: int, key: str) -> None:
    """By q or Ctrl-C; the exit code is 0, and the terminal is as before."""
    with watching(workers, columns=columns, rows=40) as screen:
        text = screen.shows("w@test  prefork, concurrency 2", "q ends", "child ")
        assert max(map(len, text.splitlines())) <= columns
        assert text.splitlines()[2].split()[:3] == ["worker", "pool", "revoked"]
        assert text.splitlines()[-1] == "ok: 1 worker; nothing to do"
        screen.type("x")
        screen.type(key)
        assert screen.ended() == (0, "")
        assert_restored(screen)


def test_it_follows_what_happens(workers: Fleet) -> None:
    """An id that an operator revokes meanwhile is counted, and a running task is shown."""
    with watching(workers) as screen:
        before = screen.shows("w@test", "ok: 1 worker")
        assert "an operator revoked" not in before
        assert "harness.sleep" not in before
        workers.app.control.revoke(["revoked-meanwhile"])
        task_id = workers.send("sleep", 20)
        screen.shows("1 id that an operator revoked stays", f"harness.sleep {task_id} for")


def test_it_follows_the_size_of_the_window(workers: Fleet) -> None:
    """Wider: the whole names; smaller: what is left out is counted."""
    with watching(workers, columns=80, rows=40) as screen:
        screen.shows("revoked to clear memory", "child ")
        screen.resize(140, 40)
        screen.shows("revoked  to clear  memory", "runs")
        screen.resize(80, 8)
        screen.shows("1 more in full", "revoked to clear memory", "ok: 1 worker")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP], ids=["TERM", "HUP"])
def test_a_signal_leaves_the_terminal_in_order(workers: Fleet, signum: int) -> None:
    """The exit code is the one that a shell knows."""
    with watching(workers) as screen:
        screen.shows("w@test")
        screen.process.send_signal(signum)
        assert screen.ended() == (128 + signum, "")
        assert_restored(screen)


def test_an_error_leaves_the_terminal_in_order(workers: Fleet) -> None:
    """A defect of the screen's own: one line, and the terminal is as before."""
    code = """
import sys
from celery.bin.celery import main
from worker_guard.commands.status import live
draw, left = live.Watch.dashboard, [3]
def failing(self):
    left[0] -= 1
    if not left[0]:
        raise RuntimeError("a defect")
    return draw(self)
live.Watch.dashboard = failing
sys.argv = ["celery", "-A", "tests.harness.app", "guard", "watch"]
main()
"""
    environ = environ_of(workers.app.conf["harness"])
    with terminal(sys.executable, "-c", code, environ=environ) as screen:
        assert screen.ended() == (1, "RuntimeError: a defect\n")
        assert_restored(screen)


def test_without_keys_ctrl_c_ends_it(workers: Fleet) -> None:
    """Where stdin is no terminal."""
    with watching(workers, stdin_too=False) as screen:
        screen.shows("w@test")
        screen.process.send_signal(signal.SIGINT)
        assert screen.ended() == (0, "")
        assert_restored(screen)


@pytest.mark.parametrize("how", ["pipe", "dumb"])
def test_without_a_terminal_it_is_a_usage_error(workers: Fleet, how: str) -> None:
    """One line that names the command to use there."""
    line = "celery guard watch needs a terminal with a cursor; celery guard status needs none\n"
    environ = environ_of(workers.app.conf["harness"])
    if how == "dumb":
        with terminal(*celery("guard", "watch"), environ={**environ, "TERM": "dumb"}) as screen:
            assert screen.ended() == (2, line)
        return
    done = subprocess.run(
        celery("guard", "watch"),
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_without_colour(workers: Fleet) -> None:
    """The cursor is moved, and nothing is coloured."""
    with watching(workers) as screen:
        screen.shows("w@test")
        assert COLOUR.search(screen.sent)
    with watching(workers, environ={"NO_COLOR": "1"}) as screen:
        screen.shows("w@test")
        assert not COLOUR.search(screen.sent)


def test_one_connection_serves_all_rounds(workers: Fleet) -> None:
    """However often it asks."""
    server = urlsplit(workers.app.conf.broker_url)

    def connections(screen: Terminal) -> set[int]:
        """Its own ports, not those of the worker and of this test."""
        found = psutil.Process(screen.process.pid).net_connections(kind="tcp")
        return {c.laddr.port for c in found if c.raddr and c.raddr.port == server.port}

    def after_a_round(screen: Terminal, task_id: str) -> set[int]:
        workers.app.control.revoke([task_id])
        workers.workers[0].logged(f"Tasks flagged as revoked: {task_id}")
        screen.shows(f"{count(len(workers.workers[0].revoked()), 'id')} that an operator revoked")
        return connections(screen)

    with watching(workers) as screen:
        first = after_a_round(screen, "first")
        assert first
        for number in range(3):
            assert first <= after_a_round(screen, f"round-{number}")


def test_a_worker_that_shuts_down_is_gone_and_one_that_is_killed_is_in_trouble(
    tmp_path: Path,
) -> None:
    """Both with the last answer and its age; and one that comes back is there again."""
    with RedisServer() as server, fleet(tmp_path, broker_url=server.url()) as workers:
        stays, goes, dies = (workers.start(name) for name in ("stays", "goes", "dies"))
        with watching(workers, rows=60) as screen:
            screen.shows(stays.name, goes.name, dies.name, "ok: 3 workers; nothing to do")
            assert goes.stop() == 0
            screen.shows("ok: 2 workers, 1 shut down; nothing to do")
            screen.until(
                lambda text: bool(re.search(r"^goes@test .* shut down [\d.]+ s ago$", text, re.M)),
                "it",
            )
            dies.process.kill()
            text = screen.shows("trouble: 1 of 2 workers: dies@test (no answer)", "no answer for")
            assert [line.split("@")[0] for line in text.splitlines()[3:6]] == [
                "dies",
                "stays",
                "goes",
            ]
            assert re.search(r"^dies@test  prefork.* as it was [\d.]+ s ago", text, re.M), text
            workers.start("goes")
            screen.shows("trouble: 1 of 3 workers: dies@test (no answer)")


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_it_outlives_its_broker(tmp_path: Path, how: str) -> None:
    """It says that the broker is away, keeps what it knew, and goes on when it is back."""
    with RedisServer() as server, fleet(tmp_path, broker_url=server.url()) as workers:
        workers.start("w")
        with watching(workers, "--timeout", "1") as screen:
            screen.shows("w@test", "ok: 1 worker")
            server.kill() if how == "killed" else server.pause()
            text = screen.shows("The broker ", "this is the state of", "w@test")
            assert "Traceback" not in text
            server.start() if how == "killed" else server.resume()
            assert text.splitlines()[-1].startswith("unknown: ")
            # The worker comes back as well, later perhaps.
            screen.shows("ok: 1 worker; nothing to do")
            workers.app.control.revoke(["after"])
            screen.shows("1 id that an operator revoked")
            screen.type("q")
            assert screen.ended() == (0, "")
            assert_restored(screen)
