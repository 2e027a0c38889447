"""What went wrong, in one line, with its exit code."""

from __future__ import annotations

import socket

import pytest
import redis
from amqp.exceptions import AccessRefused
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import OperationalError

from worker_guard.commands.console import EX_TROUBLE, EX_UNAVAILABLE, EX_USAGE, failed
from worker_guard.errors import WorkerGuardError
from worker_guard.settings import SettingError


def wrapped(error: Exception) -> Exception:
    """An error as kombu hands its transport's on."""
    wrapper = OperationalError(str(error))
    wrapper.__cause__ = error
    return wrapper


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SettingError("x is 1; allowed: 2"), EX_USAGE, "ImproperlyConfigured: x is 1; allowed: 2"),
        (ImproperlyConfigured("no"), EX_USAGE, "ImproperlyConfigured: no"),
        (WorkerGuardError("no age"), EX_USAGE, "no age"),
        (redis.ConnectionError("no"), EX_UNAVAILABLE, "The server can't be reached: no"),
        (redis.TimeoutError("late"), EX_UNAVAILABLE, "The server can't be reached: late"),
        (ConnectionRefusedError(111, "no"), EX_UNAVAILABLE, "The server can't be reached: no\n"),
        (OSError(113, "No route to host"), EX_UNAVAILABLE, "can't be reached"),
        (socket.gaierror(-2, "unknown"), EX_UNAVAILABLE, "can't be reached"),
        (wrapped(ConnectionRefusedError(111, "no")), EX_UNAVAILABLE, "can't be reached"),
        (redis.AuthenticationError("WRONGPASS"), EX_TROUBLE, "The server refuses: WRONGPASS"),
        (redis.exceptions.NoPermissionError("no SCAN"), EX_TROUBLE, "The server refuses: no SCAN"),
        (redis.BusyLoadingError("loading"), EX_TROUBLE, "The server refuses: loading"),
        (redis.ReadOnlyError("a replica"), EX_TROUBLE, "The server refuses: a replica"),
        (wrapped(redis.AuthenticationError("NOAUTH")), EX_TROUBLE, "refuses: NOAUTH"),
        (wrapped(AccessRefused("no")), EX_TROUBLE, "The server refuses"),
        (
            redis.ConnectionError(
                "No master found for 'm' : <redis.client.Redis(<redis.connection.ConnectionPool("
                "<redis.connection.Connection(db=0,retry=<redis.retry.Retry object at 0x1>,"
                "host=h)>)>)> - TimeoutError('late')"
            ),
            EX_UNAVAILABLE,
            "can't be reached: No master found for 'm' : TimeoutError('late')",
        ),
        (FileNotFoundError(2, "gone", "/x"), EX_TROUBLE, "FileNotFoundError: "),
        (RuntimeError("two\nlines"), EX_TROUBLE, "RuntimeError: two lines"),
        (ValueError(), EX_TROUBLE, "ValueError: ValueError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_went_wrong_is_one_line_and_a_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """69 only where no server was there; a server that says no is trouble."""
    assert failed(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert line in err


def test_no_password_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the error quotes."""
    failed(redis.ConnectionError("connecting to redis://:secret@host:1/0"))
    assert "secret" not in capsys.readouterr().err
