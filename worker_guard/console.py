"""What the commands of ``celery guard`` share: a line for people, and the exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
from celery.exceptions import ImproperlyConfigured

from worker_guard.errors import EX_USAGE, SettingError, WorkerGuardError
from worker_guard.reporting import masked

__all__ = [
    "EX_OK",
    "EX_TROUBLE",
    "EX_UNAVAILABLE",
    "EX_USAGE",
    "failed",
    "is_nobodys",
    "naming",
    "reason",
    "say",
]

#: redis-py prints each Sentinel that it asked as an object of 500 characters.
_SENTINEL = re.compile(r"<redis\.client\.Redis\(.*?>\)>\)> - ")
_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)

EX_OK = 0
EX_TROUBLE = 1
EX_UNAVAILABLE = 69


def say(line: str) -> None:
    """Tell people, on stderr, so that stdout holds the answer alone."""
    click.echo(line, err=True)


def failed(exc: Exception, hint: str = "") -> int:
    """Say in one line, without a password, what went wrong; the exit code that stands for it."""
    what, code = _judged(exc)
    text = reason(exc)
    say((f"{what}: {text}" if what else text) + hint)
    return code


def is_nobodys(app: Any) -> bool:
    """Whether this is the app that Celery makes up where none is named, without a celeryconfig.

    To be asked after the app's settings were read.
    """
    return app.main == "default" and not getattr(app.loader, "configured", True)


def naming(app: Any, command: str) -> str:
    """What to add to a line of trouble where no app is named; else nothing."""
    if not is_nobodys(app):
        return ""
    return f"; no app is named: celery -A proj guard {command}"


def reason(exc: Exception) -> str:
    """The error's text as one line, without a password."""
    # redis-py quotes a pipeline's command in full.
    text = _SENTINEL.sub("", _PIPELINE.sub("", " ".join(str(exc).split())))
    return str(masked(text)) or type(exc).__name__


def _judged(exc: Exception) -> tuple[str, int]:
    if isinstance(exc, SettingError | ImproperlyConfigured):
        return "ImproperlyConfigured", EX_USAGE
    if isinstance(exc, WorkerGuardError):
        return "", EX_USAGE
    chain = list(_chain(exc))
    if any(_refused(link) for link in chain):
        return "The server refuses", EX_TROUBLE
    if any(_unreachable(link) for link in chain):
        return "The server can't be reached", EX_UNAVAILABLE
    return type(exc).__name__, EX_TROUBLE


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """The error with what it was raised from: kombu wraps its transports' errors."""
    while exc is not None:
        yield exc
        exc = exc.__cause__


def _refused(exc: BaseException) -> bool:
    """Whether a server was there, and said no."""
    from amqp.exceptions import AccessRefused, NotAllowed
    from redis import exceptions as redis

    # The first three are connection errors to redis-py.
    said_no = (
        redis.AuthenticationError,
        redis.AuthorizationError,
        redis.BusyLoadingError,
        redis.ResponseError,
    )
    return isinstance(exc, (*said_no, AccessRefused, NotAllowed))


def _unreachable(exc: BaseException) -> bool:
    from kombu.exceptions import OperationalError
    from redis import exceptions as redis

    if isinstance(exc, redis.ConnectionError | redis.TimeoutError | OperationalError):
        return True
    # An error that names a file is of this machine, and of no server.
    return isinstance(exc, OSError) and exc.filename is None
