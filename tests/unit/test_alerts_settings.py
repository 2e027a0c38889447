"""The settings of alerts, metrics and health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from worker_guard.settings import SettingError, read_settings

NUMBER = "None, or a number, 0 or more"
SHARE = "None, or a share, 0 to 1, such as 0.8"
PORT = "None, or a port, 1 to 65535"
BAD_NUMBERS: tuple[Any, ...] = (-1, -0.1, True, "10", [], float("nan"), float("inf"))
PATH = "None, or a path such as '/run/worker/%n.json' (%n: name, %h: host, %d: domain)"
INTERVAL = "seconds, above 0, 10 at the most"
BAD_PATHS = ("", "run/", "/run/%z.json", "/run/%", 5, True, b"w.json", "a\0b")
HOST = "an address such as '127.0.0.1', '0.0.0.0' or '::1', or 'localhost'"


def read(name: str, value: Any) -> Any:
    app = Celery("test", set_as_current=False)
    app.conf.update({f"worker_guard_{name}": value})
    return getattr(read_settings(app.conf), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alert_revoked", None),
        ("alert_revoked", 0),
        ("alert_revoked", 25),
        ("alert_redis_memory", None),
        ("alert_redis_memory", 0.5),
        ("alert_redis_memory", 1),
        ("alert_recycles_per_hour", None),
        ("alert_recycles_per_hour", 2.5),
        ("metrics_port", None),
        ("metrics_port", 9808),
        ("heartbeat_file", None),
        ("heartbeat_file", "/run/%n@%h.%d.json"),
        ("heartbeat_file", "w%%.json"),
        ("heartbeat_interval", 10),
        ("metrics_host", "0.0.0.0"),
        ("metrics_host", "::1"),
        ("metrics_host", "localhost"),
    ],
)
def test_what_is_taken(name: str, value: Any) -> None:
    """It comes out as it was given."""
    assert read(name, value) == value


def test_a_path_is_one() -> None:
    """As Django's settings have it, under ``BASE_DIR``."""
    assert read("heartbeat_file", Path("/run/worker") / "%n.json") == "/run/worker/%n.json"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(("alert_revoked", bad, NUMBER) for bad in BAD_NUMBERS),
        *(("alert_recycles_per_hour", bad, NUMBER) for bad in BAD_NUMBERS),
        *(("alert_redis_memory", bad, SHARE) for bad in (*BAD_NUMBERS, 1.01, 80, "80%")),
        # Port 0 would be one that nobody knows.
        *(("metrics_port", bad, PORT) for bad in (0, -1, 65536, True, "9808", 9808.0)),
        # A percent sign that Celery can't expand would fail when the file is written.
        *(("heartbeat_file", bad, PATH) for bad in BAD_PATHS),
        # With a longer one the file would be stale for a probe that allows 30 s.
        *(("heartbeat_interval", bad, INTERVAL) for bad in (0, -1, 10.5, None, "5", True)),
        # A name would have to be looked up, by the worker's main thread.
        *(("metrics_host", bad, HOST) for bad in ("", "metrics.example", None, 2130706433)),
    ],
)
def test_what_is_refused(name: str, value: Any, allowed: str) -> None:
    """With the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        read(name, value)
    assert f"worker_guard_{name} is {value!r}; allowed: {allowed}." in str(caught.value)
