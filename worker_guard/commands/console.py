"""Lines for people and exit codes, shared by the commands of ``celery guard``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import click
from celery.exceptions import ImproperlyConfigured

from worker_guard.commands.server_names import Server
from worker_guard.errors import WorkerGuardError
from worker_guard.settings import SettingError
from worker_guard.values.masking import masked

__all__ = [
    "EX_OK",
    "EX_TROUBLE",
    "EX_UNAVAILABLE",
    "EX_USAGE",
    "failed",
    "is_default_app",
    "naming",
    "reason",
    "say",
    "set_up_django",
    "told",
]

#: redis-py prints each Sentinel that it asked as a text of 500 characters.
_SENTINEL = re.compile(r"<redis\.client\.Redis\(.*?>\)>\)> - ")
_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)

#: redis-py adds the address to an error, and Python adds the system's error number.
_WHERE = re.compile(r"^(Error (-?\d+ )?connecting to \S+\. |\[Errno -?\d+\] )")

#: Likely causes of errors that don't name them, by the URL and the error's text.
_HINTS = (
    (
        re.compile("(rediss|amqps)://"),
        re.compile("time(d )?out|wrong.version|record.layer", re.IGNORECASE),
        "perhaps the server there does not use TLS",
    ),
    (
        re.compile("redis://"),
        re.compile("closed by server|Protocol Error"),
        "perhaps the server there is not Redis, or accepts only TLS",
    ),
)

_REFUSES, _AWAY, _FAILS = "refuses", "can't be reached", "fails"
_OF_A_SERVER = (_REFUSES, _AWAY, _FAILS)

_SET_UP_DJANGO = (
    "set DJANGO_SETTINGS_MODULE to Django's settings, or call django.setup() in the module of the "
    "Celery app"
)

UNNAMED = Server(name="server")

EX_OK = 0
EX_TROUBLE = 1
EX_USAGE = 2
EX_UNAVAILABLE = 69


def say(line: str) -> None:
    """Print a line for people on stderr, so that stdout has only the answer."""
    click.echo(line, err=True)


def failed(exc: Exception, hint: str = "", *, server: Server = UNNAMED) -> int:
    """Print what went wrong, in one line without a password, and return the exit code for it.

    ``server`` is the server that the command talked to.
    """
    line, code = told(exc, server)
    say(line + hint)
    return code


def told(exc: Exception, server: Server = UNNAMED) -> tuple[str, int]:
    """The line of :func:`failed`, and its exit code."""
    what, code = _classified(exc)
    text = reason(exc)
    if _is_djangos(exc):
        return f"{type(exc).__name__}: {text.rstrip('.')}; {_SET_UP_DJANGO}", EX_USAGE
    if what not in _OF_A_SERVER:
        return (f"{what}: {text}" if what else text), code
    if file := server.unreadable_file():
        return f"A file for TLS to the {server.name} can't be read: {file}", EX_USAGE
    which = f": {server}" if str(server) else ""
    text = _WHERE.sub("", text).rstrip(".")
    for url, sign, hint in _HINTS:
        if url.match(server.url) and sign.search(text):
            text += f"; {hint}"
    return f"The {server.name} {what}{which}: {text}", code


def set_up_django() -> None:
    """Set up Django if it has settings, as Celery does in a worker: tasks may need its models.

    Raises:
        Exception: any error of Django or of the project's modules.
    """
    named = bool(os.environ.get("DJANGO_SETTINGS_MODULE")) and find_spec("django") is not None
    conf = sys.modules.get("django.conf")
    if named or (conf is not None and conf.settings.configured):
        import django
        from django.apps import apps

        if not apps.ready:
            django.setup()


def is_default_app(app: Any) -> bool:
    """Whether this is Celery's default app, used if no app is named and no celeryconfig exists.

    Call it after the app's settings were read.
    """
    return app.main == "default" and not getattr(app.loader, "configured", True)


def naming(app: Any, command: str) -> str:
    """What to add to an error if no app is named; else ``""``."""
    if not is_default_app(app):
        return ""
    return f"; no app is named: celery -A proj guard {command}"


def reason(exc: Exception) -> str:
    """The error's text as one line, without a password."""
    # redis-py quotes the full command of a pipeline.
    text = _SENTINEL.sub("", _PIPELINE.sub("", " ".join(str(exc).split())))
    return str(masked(text)) or type(exc).__name__


def _classified(exc: Exception) -> tuple[str, int]:
    if isinstance(exc, SettingError | ImproperlyConfigured):
        return "ImproperlyConfigured", EX_USAGE
    if isinstance(exc, WorkerGuardError):
        return "", EX_USAGE
    chain = list(_chain(exc))
    if any(_refused(link) for link in chain):
        return _REFUSES, EX_TROUBLE
    if any(_unreachable(link) for link in chain):
        return _AWAY, EX_UNAVAILABLE
    if any(_failed_there(link) for link in chain):
        return _FAILS, EX_TROUBLE
    return type(exc).__name__, EX_TROUBLE


def _is_djangos(exc: BaseException) -> bool:
    """Whether Django reports that it is not set up. Django need not be installed."""
    return type(exc).__name__ == "AppRegistryNotReady"


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: kombu wraps the errors of its transports."""
    while exc is not None:
        yield exc
        exc = exc.__cause__


def _refused(exc: BaseException) -> bool:
    """Whether a server answered with a refusal."""
    from amqp.exceptions import AccessRefused, NotAllowed
    from redis import exceptions as redis

    # redis-py derives the first three from its ConnectionError.
    refusals = (
        redis.AuthenticationError,
        redis.AuthorizationError,
        redis.BusyLoadingError,
        redis.ResponseError,
    )
    return isinstance(exc, (*refusals, AccessRefused, NotAllowed))


def _unreachable(exc: BaseException) -> bool:
    from kombu.exceptions import OperationalError
    from redis import exceptions as redis

    if isinstance(exc, redis.ConnectionError | redis.TimeoutError | OperationalError):
        return True
    # An error that names a file concerns this machine, not a server.
    return isinstance(exc, OSError) and exc.filename is None


def _failed_there(exc: BaseException) -> bool:
    """Whether the answer breaks the protocol, or is otherwise not as expected."""
    from redis import exceptions as redis

    return isinstance(exc, redis.RedisError)
