"""What the terminal can show, and the keys that are typed."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from rich.console import Console

from worker_guard.commands.status.screen import UNFOLDED

#: Signals that would end the process without restoring the terminal or clearing the broker.
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def open_console(*, no_color: bool, environ: Mapping[str, str] = os.environ) -> Console:
    """A console on stdout that sends only characters that stdout can show.

    Without colour it sends no style at all. In a pipe nothing is folded, unless ``COLUMNS`` is set.
    """
    _restrict(sys.stdout, environ)
    colorless = no_color or bool(environ.get("NO_COLOR"))
    piped = not sys.stdout.isatty()
    return Console(
        color_system=None if colorless or piped else "auto",
        no_color=colorless,
        width=UNFOLDED if piped and not environ.get("COLUMNS") else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _restrict(stdout: TextIO, environ: Mapping[str, str]) -> None:
    """Write characters that the terminal does not have as escapes, instead of failing."""
    if not isinstance(stdout, io.TextIOWrapper):
        return
    # Under the C locale Python assumes UTF-8, whatever the terminal can show.
    c_locale = (environ.get("LC_ALL") or environ.get("LANG") or "C") in {"C", "POSIX"}
    assumed = c_locale and sys.flags.utf8_mode and "PYTHONUTF8" not in environ
    stdout.reconfigure(encoding="ascii" if assumed else None, errors="backslashreplace")


class Keys:
    """The keys typed on stdin. If stdin is no terminal there are none, only Ctrl-C."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if os.isatty(self._fd):
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            # A read must not wait: Ctrl-C discards what was typed just before it, and a read that
            # began at that moment would wait for another key.
            modes = termios.tcgetattr(self._fd)
            modes[6][termios.VMIN] = modes[6][termios.VTIME] = 0
            termios.tcsetattr(self._fd, termios.TCSANOW, modes)
        return self

    def __exit__(self, *_: object) -> None:
        before, self._before = self._before, None
        if before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def quit_within(self, timeout_s: float) -> bool:
        """Wait for so long; True if q was typed."""
        if self._before is None:
            time.sleep(timeout_s)
            return False
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return False
        typed = os.read(self._fd, 64)
        if not typed:
            time.sleep(timeout_s)  # no key after all, or the terminal is gone
        return b"q" in typed.lower()


@contextmanager
def ending_in_order() -> Iterator[None]:
    """In the block, signals that end a process unwind the stack, so that everything is restored.

    The exit code is the shell's for a process that this signal ended. A second signal, which a
    closed terminal sends too, changes nothing; Ctrl-C ends what takes too long.
    """

    def end(signum: int, _frame: FrameType | None) -> None:
        for other in _ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    before = {signum: signal.getsignal(signum) for signum in _ENDING}
    for signum, handler in before.items():
        # A signal that is ignored, as under nohup, stays ignored.
        if handler is not signal.SIG_IGN:
            signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
