"""The catalogue: every event that worker_guard reports, with its fields.

Durations end in ``_s`` (seconds), sizes in ``_bytes``. :mod:`worker_guard.event_log` adds the
fields that all events share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

Level = Literal["debug", "info", "warning", "error"]
Trigger = Literal["timer", "schedule", "control", "task", "cli"]
CleanupTarget = Literal["revoked", "results", "broker"]
AlertName = Literal["revoked_tasks", "redis_memory", "recycles_per_hour", "unacked_without_index"]
LimitName = Literal["child", "total"]
PutBackReason = Literal["set_full", "aged_out", "replaced"]
StallAction = Literal["log", "reconnect", "shutdown", "wait", "unblock"]
SuspensionReason = Literal["baseline_over_limit", "regrows_at_once", "replacement_not_up"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the guard saw or did."""

    name: ClassVar[str]

    @property
    def level(self) -> Level:
        """The level to log this event at."""
        return "info"

    def fields(self) -> dict[str, Any]:
        """The fields as they are logged; ``for_``, which Python reserves, as ``for``."""
        return {name.removesuffix("_"): value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The guard runs; ``parts`` maps each part to ``"on"`` or to the reason why it is off."""

    name: ClassVar[str] = "worker_guard.started"

    version: str
    celery_version: str
    pool: str
    concurrency: int
    parts: Mapping[str, str]
    settings: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class RevokedKept:
    """Ids that a sweep left in the revoked set, by the reason why."""

    operator: int = 0
    unproven: int = 0
    grace: int = 0


@dataclass(frozen=True, kw_only=True)
class CleanupCompleted(Event):
    """A sweep of the revoked set or a cleanup of Redis ended; ``target`` says of what.

    In a dry run the counts are what it would have done.
    """

    name: ClassVar[str] = "worker_guard.cleanup_completed"

    target: CleanupTarget = "revoked"
    revoked_tasks_cleared: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    broker_keys_cleaned: int = 0
    revoked_tasks_kept: RevokedKept = field(default_factory=RevokedKept)
    keys_scanned: int = 0
    keys_unreadable: int = 0
    keys_with_longer_ttl: int = 0
    trigger: Trigger = "timer"
    duration_s: float = 0.0

    @property
    def level(self) -> Level:
        """``info`` if it changed something, if it cleaned Redis, or if someone asked for it."""
        did = (
            self.revoked_tasks_cleared
            or self.expired_results_deleted
            or self.task_states_cleaned
            or self.broker_keys_cleaned
        )
        quiet = not did and self.target == "revoked" and self.trigger == "timer"
        return "debug" if quiet else "info"


@dataclass(frozen=True, kw_only=True)
class BackfillCauses:
    """Why tasks expired.

    ``waited_in_queue``: workers were down or behind. ``held_until_eta``: their countdown, ETA or
    retry is beyond their ``expires``. ``born_expired``: ``expires`` had passed when they were sent.
    ``clock_differs``: their own timestamps say that they waited, but their queue was empty
    meanwhile.
    """

    waited_in_queue: int = 0
    held_until_eta: int = 0
    born_expired: int = 0
    clock_differs: int = 0


@dataclass(frozen=True, kw_only=True)
class ExpiredBackfillDetected(Event):
    """Many tasks expired since the last sweep.

    ``waited_s_*`` are None if none of them waited in the queue.
    """

    name: ClassVar[str] = "worker_guard.expired_backfill_detected"
    level: ClassVar[Level] = "warning"

    expired_tasks: int
    tasks: Mapping[str, int]
    waited_s_p50: float | None
    waited_s_max: float | None
    causes: BackfillCauses


@dataclass(frozen=True, kw_only=True)
class RevocationsRestored(Event):
    """Operators' revocations were read from the result backend, and entered.

    At the start that is all of them; after a reconnect it is those that this worker missed.
    """

    name: ClassVar[str] = "worker_guard.revocations_restored"

    revocations: int
    stamps: int


@dataclass(frozen=True, kw_only=True)
class RevocationsPutBack(Event):
    """Celery or the application dropped operators' ids from the set, and the guard put them back.

    ``set_full``: the set was full; ``aged_out``: they were older than ``REVOKE_EXPIRES``;
    ``replaced``: the application emptied the set, or put another one in its place.
    """

    name: ClassVar[str] = "worker_guard.revocations_put_back"
    level: ClassVar[Level] = "warning"

    revocations: int
    reason: PutBackReason


@dataclass(frozen=True, kw_only=True)
class RevocationsEnded(Event):
    """The lifetime of these revocations is over: they are left to Celery from now on."""

    name: ClassVar[str] = "worker_guard.revocations_ended"

    revocations: int


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """The memory of one process; ``used_bytes`` is its RSS if that is within the limit."""

    pid: int
    rss_bytes: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemorySampled(Event):
    """The memory of the worker's processes was read. ``parent`` is the main process."""

    name: ClassVar[str] = "worker_guard.memory_sampled"
    level: ClassVar[Level] = "debug"

    parent: ProcessMemory
    children: Sequence[ProcessMemory]


@dataclass(frozen=True, kw_only=True)
class ChildOverLimit(Event):
    """A child went over its limit. Reported again only after it was well below the limit.

    ``processes``: the child, and those that it started.
    """

    name: ClassVar[str] = "worker_guard.child_over_limit"
    level: ClassVar[Level] = "warning"

    child_pid: int
    metric: str
    used_bytes: int
    limit_bytes: int
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A task, how often it ran, and how much of the children's growth is attributed to it."""

    task: str
    runs: int
    growth_bytes: int


@dataclass(frozen=True, kw_only=True)
class ChildRecycleRequested(Event):
    """A child was asked to leave, after its current task if it runs one.

    ``limit`` says which limit was exceeded: the child's, or that of the worker with all its
    children (``total``). ``suspects`` are the tasks with the most growth per run, in all children:
    an estimate.
    """

    name: ClassVar[str] = "worker_guard.child_recycle_requested"

    child_pid: int
    used_bytes: int
    limit_bytes: int
    limit: LimitName = "child"
    busy: bool
    task_id: str | None
    task_name: str | None
    suspects: Sequence[Suspect] = ()


@dataclass(frozen=True, kw_only=True)
class ChildRecycled(Event):
    """A child has left and was replaced.

    ``replacement_*`` are None if the pool was made smaller meanwhile. ``replacement_used_bytes``
    and ``freed_bytes`` are None if the replacement can't be read. ``left_pids`` are processes that
    the child started and that live on; their memory was not freed.
    """

    name: ClassVar[str] = "worker_guard.child_recycled"

    child_pid: int
    replacement_pid: int | None
    waited_s: float
    used_bytes: int
    replacement_used_bytes: int | None
    freed_bytes: int | None
    left_pids: Sequence[int] = ()

    @property
    def level(self) -> Level:
        """``warning`` if the child left processes behind."""
        return "warning" if self.left_pids else "info"


@dataclass(frozen=True, kw_only=True)
class ChildRecycleWaiting(Event):
    """A child was asked to leave and still runs its task, or its replacement is not up yet."""

    name: ClassVar[str] = "worker_guard.child_recycle_waiting"
    level: ClassVar[Level] = "warning"

    child_pid: int
    waited_s: float
    for_: Literal["task", "replacement"]
    task_id: str | None
    task_name: str | None


@dataclass(frozen=True, kw_only=True)
class ChildKilled(Event):
    """A child was killed by a signal that the worker did not send.

    ``oom``: whether the kernel killed it for memory, by the kernel's own count; None: not known.
    ``task_*`` are None if the child ran no task, ``used_bytes`` if it was never read.
    """

    name: ClassVar[str] = "worker_guard.child_killed"
    level: ClassVar[Level] = "error"

    child_pid: int
    signal: str
    oom: bool | None
    task_id: str | None
    task_name: str | None
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class RecyclingSuspended(Event):
    """No child is recycled for now, since it would gain nothing, or cost the worker a child.

    ``baseline_bytes`` is what a new child uses, or for the total limit the worker if all its
    children were new; None if that is not the reason. ``setting`` is what to change; None: no
    setting helps, since the replacements end by themselves.
    """

    name: ClassVar[str] = "worker_guard.recycling_suspended"
    level: ClassVar[Level] = "error"

    reason: SuspensionReason
    baseline_bytes: int | None
    limit_bytes: int
    setting: str | None


@dataclass(frozen=True, kw_only=True)
class RecyclingResumed(Event):
    """Children are recycled again."""

    name: ClassVar[str] = "worker_guard.recycling_resumed"

    suspended_s: float


@dataclass(frozen=True, kw_only=True)
class ParentOverLimit(Event):
    """The main process was over its limit for ``worker_guard_memory_strikes`` readings in a row.

    ``at_start_bytes`` is its first reading. If that is over the limit too, a restart gains nothing.
    """

    name: ClassVar[str] = "worker_guard.parent_over_limit"
    level: ClassVar[Level] = "warning"

    used_bytes: int
    limit_bytes: int
    action: str
    at_start_bytes: int


@dataclass(frozen=True, kw_only=True)
class Stalled(Event):
    """The consumer has stalled, or the guard acts on that, or it freed a main loop that hung.

    ``queue`` is the one in which most messages wait; it and ``waiting_messages`` are None if they
    are not known. ``idle_s``: since the last message; with ``unblock``, how long the loop hung.
    """

    name: ClassVar[str] = "worker_guard.stalled"
    level: ClassVar[Level] = "error"

    queue: str | None
    waiting_messages: int | None
    idle_s: float
    action: StallAction


@dataclass(frozen=True, kw_only=True)
class StallEnded(Event):
    """Messages come again, or none waits any more. ``action`` is the last one that was taken."""

    name: ClassVar[str] = "worker_guard.stall_ended"

    queue: str | None
    waiting_messages: int | None
    idle_s: float
    action: StallAction


@dataclass(frozen=True, kw_only=True)
class AlertRaised(Event):
    """A value went above its threshold. Reported again only after it was cleared."""

    name: ClassVar[str] = "worker_guard.alert_raised"
    level: ClassVar[Level] = "warning"

    alert: AlertName
    value: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class AlertCleared(Event):
    """A value is well below its threshold again."""

    name: ClassVar[str] = "worker_guard.alert_cleared"

    alert: AlertName
    value: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class PartFailed(Event):
    """Code of the guard raised; ``part`` names the part, job or hook. The worker continues."""

    name: ClassVar[str] = "worker_guard.part_failed"
    level: ClassVar[Level] = "error"

    part: str
    error: str
    consecutive_failures: int
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The guard has stopped; the counts are totals since its start."""

    name: ClassVar[str] = "worker_guard.stopped"

    revoked_tasks_cleared: int
    expired_results_deleted: int
    task_states_cleaned: int
    children_recycled: int
