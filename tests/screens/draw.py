"""Draws the screens of ``docs/screens`` from what real workers answered."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from tests.harness.workers import ROOT
from worker_guard.commands.status.asking import Asked
from worker_guard.commands.status.live import Dashboard, Watch
from worker_guard.commands.status.screen import written
from worker_guard.commands.status.view import Answers, Fleet, read_fleet

SCREENS = ROOT / "docs" / "screens"
RECORD = SCREENS / "answers.json"


def recorded(path: Path = RECORD) -> Answers:
    """What the workers answered when it was recorded."""
    kept = json.loads(path.read_text())
    replies = [(name, answer) for name, answer in kept["replies"]]
    return Answers(present=kept["present"], replies=replies, asked=kept["asked"])


def keep(answers: Answers, path: Path = RECORD) -> None:
    """Record what the workers answered."""
    kept = {
        "present": answers.present,
        "replies": [[name, answer] for name, answer in answers.replies],
        "asked": answers.asked,
    }
    path.write_text(json.dumps(kept, indent=1) + "\n")


def console(columns: int, rows: int = 40) -> Console:
    """A console of this size without colour, as a file has it."""
    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"),
        width=columns,
        height=rows,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def status(fleet: Fleet, columns: int, *, everything: bool = False) -> str:
    """``celery guard status`` on a terminal of this width."""
    return written(console(columns), fleet, everything=everything)


def drawn(dashboard: Dashboard, columns: int, rows: int) -> str:
    """The dashboard on a terminal of this size."""
    screen = console(columns, rows)
    with screen.capture() as captured:
        screen.print(dashboard, end="", height=rows)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


class _Nobody:
    """Is not asked: the answers are at hand."""

    def ask(self) -> Answers:
        """No round is begun."""
        raise AssertionError

    def stop(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is open."""


def watch(answers: Answers, columns: int, rows: int) -> str:
    """``celery guard watch`` on a terminal of this size."""
    one = Watch(asked=Asked(_Nobody()), interval_s=2.0, timeout_s=1.0, monotonic=lambda: 1.0)
    one.take(answers)
    return drawn(one.dashboard(), columns, rows).rstrip("\n") + "\n"


def screens(answers: Answers) -> dict[str, str]:
    """Each picture by its file's name."""
    fleet = read_fleet(answers)
    return {
        "status-80.txt": status(fleet, 80),
        "status-140.txt": status(fleet, 140),
        "watch-80.txt": watch(answers, 80, 30),
        "watch-140.txt": watch(answers, 140, 40),
    }
