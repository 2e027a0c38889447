"""How long Celery itself keeps what it writes, on a real server, and what a cleanup makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from celery import Celery

from tests.harness.redis_server import RedisServer
from tests.harness.results import encoded
from worker_guard.results.backend import open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup
from worker_guard.settings import read_settings

needs_lifetimes = pytest.mark.skipif(
    tuple(int(n) for n in celery.__version__.split(".")[:2]) < (5, 7),
    reason="result_failure_expires and result_chord_expires came with Celery 5.7",
)

LONG_AGO = "2001-01-01T00:00:00+00:00"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


def application(server: RedisServer, **values: Any) -> Celery:
    app = Celery("test", set_as_current=False, broker="memory://", backend=server.url())
    app.conf.update(values)
    return app


def cleaned(app: Celery) -> int:
    backend = open_result_backend(app, read_settings(app.conf), timeout_s=10.0)
    job = FullSpeedCleanup(backend, max_age_s=None, dry_run=False, by="test", trigger="cli")
    job.run()
    outcome = job.outcome()
    assert outcome is not None
    return job.counts.expired_results_deleted


@needs_lifetimes
def test_what_celery_keeps_for_longer_is_not_deleted_before(server: RedisServer) -> None:
    """The longest of the lifetimes that it gives is the age."""
    app = application(server, result_expires=600, result_failure_expires=7200)
    app.backend.store_result("done", 1, "SUCCESS")
    app.backend.store_result("failed", ValueError("x"), "FAILURE")
    longest_s = max(server.client.ttl(f"celery-task-meta-{name}") for name in ("done", "failed"))
    assert 7100 < longest_s <= 7200
    backend = open_result_backend(app, read_settings(app.conf), timeout_s=10.0)
    assert backend.configured_max_age_s == 7200
    for name, age_s in (("hour", 3600), ("three-hours", 3 * 3600)):
        done_at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - age_s))
        record = {**json.loads(encoded(status="FAILURE")), "date_done": done_at}
        server.client.set(f"celery-task-meta-{name}", json.dumps(record))
    assert cleaned(app) == 1
    assert not server.client.exists("celery-task-meta-three-hours")


@needs_lifetimes
def test_where_failures_are_kept_for_ever_nothing_is_deleted(server: RedisServer) -> None:
    """What is meant to stay is not told from the rest."""
    from worker_guard.results.cleanup import NoAgeError

    app = application(server, result_expires=600, result_failure_expires=0)
    app.backend.store_result("failed", ValueError("x"), "FAILURE")
    assert server.client.ttl("celery-task-meta-failed") == -1
    with pytest.raises(NoAgeError):
        cleaned(app)


def test_what_celery_writes_is_cleaned_by_its_age_alone(server: RedisServer) -> None:
    """Each state that it knows, as this release writes it."""
    app = application(server, result_expires=600, result_extended=True)
    client: Any = server.client
    states = ["SUCCESS", "FAILURE", "REVOKED", "STARTED", "RETRY", "PENDING"]
    for state in states:
        outcome: Any = ValueError("x") if state in ("FAILURE", "REVOKED", "RETRY") else 1
        app.backend.store_result(state, outcome, state)
    assert cleaned(app) == 0
    for state in states:
        key = f"celery-task-meta-{state}"
        record = json.loads(client.get(key) or b"")
        if record["date_done"]:
            client.set(key, json.dumps({**record, "date_done": LONG_AGO}))
        else:
            client.persist(key)
    assert cleaned(app) == 3
    left = {key.decode().removeprefix("celery-task-meta-") for key in client.keys("*")}
    assert left == {"STARTED", "RETRY", "PENDING"}
    assert all(client.ttl(f"celery-task-meta-{state}") > 500 for state in left)
