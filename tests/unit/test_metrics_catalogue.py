"""The catalogue of metrics: names, labels, and what they are made from."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from worker_guard.activity import Activity
from worker_guard.events import (
    AlertCleared,
    AlertRaised,
    BackfillCauses,
    CleanupCompleted,
    PartFailed,
    RevokedKept,
    Stalled,
)
from worker_guard.metrics.catalogue import (
    FAMILIES,
    Figures,
)
from worker_guard.revoked.backfill import BackfillCounter, Expiry
from worker_guard.status_model import (
    AlertStatus,
    BrokerStatus,
    ChildStatus,
    GuardStatus,
    HealthStatus,
    MemoryStatus,
    ProcessStatus,
    RevokedStatus,
    StallStatus,
    Totals,
)

STATUS = GuardStatus(
    version="x",
    worker="x",
    celery_version="x",
    pool="x",
    parts={"revoked": "on", "results": "no Redis result backend"},
    consecutive_failures={"revoked": 2},
    revoked=RevokedStatus(
        total=9,
        operator=1,
        expired=2,
        confirmed=3,
        unproven=3,
        stamps=5,
        expired_tasks=BackfillCauses(waited_in_queue=7),
    ),
    memory=MemoryStatus(
        child_limit_bytes=100,
        parent=ProcessStatus(pid=1, rss_bytes=70, used_bytes=60, metric="uss"),
        children=tuple(
            ChildStatus(used_bytes=used, limit_in_s=in_s)
            for used, in_s in ((40, 90.0), (50, 80.0), (None, None))
        ),
    ),
    health=HealthStatus(state="ready"),
    totals=Totals(
        revoked_tasks_cleared=1,
        expired_results_deleted=2,
        task_states_cleaned=3,
        broker_keys_cleaned=5,
        children_recycled=4,
        sweeps=6,
    ),
    alerts=(AlertStatus(alert="redis_memory", threshold=0.8, value=0.9, since_s=1.0),),
    alert_thresholds={"redis_memory": 0.8, "revoked_tasks": 10},
    stall=StallStatus(stalled=True, idle_s=130.5),
    broker=BrokerStatus(replies_unread=7, unacked_without_index=8),
    redis_memory_share=0.9,
)


def figures(**changes: Any) -> Figures:
    activity = Activity(dry_run=False, monotonic=lambda: 0.0, now=lambda: 0.0)
    for event in (
        PartFailed(part="revoked", error="x", consecutive_failures=1, retry_in_s=1.0),
        PartFailed(part="last_sweep", error="x", consecutive_failures=1, retry_in_s=1.0),
        CleanupCompleted(trigger="control"),
        CleanupCompleted(),
        CleanupCompleted(),
        AlertRaised(alert="redis_memory", value=0.9, threshold=0.8),
        Stalled(queue="work", waiting_messages=3, idle_s=130.5, action="wait"),
        Stalled(queue="work", waiting_messages=3, idle_s=190.5, action="reconnect"),
        AlertCleared(alert="redis_memory", value=0.1, threshold=0.8),
    ):
        activity.note(event)
    return Figures(replace(STATUS, **changes), activity)


def samples(which: Figures) -> dict[str, dict[str, float]]:
    """Each metric's samples, by the values of its labels."""
    return {
        family.short_name: {
            ",".join(labels.values()): value for labels, value in family.samples(which)
        }
        for family in FAMILIES
    }


def test_what_the_figures_come_to() -> None:
    """Each metric, with each of its samples."""
    assert samples(figures()) == {
        "info": {"x,x,x,x,false": 1},
        "part_on": {"revoked": 1, "results": 0},
        "part_consecutive_failures": {"revoked": 2},
        # Those that never failed stand at 0, so that their first failure is an increase.
        "part_failures_total": {"revoked": 1, "results": 0, "last_sweep": 1},
        "ready": {"": 1},
        "revoked_set_ids": {"": 9},
        "revoked_ids": {"operator": 1, "expired": 2, "confirmed": 3, "unproven": 3},
        "revoked_tasks_cleared_total": {"": 1},
        "expired_tasks_total": {
            "waited_in_queue": 7,
            "held_until_eta": 0,
            "born_expired": 0,
            "clock_differs": 0,
        },
        "cleanups_total": {"control": 1, "timer": 2, "schedule": 0},
        "expired_results_deleted_total": {"": 2},
        "task_states_cleaned_total": {"": 3},
        "broker_keys_cleaned_total": {"": 5},
        "broker_replies_unread": {"": 7},
        "broker_unacked_without_index": {"": 8},
        "children_recycled_total": {"": 4},
        # Each stands at 0 from the start, so that the first one is an increase.
        "children_killed_total": {"true": 0, "false": 0, "unknown": 0},
        "parent_memory_bytes": {"": 60},
        "parent_memory_limit_bytes": {},
        "children": {"": 3 - 1},
        "children_memory_bytes": {"": 90},
        "child_memory_max_bytes": {"": 50},
        "child_memory_limit_bytes": {"": 100},
        "stalled": {"": 1},
        "consumer_idle_seconds": {"": 130.5},
        "stall_actions_total": {"log": 0, "reconnect": 1, "shutdown": 0, "wait": 1, "unblock": 0},
        "total_memory_bytes": {},
        "total_memory_limit_bytes": {},
        "process_limit_seconds": {"child": 80.0},
        "redis_memory_ratio": {"": 0.9},
        "alert_active": {"redis_memory": 1, "revoked_tasks": 0},
        "alert_threshold": {"redis_memory": 0.8, "revoked_tasks": 10},
        "alerts_raised_total": {"redis_memory": 1, "revoked_tasks": 0},
    }


def test_what_is_not_known_has_no_sample() -> None:
    """Rather than a 0 that would look like one."""
    found = samples(figures(memory=None))
    for name in ("parent_memory_bytes", "child_memory_max_bytes", "child_memory_limit_bytes"):
        assert found[name] == {}
    assert samples(figures(health=None))["ready"] == {}
    for broker in (None, BrokerStatus()):
        assert samples(figures(broker=broker))["broker_unacked_without_index"] == {}
    assert found["children"] == found["children_memory_bytes"] == {"": 0}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.short_name)
def test_names_follow_prometheus(family: Any) -> None:
    """Counters end in ``_total``, and nothing else; units are base units; there is a help text."""
    assert re.fullmatch(r"worker_guard_[a-z_]+[a-z]", family.name)
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert not re.search(r"_(s|ms|mb|percent)$", family.name)
    assert family.text.endswith(".")


def test_labels_are_bounded() -> None:
    """Only fixed sets are labels; a task, its name or a process id never is."""
    assert {label for family in FAMILIES for label in family.labels} == {
        *("worker", "version", "celery_version", "pool", "dry_run"),
        *("part", "origin", "cause", "trigger", "action", "alert", "oom", "process"),
    }
    kept = CleanupCompleted(revoked_tasks_kept=RevokedKept(operator=1))
    activity = Activity(dry_run=False, monotonic=lambda: 0.0, now=lambda: 0.0)
    for _ in range(100):
        activity.note(kept)
    assert len(activity.cleanups) == 3


def test_causes_are_counted_beyond_a_sweep() -> None:
    """Those below the threshold of the event too, which forgets them at each sweep."""
    backfill = BackfillCounter()
    backfill.add("a", Expiry("waited_in_queue", 5.0))
    backfill.add("a", Expiry("born_expired"))
    assert backfill.drain(0.0) is None
    backfill.add("a", Expiry("waited_in_queue", 5.0))
    assert backfill.causes_in_all() == BackfillCauses(waited_in_queue=2, born_expired=1)
    backfill.drain(0.0)
    assert backfill.causes_in_all() == BackfillCauses(waited_in_queue=2, born_expired=1)
