"""Which alerts are switched on, what they look at, and how often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state

from tests.harness.context import make_context
from tests.unit.test_activity import RECYCLED
from worker_guard.alerts.part import AlertsPart
from worker_guard.events import Event
from worker_guard.settings import Settings
from worker_guard.status_model import AlertStatus, BrokerStatus, GuardStatus, RevokedStatus


def composed(app: Any, **settings: Any) -> AlertsPart:
    worker = app if hasattr(app, "pool_cls") else SimpleNamespace(app=app)
    return AlertsPart(make_context(worker, Settings(**settings)))


def redis_app() -> Celery:
    return Celery("test", set_as_current=False, backend="redis://127.0.0.1:1/0")


def test_none_switches_an_alert_off() -> None:
    """A part with nothing to look at is off, and says by which settings."""
    alerts = composed(redis_app())
    assert alerts.states == {"alerts": "on", "redis_memory": "on"}
    assert [alert.name for alert in alerts._alerts] == [
        "revoked_tasks", "recycles_per_hour", "redis_memory",
    ]  # fmt: skip

    alerts = composed(redis_app(), alert_revoked=None, alert_redis_memory=None)
    assert [alert.name for alert in alerts._alerts] == ["recycles_per_hour"]
    assert [job.name for job in alerts.jobs] == ["alerts"]
    assert alerts.states == {
        "alerts": "on",
        "redis_memory": "worker_guard_alert_redis_memory is None",
    }

    alerts = composed(redis_app(), alert_revoked=None, alert_recycles_per_hour=None)
    assert [job.name for job in alerts.jobs] == ["redis_memory"]
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
    """Every 5 s, or each interval if that is shorter; a Redis is asked each interval."""
    alerts = composed(redis_app())
    assert {job.name: job.interval_s for job in alerts.jobs} == {
        "alerts": 5.0, "redis_memory": 30.0,
    }  # fmt: skip
    alerts = composed(redis_app(), interval=1.0)
    assert {job.interval_s for job in alerts.jobs} == {1.0}


def test_recycles_are_counted() -> None:
    """From the events, one for each child."""
    clock, told = [1000.0], list[Event]()
    context = make_context(
        SimpleNamespace(app=redis_app()),
        Settings(alert_revoked=None, alert_redis_memory=None),
        heard=told.append,
        monotonic=lambda: clock[0],
    )
    alerts = AlertsPart(context)
    (job,) = alerts.jobs
    for _ in range(2):
        context.activity.note(RECYCLED)
        list(job.run())
    clock[0] = 1030.04
    (recycles,) = alerts.status(quick=True)["alerts"]
    assert recycles == AlertStatus(alert="recycles_per_hour", value=2, threshold=1, since_s=30.0)
    clock[0] = 1000 + 2 * 3600.0
    list(job.run())
    assert alerts.status(quick=True)["alerts"] == ()
    assert [event.name for event in told] == [
        "worker_guard.alert_raised", "worker_guard.alert_cleared",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("broker", "value"),
    [(None, None), (BrokerStatus(), 0), (BrokerStatus(unacked_without_index=3), 3)],
)
def test_messages_without_an_index(broker: BrokerStatus | None, value: int | None) -> None:
    """As the last look of this worker counted them; without that part there is no such alert."""
    told = list[Event]()
    context = make_context(
        SimpleNamespace(app=redis_app()),
        Settings(alert_revoked=None, alert_recycles_per_hour=None, alert_redis_memory=None),
        heard=told.append,
        status=lambda: GuardStatus(version="0", broker=broker),
    )
    alerts = AlertsPart(context)
    assert ("unacked_without_index" in alerts.status(quick=True)["alert_thresholds"]) == (
        value is not None
    )
    for job in alerts.jobs:
        list(job.run())
    assert [event.fields() for event in told] == (
        [{"alert": "unacked_without_index", "value": value, "threshold": 0}] if value else []
    )


@pytest.mark.parametrize(
    ("revoked", "value"), [(RevokedStatus(lingering=12), 12), (RevokedStatus(), 0), (None, 11)]
)
def test_ids_that_linger_are_counted(
    revoked: RevokedStatus | None, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the revoked part counts them; without that part, all that are in the set."""
    monkeypatch.setattr(state, "revoked", {f"{n}" for n in range(11)})
    context = make_context(
        SimpleNamespace(app=redis_app()),
        status=lambda: GuardStatus(version="0", revoked=revoked),
    )
    alerts = AlertsPart(context)
    list(alerts.jobs[0].run())
    told = [(alert.alert, alert.value) for alert in alerts.status(quick=True)["alerts"]]
    assert told == ([("revoked_tasks", value)] if value > 10 else [])
