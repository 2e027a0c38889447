"""What the step does to a worker that is built, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker import WorkController

from worker_guard import WorkerGuard

LIMIT = {"worker_guard_child_memory_limit": "400MB"}


@pytest.mark.parametrize(
    ("conf", "options", "with_sentinels"),
    [
        ({}, {}, False),
        ({"worker_guard_parent_memory_limit": "400MB"}, {}, False),
        (LIMIT, {}, True),
        ({"worker_guard_total_memory_limit": "400MB"}, {}, True),
        (LIMIT, {"guard_dry_run": True}, False),
        ({**LIMIT, "worker_guard_dry_run": True}, {}, False),
        ({**LIMIT, "worker_guard_enabled": False}, {}, False),
    ],
)
def test_the_pool_is_made_as_ever_unless_children_may_be_recycled(
    conf: dict[str, Any], options: dict[str, Any], with_sentinels: bool
) -> None:
    """By default a worker with the guard gets the pool that it has without it."""
    app = Celery("unit", set_as_current=False, broker="memory://")
    app.conf.update(conf)
    app.steps["worker"].add(WorkerGuard)
    worker = WorkController(app=app, concurrency=1, **options)
    assert bool(worker.pool_restarts) is with_sentinels
    assert bool(worker.pool.options["allow_restart"]) is with_sentinels


def test_a_share_that_comes_to_too_little_here_stops_the_worker() -> None:
    """What it comes to is known where the worker starts; a guard that is off asks for nothing."""
    app = Celery("unit", set_as_current=False, broker="memory://")
    app.conf.worker_guard_child_memory_limit = "0.000001%"
    app.steps["worker"].add(WorkerGuard)
    with pytest.raises(ImproperlyConfigured, match=r"worker_guard_child_memory_limit is '1e-06%'"):
        WorkController(app=app, concurrency=1)
    app.conf.worker_guard_enabled = False
    WorkController(app=app, concurrency=1)
