"""What the commands of ``celery guard`` share: a line for people, and the exit codes."""

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
    "is_nobodys",
    "naming",
    "reason",
    "say",
    "set_up_django",
    "told",
]

#: redis-py prints each Sentinel that it asked as an object of 500 characters.
_SENTINEL = re.compile(r"<redis\.client\.Redis\(.*?>\)>\)> - ")
_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)

#: redis-py says where it connected to, and Python by which number the system names the error.
_WHERE = re.compile(r"^(Error (-?\d+ )?connecting to \S+\. |\[Errno -?\d+\] )")

#: What an error means that does not say it itself: by the URL, and by what it says.
_HINTS = (
    (
        re.compile("(rediss|amqps)://"),
        re.compile("time(d )?out|wrong.version|record.layer", re.IGNORECASE),
        "perhaps what listens there does not speak TLS",
    ),
    (
        re.compile("redis://"),
        re.compile("closed by server|Protocol Error"),
        "perhaps what listens there is no Redis, or speaks TLS alone",
    ),
)

_REFUSES, _AWAY, _FAILS = "refuses", "can't be reached", "fails"
_OF_A_SERVER = (_REFUSES, _AWAY, _FAILS)

_SET_UP_DJANGO = (
    "name Django's settings by DJANGO_SETTINGS_MODULE, or call django.setup() in the module of the "
    "Celery app"
)

UNNAMED = Server(name="server")

EX_OK = 0
EX_TROUBLE = 1
EX_USAGE = 2
EX_UNAVAILABLE = 69


def say(line: str) -> None:
    """Tell people, on stderr, so that stdout holds the answer alone."""
    click.echo(line, err=True)


def failed(exc: Exception, hint: str = "", *, server: Server = UNNAMED) -> int:
    """Say in one line, without a password, what went wrong; the exit code that stands for it.

    ``server`` is the one that was talked to.
    """
    line, code = told(exc, server)
    say(line + hint)
    return code


def told(exc: Exception, server: Server = UNNAMED) -> tuple[str, int]:
    """The line of :func:`failed`, and its exit code."""
    what, code = _judged(exc)
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
    """Set up Django where it has settings, as Celery does in a worker: tasks may need its models.

    Raises:
        Exception: what Django and the project's modules raise.
    """
    named = bool(os.environ.get("DJANGO_SETTINGS_MODULE")) and find_spec("django") is not None
    conf = sys.modules.get("django.conf")
    if named or (conf is not None and conf.settings.configured):
        import django
        from django.apps import apps

        if not apps.ready:
            django.setup()


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
        return _REFUSES, EX_TROUBLE
    if any(_unreachable(link) for link in chain):
        return _AWAY, EX_UNAVAILABLE
    if any(_failed_there(link) for link in chain):
        return _FAILS, EX_TROUBLE
    return type(exc).__name__, EX_TROUBLE


def _is_djangos(exc: BaseException) -> bool:
    """Whether Django says that it was not set up; it need not be installed."""
    return type(exc).__name__ == "AppRegistryNotReady"


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


def _failed_there(exc: BaseException) -> bool:
    """Whether something answered in a way that is none of the protocol, or not as it should."""
    from redis import exceptions as redis

    return isinstance(exc, redis.RedisError)
