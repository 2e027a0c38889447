"""What workers answer to ``inspect guard``, for tests of what is shown of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worker_guard.commands.status.view import Answers, Fleet, read_fleet
from worker_guard.events import BackfillCauses, RevokedKept, Suspect
from worker_guard.status_model import (
    AlertStatus,
    BrokerStatus,
    ChildStatus,
    GuardStatus,
    HealthStatus,
    KilledStatus,
    MemoryStatus,
    OwnProcessStatus,
    PastBackfill,
    PastCleanup,
    ProcessStatus,
    RevokedStatus,
    StallStatus,
    SuspensionStatus,
    TaskStatus,
    Totals,
)

MB, MIB = 1000**2, 1024**2

#: The least that a guard answers.
WELL: dict[str, Any] = {"version": "1.0"}

#: An alert, as a guard lists it.
ALERT: dict[str, Any] = {
    "alert": "revoked_tasks",
    "value": 23,
    "threshold": 10,
    "since_s": 300,
}


def child(pid: int, used_mb: int, **more: Any) -> dict[str, Any]:
    """A child that uses so much."""
    return {
        "pid": pid,
        "used_bytes": used_mb * MB,
        "metric": "uss",
        "age_s": 90.0,
        "recycles": 2,
        **more,
    }


def answer(*children: dict[str, Any], limit_mb: int | None = 100, **more: Any) -> dict[str, Any]:
    """A prefork worker with these children, each of which has this limit."""
    return {
        "version": "1.2.3",
        "pool": "prefork",
        "concurrency": max(1, len(children)),
        "uptime_s": 7260.0,
        "active_tasks": 0,
        "revoked": dict.fromkeys(("operator", "expired", "confirmed", "unproven"), 49_999)
        | {"total": 50_000, "stamps": 0},
        "memory": {
            "metric": "uss",
            "child_limit_bytes": None if limit_mb is None else limit_mb * MB,
            "parent": {"pid": 7, "used_bytes": 64 * MB, "metric": "rss"},
            "children": list(children),
        },
        "last_cleanup": {"age_s": 12.0, "trigger": "timer", "revoked_tasks_cleared": 3},
        **more,
    }


#: A child over its limit, with its task.
BUSY = child(
    4711,
    130,
    task={
        "task_id": "470328a3-ea97-495a-8b8a-580cf873c5a7",
        "task_name": "mail.tasks.newsletter.send_all",
        "running_s": 75.0,
    },
)


def fleet_of(**replies: Any) -> Fleet:
    """The fleet of workers that are there and answer so."""
    return read_fleet(Answers(present=list(replies), replies=list(replies.items())))


_CAUSES = BackfillCauses(waited_in_queue=5, held_until_eta=6, born_expired=7, clock_differs=8)

_CLEANUP = PastCleanup(
    at=1.5,
    age_s=2.5,
    target="revoked",
    trigger="timer",
    revoked_tasks_cleared=1,
    expired_results_deleted=2,
    task_states_cleaned=3,
    broker_keys_cleaned=14,
    revoked_tasks_kept=RevokedKept(operator=4, unproven=5, grace=6),
    keys_scanned=7,
    keys_unreadable=8,
    keys_with_longer_ttl=9,
    duration_s=0.5,
)

_CHILD = ChildStatus(
    pid=3,
    rss_bytes=4,
    used_bytes=5,
    metric="uss",
    limit_in_s=10.5,
    age_s=6.5,
    recycles=7,
    processes=8,
    own_processes=(OwnProcessStatus(pid=9, command="ffmpeg", used_bytes=10, metric="pss"),),
    leaving=True,
    waiting_for="task",
    task=TaskStatus(task_id="id", task_name="mail.send", running_s=9.5),
)

#: A status of which each field has a value that is not its default.
FULL = GuardStatus(
    version="1.2.3",
    celery_version="5.6.0",
    worker="w@test",
    pid=1,
    pool="prefork",
    concurrency=2,
    uptime_s=3.5,
    active_tasks=4,
    dry_run=True,
    parts={"revoked": "on", "results": "no Redis"},
    consecutive_failures={"revoked": 0, "memory": 3},
    revoked=RevokedStatus(
        total=1,
        operator=2,
        expired=3,
        confirmed=4,
        unproven=5,
        would_clear=6,
        stamps=7,
        clearing=8,
        next_clear_s=9.5,
        lingering=10,
        expired_tasks=_CAUSES,
    ),
    memory=MemoryStatus(
        metric="uss",
        parent=ProcessStatus(pid=1, rss_bytes=2, used_bytes=3, metric="rss", limit_in_s=4.5),
        parent_limit_bytes=4,
        children=(replace(_CHILD, pid=2), _CHILD),
        child_limit_bytes=5,
        total_bytes=6,
        total_limit_bytes=7,
        suspended=SuspensionStatus(
            reason="regrows_at_once",
            baseline_bytes=1,
            limit_bytes=2,
            setting="its_setting",
            retry_in_s=3.5,
        ),
        suspects=(Suspect(task="mail.send", runs=1, growth_bytes=2),),
    ),
    stall=StallStatus(
        stalled=True,
        since_s=1.5,
        queue="work",
        waiting_messages=2,
        idle_s=3.5,
        action="wait",
        reconnects=4,
        held_back_by=5,
    ),
    health=HealthStatus(
        state="no_children",
        alive=False,
        ready=False,
        why_not="no child is up",
        children_up=1,
        children_expected=2,
        last_message_s=3.5,
        turned_s=4.5,
        task_s=5.5,
    ),
    broker=BrokerStatus(looked_s=1.5, replies_deleted=2, replies_unread=3, unacked_without_index=4),
    alerts=(AlertStatus(alert="revoked_tasks", value=23.5, threshold=10.5, since_s=4.5),),
    alert_thresholds={"revoked_tasks": 10.5},
    redis_memory_share=0.5,
    totals=Totals(
        revoked_tasks_cleared=1,
        expired_results_deleted=2,
        task_states_cleaned=3,
        broker_keys_cleaned=7,
        children_recycled=4,
        children_killed=6,
        sweeps=5,
    ),
    last_cleanup=_CLEANUP,
    last_clearing=replace(_CLEANUP, age_s=3.5),
    last_results_cleanup=replace(_CLEANUP, age_s=4.5),
    last_backfill=PastBackfill(
        at=1.5,
        age_s=2.5,
        expired_tasks=26,
        tasks={"mail": 26},
        waited_s_p50=3.5,
        waited_s_max=4.5,
        causes=_CAUSES,
    ),
    last_killed=KilledStatus(
        at=1.5,
        age_s=2.5,
        child_pid=3,
        signal="SIGKILL",
        oom=True,
        task_id="id",
        task_name="mail.send",
        used_bytes=4,
    ),
)
