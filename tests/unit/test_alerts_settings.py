"""The settings of alerts and metrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from worker_guard.alerts.part import Alerts
from worker_guard.events import Event
from worker_guard.settings import SettingError, Settings, read_settings

NUMBER = "None, or a number, 0 or more"
SHARE = "None, or a share, 0 to 1, such as 0.8"
PORT = "None, or a port, 1 to 65535"
BAD_NUMBERS: tuple[Any, ...] = (-1, -0.1, True, "10", [], float("nan"), float("inf"))
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
        ("metrics_host", "0.0.0.0"),
        ("metrics_host", "::1"),
        ("metrics_host", "localhost"),
    ],
)
def test_what_is_taken(name: str, value: Any) -> None:
    """It comes out as it was given."""
    assert read(name, value) == value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(("alert_revoked", bad, NUMBER) for bad in BAD_NUMBERS),
        *(("alert_recycles_per_hour", bad, NUMBER) for bad in BAD_NUMBERS),
        *(("alert_redis_memory", bad, SHARE) for bad in (*BAD_NUMBERS, 1.01, 80, "80%")),
        # Port 0 would be one that nobody knows.
        *(("metrics_port", bad, PORT) for bad in (0, -1, 65536, True, "9808", 9808.0)),
        # A name would have to be looked up, by the worker's main thread.
        *(("metrics_host", bad, HOST) for bad in ("", "metrics.example", None, 2130706433)),
    ],
)
def test_what_is_refused(name: str, value: Any, allowed: str) -> None:
    """With the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        read(name, value)
    assert f"worker_guard_{name} is {value!r}; allowed: {allowed}." in str(caught.value)


def composed(app: Any, **settings: Any) -> Alerts:
    return Alerts(
        Settings(**settings),
        app=app,
        revoked_tasks=lambda: 0,
        report=lambda _: None,
        monotonic=lambda: 0.0,
    )


def redis_app() -> Celery:
    return Celery("test", set_as_current=False, backend="redis://127.0.0.1:1/0")


def test_none_switches_an_alert_off() -> None:
    """A part with nothing to look at is off, and says by which settings."""
    alerts = composed(redis_app())
    assert alerts.states == {"alerts": "on", "redis_memory": "on"}
    assert [alert.name for alert in alerts.all] == [
        "revoked_tasks", "recycles_per_hour", "redis_memory",
    ]  # fmt: skip

    alerts = composed(redis_app(), alert_revoked=None, alert_redis_memory=None)
    assert [alert.name for alert in alerts.all] == ["recycles_per_hour"]
    assert [part.name for part in alerts.parts] == ["alerts"]
    assert alerts.states == {
        "alerts": "on",
        "redis_memory": "worker_guard_alert_redis_memory is None",
    }

    alerts = composed(redis_app(), alert_revoked=None, alert_recycles_per_hour=None)
    assert [part.name for part in alerts.parts] == ["redis_memory"]
    assert alerts.states["alerts"] == (
        "worker_guard_alert_revoked and worker_guard_alert_recycles_per_hour are None"
    )


def test_without_redis_its_memory_is_not_looked_at() -> None:
    """The reason names what there is instead; a backend that can't be made hides no password."""
    app = Celery("test", set_as_current=False, backend="cache+memory://")
    assert composed(app).states["redis_memory"] == "no Redis result backend: it is CacheBackend"

    class Broken:
        @property
        def backend(self) -> Any:
            raise ValueError("no driver for redis://user:secret@host/0")

    states = composed(Broken()).states
    assert states == {"alerts": "on", "redis_memory": "no driver for redis://user:**@host/0"}


def test_how_often_values_are_looked_at() -> None:
    """What is at hand each 5 s, a Redis each interval; more often only where that is."""
    alerts = composed(redis_app())
    assert {part.name: part.interval_s for part in alerts.parts} == {
        "alerts": 5.0, "redis_memory": 30.0,
    }  # fmt: skip
    alerts = composed(redis_app(), interval=1.0)
    assert {part.interval_s for part in alerts.parts} == {1.0}


def test_recycles_are_counted() -> None:
    """By the callback that the memory parts call for each child."""
    now, told = SimpleNamespace(s=1000.0), list[Event]()
    alerts = Alerts(
        Settings(alert_revoked=None, alert_redis_memory=None),
        app=redis_app(),
        revoked_tasks=lambda: 0,
        report=told.append,
        monotonic=lambda: now.s,
    )
    (part,) = alerts.parts
    for _ in range(2):
        alerts.recycled()
        list(part.run())
    now.s = 1030.04
    assert alerts.describe() == [
        {"alert": "recycles_per_hour", "value": 2, "threshold": 1, "since_s": 30.0}
    ]
    now.s = 1000 + 2 * 3600.0
    list(part.run())
    assert alerts.describe() == []
    assert [event.name for event in told] == [
        "worker_guard.alert_raised", "worker_guard.alert_cleared",
    ]  # fmt: skip
