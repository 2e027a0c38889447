"""A real terminal: a command on a pty, whose bytes a terminal emulator turns into a screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyte

from tests.harness.app import CONFIGURATION
from tests.harness.workers import ROOT, wait_for


class Terminal:
    """A command, and the screen that a person would see of it."""

    def __init__(
        self, *command: str, columns: int, rows: int, environ: Mapping[str, str], stdin_too: bool
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.sent = b""
        self.master, slave = pty.openpty()
        self._resize(slave, columns, rows)
        self.modes = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"TERM": "xterm-256color", **environ},
            stdin=slave if stdin_too else subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
            preexec_fn=self._as_a_shell_starts_it if stdin_too else None,  # noqa: PLW1509
        )

    @staticmethod
    def _as_a_shell_starts_it() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    @staticmethod
    def _resize(fd: int, columns: int, rows: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self.screen.resize(rows, columns)
        self._resize(self.master, columns, rows)

    def type(self, keys: str) -> None:
        """Type these keys."""
        os.write(self.master, keys.encode())

    def read(self) -> None:
        """Take what the command has written so far."""
        while select.select([self.master], [], [], 0)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            if not data:
                return
            self.sent += data
            self._stream.feed(data)

    def text(self) -> str:
        """What is on the screen now."""
        self.read()
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def shows(self, *texts: str) -> str:
        """Wait until all of these are on the screen at once."""
        return self.until(lambda text: all(t in text for t in texts), f"{texts} on the screen")

    def until(self, condition: Callable[[str], bool], what: str) -> str:
        """Wait until the screen is so."""

        def seen() -> str:
            text = self.text()
            return text if condition(text) else ""

        try:
            return wait_for(seen, what, 30)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.text()}\n{self.process.poll()}") from None

    def ended(self) -> tuple[int, str]:
        """Wait until it has ended; its exit code, and what it wrote to stderr."""
        assert self.process.stderr is not None

        def over() -> bool:
            self.read()
            return self.process.poll() is not None

        wait_for(over, "the command to end")
        self.read()
        return self.process.returncode, self.process.stderr.read().decode()

    def current_modes(self) -> list[Any]:
        """How the terminal is set now."""
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        """Take the terminal away."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.process.stderr is not None:
            self.process.stderr.close()
        os.close(self.master)
        os.close(self._slave)


@contextmanager
def terminal(
    *command: str,
    columns: int = 80,
    rows: int = 40,
    environ: Mapping[str, str],
    stdin_too: bool = True,
) -> Iterator[Terminal]:
    """A terminal in which this command runs."""
    one = Terminal(*command, columns=columns, rows=rows, environ=environ, stdin_too=stdin_too)
    try:
        yield one
    finally:
        one.close()


def celery(*arguments: str) -> tuple[str, ...]:
    """``celery`` with the tests' app."""
    return (sys.executable, "-m", "celery", "-A", "tests.harness.app", *arguments)


def environ_of(configuration: Mapping[str, Any], **more: str) -> dict[str, str]:
    """The environment of a command that has this configuration, and of nobody's terminal."""
    of_a_terminal = ("CELERY", "NO_COLOR", "FORCE_COLOR", "LC_", "LANG", "TERM", "COLUMNS", "LINES")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(of_a_terminal)},
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        CONFIGURATION: json.dumps(dict(configuration)),
        **more,
    }
