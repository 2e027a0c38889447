"""Which jobs the memory part has in a worker, and why it lacks the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.concurrency import prefork, solo

from tests.harness.context import make_context
from worker_guard.memory.part import MemoryPart
from worker_guard.settings import Settings

#: What the guard needs of billiard's pool, and takes for granted that it works.
POOL = (
    *("_pool", "_cache", "_processes", "_poolctrl", "_putlock", "apply_async"),
    *("_all_inqueues", "_busy_workers", "_active_writes", "_fileno_to_inq"),
    *("_waiting_to_start", "_result_handler"),
    *("_state", "process_flush_queues", "_timeout_handler"),
)


def memory(
    settings: dict[str, Any], *, lacks: str = "", pool: type = prefork.TaskPool, **values: Any
) -> MemoryPart:
    """The memory part of a worker whose pool is made and not started."""
    app = Celery("unit", set_as_current=False)
    task_pool = pool(1, app=app, forking_enable=values.pop("forking_enable", True))
    if pool is prefork.TaskPool:
        names = dict.fromkeys(name for name in POOL if name != lacks)
        task_pool._pool = SimpleNamespace(threads=False, allow_restart=True, **names)
        vars(task_pool._pool).update(values)
    worker = SimpleNamespace(app=app, pool=task_pool, pool_cls=pool)
    return MemoryPart(make_context(worker, Settings(**settings)))


LIMIT = {"child_memory_limit": 10**9}


@pytest.mark.parametrize(
    ("settings", "values", "reason"),
    [
        (LIMIT, {}, "on"),
        (LIMIT, {"threads": True}, "on"),
        ({"total_memory_limit": 10**9}, {}, "on"),
        ({}, {}, "worker_guard_child_memory_limit and worker_guard_total_memory_limit are None"),
        ({**LIMIT, "dry_run": True}, {}, "a dry run"),
        (LIMIT, {"pool": solo.TaskPool}, "the solo pool has no children"),
        (LIMIT, {"lacks": "_poolctrl"}, "this release's pool has no _poolctrl"),
        (LIMIT, {"lacks": "_busy_workers"}, "this release's pool has no _busy_workers"),
        (LIMIT, {"threads": True, "lacks": "_busy_workers"}, "on"),
        (
            LIMIT,
            {"allow_restart": False},
            "the pool was made without an exit event for each child",
        ),
        (LIMIT, {"forking_enable": False}, "on"),
        (
            LIMIT,
            {"threads": True, "forking_enable": False},
            "a pool with threads that spawns its children loses them when its thread ends",
        ),
    ],
)
def test_recycling_runs_or_says_why_not(
    settings: dict[str, Any], values: dict[str, Any], reason: str
) -> None:
    """The memory is read in each case; the job that replaces children is there or is not."""
    made = memory(settings, **values)
    killed = made.states.pop("killed_children")
    assert made.states == {"memory": "on", "recycling": reason}
    starts = "pool" not in values and "threads" not in values and "lacks" not in values
    total = "total_memory_limit" in settings
    has_children = "pool" not in values and ("lacks" not in values or reason == "on")
    grows = "child_memory_limit" in settings and has_children
    names = [
        "memory",
        *["total_memory"] * total,
        *["memory_growth"] * grows,
        *["killed_children"] * (killed == "on"),
        *["recycling"] * (reason == "on"),
        *["child_starts"] * starts,
    ]
    assert [job.name for job in made.jobs] == names


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "on"),
        ({"threads": True}, "on"),
        ({"lacks": "_timeout_handler"}, "this release's pool has no _timeout_handler"),
        ({"lacks": "_waiting_to_start"}, "this release's pool has no _waiting_to_start"),
        ({"threads": True, "lacks": "_waiting_to_start"}, "on"),
        ({"pool": solo.TaskPool}, "the solo pool has no children"),
    ],
)
def test_killed_children_are_seen_or_it_says_why_not(values: dict[str, Any], reason: str) -> None:
    """Without any limit and in a dry run too: it changes nothing."""
    made = memory({"dry_run": True}, **values)
    assert made.states["killed_children"] == reason
    assert ("killed_children" in [job.name for job in made.jobs]) == (reason == "on")
