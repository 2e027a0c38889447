"""What ``inspect guard`` answers: the state of one worker's guard. Pure.

The worker fills these classes and answers their :func:`~dataclasses.asdict`; the metrics read their
attributes; the commands load the same classes from the answer. None: not known, or there is none.
Every field but ``version`` has a default, since the answer may come from another release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker_guard.events import BackfillCauses, RevokedKept, Suspect

#: The state of a part that runs; any other state is the reason why it doesn't.
ON = "on"


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """A task that a child runs."""

    task_id: str = ""
    task_name: str = ""
    running_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """The last reading of a process; ``metric`` is RSS if that is within the limit.

    ``limit_in_s``: when it reaches its limit if it grows on; None if nothing says that it will.
    """

    pid: int | None = None
    rss_bytes: int | None = None
    used_bytes: int | None = None
    metric: str | None = None
    limit_in_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class OwnProcessStatus:
    """A process that a child started. ``command`` is its name, without arguments."""

    pid: int | None = None
    command: str = ""
    used_bytes: int | None = None
    metric: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChildStatus(ProcessStatus):
    """A child of the pool. ``processes``: itself, and those that it started, of which
    ``own_processes`` are the biggest.

    ``waiting_for`` is what its place waits for while it is recycled: ``task`` or ``replacement``.
    """

    age_s: float | None = None
    recycles: int | None = None
    processes: int | None = None
    own_processes: tuple[OwnProcessStatus, ...] = ()
    leaving: bool = False
    waiting_for: str | None = None
    task: TaskStatus | None = None


@dataclass(frozen=True, kw_only=True)
class SuspensionStatus:
    """Why no child is recycled for now; ``setting`` is what to change."""

    reason: str | None = None
    baseline_bytes: int | None = None
    limit_bytes: int | None = None
    setting: str | None = None
    retry_in_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryStatus:
    """The processes of a worker; without a limit they are only watched.

    ``total_bytes`` is what all of them use together, if there is a limit for that.
    """

    metric: str | None = None
    parent: ProcessStatus | None = None
    parent_limit_bytes: int | None = None
    children: tuple[ChildStatus, ...] = ()
    child_limit_bytes: int | None = None
    total_bytes: int | None = None
    total_limit_bytes: int | None = None
    suspended: SuspensionStatus | None = None
    suspects: tuple[Suspect, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RevokedStatus:
    """The ids of the revoked set, by origin; an origin is None if the set is not watched.

    ``clearing`` of them will be cleared, the last in ``next_clear_s``. ``lingering`` are neither an
    operator's nor about to be cleared. ``expired_tasks`` counts messages since the start.
    """

    total: int | None = None
    operator: int | None = None
    expired: int | None = None
    confirmed: int | None = None
    unproven: int | None = None
    would_clear: int | None = None
    stamps: int | None = None
    clearing: int | None = None
    next_clear_s: float | None = None
    lingering: int | None = None
    expired_tasks: BackfillCauses = field(default_factory=BackfillCauses)


@dataclass(frozen=True, kw_only=True)
class AlertStatus:
    """An alert that is active."""

    alert: str = "?"
    value: float | None = None
    threshold: float | None = None
    since_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class StallStatus:
    """Whether the consumer has stalled: messages wait, places are free, and none comes.

    ``idle_s``: seconds since the last message, or since the connection if none came. ``queue`` and
    ``waiting_messages`` are those of the last look; None if nothing waited or nothing was asked.
    ``reconnects`` are those of the guard in the last hour. ``held_back_by``: so many running tasks
    acknowledge late and would run again, so the reconnect waits for them.
    """

    stalled: bool = False
    since_s: float | None = None
    queue: str | None = None
    waiting_messages: int | None = None
    idle_s: float | None = None
    action: str | None = None
    reconnects: int = 0
    held_back_by: int = 0


@dataclass(frozen=True, kw_only=True)
class HealthStatus:
    """Whether a worker is alive and ready; ``why_not`` says why it is not.

    ``children_*`` are None if the pool has no children. ``last_message_s`` ago it took a task, by a
    look each few seconds. ``turned_s`` ago its main loop last turned. ``task_s``: a task of a solo
    pool, or a pool that is full, has held the loop for so long.
    """

    state: str = "?"
    alive: bool = True
    ready: bool = True
    why_not: str | None = None
    children_up: int | None = None
    children_expected: int | None = None
    last_message_s: float | None = None
    turned_s: float | None = None
    task_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class BrokerStatus:
    """What the last look at the broker found, ``looked_s`` ago; None if another worker looked last.

    ``replies_unread`` are lists of control replies that are deleted if nobody reads them in time.
    ``unacked_without_index`` are messages that the broker never delivers again, by whoever looked;
    None before the first look that this worker knows of.
    """

    looked_s: float | None = None
    replies_deleted: int | None = None
    replies_unread: int | None = None
    unacked_without_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What was done since the start of the guard; in a dry run, what would have been done."""

    revoked_tasks_cleared: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    broker_keys_cleaned: int = 0
    children_recycled: int = 0
    children_killed: int = 0
    sweeps: int = 0


@dataclass(frozen=True, kw_only=True)
class KilledStatus:
    """A child that was killed, as in ``child_killed``, and when: ``at`` (epoch, s), ``age_s`` ago.

    ``oom`` is None if it is not known whether the kernel killed it for memory.
    """

    at: float | None = None
    age_s: float | None = None
    child_pid: int | None = None
    signal: str | None = None
    oom: bool | None = None
    task_id: str | None = None
    task_name: str | None = None
    used_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PastCleanup:
    """A sweep or cleanup, and when it ended: ``at`` (epoch, s), ``age_s`` ago."""

    at: float | None = None
    age_s: float | None = None
    target: str | None = None
    trigger: str | None = None
    revoked_tasks_cleared: int | None = None
    expired_results_deleted: int | None = None
    task_states_cleaned: int | None = None
    broker_keys_cleaned: int | None = None
    revoked_tasks_kept: RevokedKept | None = None
    keys_scanned: int | None = None
    keys_unreadable: int | None = None
    keys_with_longer_ttl: int | None = None
    duration_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class PastBackfill:
    """Tasks that the last sweeps in a row found expired; the last sweep was ``age_s`` ago."""

    at: float | None = None
    age_s: float | None = None
    expired_tasks: int | None = None
    tasks: Mapping[str, int] = field(default_factory=dict)
    waited_s_p50: float | None = None
    waited_s_max: float | None = None
    causes: BackfillCauses = field(default_factory=BackfillCauses)


@dataclass(frozen=True, kw_only=True)
class GuardStatus:
    """The state of one worker's guard.

    ``parts`` maps each part to :data:`ON` or to the reason why it is off. ``alert_thresholds`` are
    those of the alerts that are switched on.
    """

    version: str
    celery_version: str | None = None
    worker: str | None = None
    pid: int | None = None
    pool: str | None = None
    concurrency: int | None = None
    uptime_s: float | None = None
    active_tasks: int | None = None
    dry_run: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    consecutive_failures: Mapping[str, int] = field(default_factory=dict)
    revoked: RevokedStatus | None = None
    memory: MemoryStatus | None = None
    stall: StallStatus | None = None
    health: HealthStatus | None = None
    broker: BrokerStatus | None = None
    alerts: tuple[AlertStatus, ...] = ()
    alert_thresholds: Mapping[str, float] = field(default_factory=dict)
    redis_memory_share: float | None = None
    totals: Totals = field(default_factory=Totals)
    last_cleanup: PastCleanup | None = None
    last_clearing: PastCleanup | None = None
    last_results_cleanup: PastCleanup | None = None
    last_backfill: PastBackfill | None = None
    last_killed: KilledStatus | None = None

    @property
    def off(self) -> dict[str, str]:
        """The parts that are off, with the reason."""
        return {name: why for name, why in self.parts.items() if why != ON}

    @property
    def failing(self) -> dict[str, int]:
        """What failed the last time that it ran, with how often in a row."""
        return {name: count for name, count in self.consecutive_failures.items() if count}
