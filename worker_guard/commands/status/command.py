"""``celery guard status`` and ``celery guard watch``."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from kombu.exceptions import OperationalError

from worker_guard.commands.console import (
    EX_OK,
    EX_TROUBLE,
    EX_UNAVAILABLE,
    EX_USAGE,
    failed,
    naming,
    reason,
    say,
    told,
)
from worker_guard.commands.server_names import broker
from worker_guard.commands.status.asking import BROKER_S, Asked, Workers
from worker_guard.commands.status.view import Answers, document, read_fleet

#: By its number: Python has no sys.stdin if it is closed.
_STDIN = 0

#: Whoever ends a command waits no longer than this for a broker that hangs.
_ENDING_S = BROKER_S + 1.0


def run_status(
    app: Any,
    *,
    destination: Sequence[str],
    timeout_s: float,
    as_json: bool,
    everything: bool,
    no_color: bool,
    expected: int | None = None,
) -> int:
    """Ask once, show the answers, and return the exit code."""
    workers = Workers(app, destination=destination, timeout_s=timeout_s)
    with _asking(workers) as asked:
        try:
            answers = _first_answers(asked, timeout_s)
        except Exception as exc:  # noqa: BLE001 - told in one line, with an exit code
            return failed(exc, naming(app, "status"), server=broker(app))
        if not answers.present:
            return _nobody(destination, timeout_s, naming(app, "status"))
        fleet = read_fleet(answers, expected=expected)
        if as_json:
            click.echo(json.dumps(document(fleet)))
        else:
            from worker_guard.commands.status.screen import written
            from worker_guard.commands.status.terminal import open_console

            console = open_console(no_color=no_color)
            click.echo(written(console, fleet, everything=everything), nl=False)
    return EX_TROUBLE if fleet.trouble else EX_OK


def run_watch(
    app: Any, *, destination: Sequence[str], timeout_s: float, interval_s: float, no_color: bool
) -> int:
    """Show the workers until q or Ctrl-C, and return the exit code."""
    from worker_guard.commands.status.live import Watch, show
    from worker_guard.commands.status.terminal import Keys, open_console

    console = open_console(no_color=no_color)
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        say("celery guard watch needs a terminal with a cursor; celery guard status needs none")
        return EX_USAGE
    workers = Workers(app, destination=destination, timeout_s=timeout_s, farewells=True)
    try:
        with _asking(workers) as asked:
            watch = Watch(
                asked=asked,
                interval_s=interval_s,
                timeout_s=timeout_s,
                monotonic=time.monotonic,
                told=lambda exc: told(exc, broker(app))[0],
            )
            answers = _first_answers(asked, timeout_s)
            if not answers.present:
                return _nobody(destination, timeout_s, naming(app, "watch"))
            watch.take(answers)
            show(watch, console, Keys(_STDIN))
    except KeyboardInterrupt:
        return EX_OK
    except Exception as exc:  # noqa: BLE001 - told in one line, with an exit code
        return failed(exc, naming(app, "watch"), server=broker(app))
    return EX_OK


@contextmanager
def _asking(workers: Workers) -> Iterator[Asked]:
    """Ask the workers in the block. However it ends, no queue is left in the broker."""
    from worker_guard.commands.status.terminal import ending_in_order

    with ending_in_order():
        asked = Asked(workers)
        try:
            yield asked
        finally:
            _leave_nothing(asked)


def _leave_nothing(asked: Asked) -> None:
    try:
        asked.end(_ENDING_S)
    except Exception as exc:  # noqa: BLE001 - reported; what was shown is still right
        # The terminal may be gone.
        with contextlib.suppress(OSError):
            say(f"The broker can't be reached, so a reply queue may be left in it: {reason(exc)}")


def _first_answers(asked: Asked, timeout_s: float) -> Answers:
    """The answers to the first question.

    The transports that Celery supports for this bound each wait; this bound is for all others.
    """
    limit_s = 3 * BROKER_S + 4 * timeout_s
    asked.begin()
    answers = asked.outcome(limit_s)
    if answers is None:
        raise OperationalError(f"the broker did not answer within {limit_s:g} s")
    return answers


def _nobody(destination: Sequence[str], timeout_s: float, hint: str) -> int:
    who = f"None of {', '.join(destination)}" if destination else "No worker"
    say(f"{who} answered within {timeout_s:g} s; --timeout waits longer{hint}")
    return EX_UNAVAILABLE
