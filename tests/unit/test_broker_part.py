"""Where the broker part is off, and what it shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from tests.harness.context import make_context
from worker_guard.broker.look import Found
from worker_guard.broker.notes import LastLook
from worker_guard.broker.part import BrokerPart
from worker_guard.celery_internals import MissingInternalError, redis_broker
from worker_guard.part import PartOff
from worker_guard.settings import Settings
from worker_guard.status_model import BrokerStatus


def worker(url: str = "redis://127.0.0.1:1/0") -> Any:
    """A worker with this broker. Nothing listens there, and nothing asks."""
    app = Celery("test", set_as_current=False, broker=url)
    return SimpleNamespace(app=app, hostname="w@test")


def test_no_schedule() -> None:
    """None: never."""
    with pytest.raises(PartOff, match="worker_guard_broker_schedule is None"):
        BrokerPart(make_context(worker(), Settings(broker_schedule=None)))


@pytest.mark.parametrize("url", ["memory://", "pyamqp://h"])
def test_another_broker(url: str) -> None:
    """The reason names its kind."""
    with pytest.raises(MissingInternalError, match="no Redis broker: it is "):
        BrokerPart(make_context(worker(url)))


def test_a_release_of_kombu_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names what is missing."""
    from kombu.transport.redis import Channel

    monkeypatch.delattr(Channel, "_get_pool")
    with pytest.raises(MissingInternalError, match="this kombu release has no _get_pool"):
        redis_broker(worker().app, 1.0)


def test_what_the_status_says() -> None:
    """Nothing before the first look; of another's only what concerns all."""
    now = [100.0]
    part = BrokerPart(make_context(worker(), monotonic=lambda: now[0]))
    assert part.status(quick=True) == {"broker": BrokerStatus()}
    (job,) = part.jobs
    job.found, job.found_mono = Found(lists=5, deleted=2, unread=3), 90.0  # type: ignore[attr-defined]
    job.last = LastLook(1.0, "w@test", 1)  # type: ignore[attr-defined]
    assert part.status(quick=True) == {
        "broker": BrokerStatus(
            looked_s=10.0, replies_deleted=2, replies_unread=3, unacked_without_index=1
        )
    }
    job.found = None  # type: ignore[attr-defined]
    assert part.status(quick=True) == {"broker": BrokerStatus(unacked_without_index=1)}


def test_a_stop_asks_no_server_if_nothing_is_held() -> None:
    """The lease is given back only by who has it."""
    BrokerPart(make_context(worker())).stop(cold=False)
