"""The facts that the rules check: plain values, gathered from an app beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from worker_guard.commands.audit.gaps import Gaps
from worker_guard.commands.audit.spelling import Spelling

#: Pools by alias, and by module if that differs.
_CHILDLESS = {"solo", "threads", "thread", "gevent", "eventlet"}

#: A time more than a century away is a number that was read as a year.
_NEVER_S = 100 * 365 * 86400.0


@dataclass(frozen=True)
class Moment:
    """A fixed point in time, given instead of a duration."""

    written: str
    #: Seconds from now, with a naive time as UTC, as Celery reads it. Below 0 it is past.
    ahead_s: float
    naive: bool

    @property
    def never(self) -> bool:
        """Whether it is so far away that no worker reaches it."""
        return self.ahead_s > _NEVER_S


@dataclass(frozen=True)
class Malformed:
    """A value that Celery can't send, as text."""

    written: str


#: A time: in so many seconds, at a fixed moment, or a value that Celery can't send.
When = float | Moment | Malformed | None


@dataclass(frozen=True)
class Flaw:
    """Why Beat can't run an entry: the effect, and the error."""

    kind: Literal["ends-beat", "left-out", "no-task", "never-sent"]
    says: str


@dataclass(frozen=True, kw_only=True)
class BeatEntry:
    """One entry of a Beat schedule."""

    name: str
    task: str
    #: Its source: ``beat_schedule``, ``redbeat`` or ``django-celery-beat``.
    source: str = "beat_schedule"
    #: The schedule as Celery prints it.
    schedule: str
    #: None if it is not known when it runs, or if it runs once.
    gaps: Gaps | None
    #: The expiry that counts for the scheduler that runs the entry.
    expires: When = None
    #: The option from which this scheduler reads the expiry.
    expires_option: str = "expires"
    #: The name and value of an option that this scheduler does not read as the expiry.
    ignored_expires: tuple[str, When] | None = None
    #: Other options that it drops.
    ignored_options: tuple[str, ...] = ()
    #: The interval in seconds, if this scheduler rounds it to whole seconds.
    interval_s: float | None = None
    #: Whether the entry has ``options``, so that a line of code can add one.
    has_options: bool = True
    #: The entry has no ``expires``; the task's own counts.
    expires_of_task: bool = False
    #: The scheduler stops sending the entry at ``expires``, so a fixed time is intended.
    ends_at_expires: bool = False
    countdown_s: float | None = None
    #: The countdown as text, if Celery can't send it.
    malformed_countdown: str | None = None
    eta: When = None
    task_id: str | None = None
    flaw: Flaw | None = None


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task of the app, as a worker runs it: with settings and annotations applied."""

    name: str
    acks_late: bool = False
    #: None and False have the same effect; False was set on purpose.
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool = False
    time_limit_s: float | None = None
    #: The longest countdown of a retry that the task declares.
    retry_delay_s: float | None = None
    expires: When = None
    ignore_result: bool = False


@dataclass(frozen=True, kw_only=True)
class DeliveryFacts:
    """How messages reach the workers, and when they are acknowledged."""

    transport: str = "amqp"
    broker_is_redis: bool = False
    #: None: this transport does not redeliver messages after a timeout.
    visibility_timeout_s: float | None = None
    prefetch_multiplier: int = 4
    prefetch_disabled: bool = False
    #: The present offset of this process's local time.
    utc_offset_s: float = 0.0
    acks_late: bool = False
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """Memory limits, and the sizes that they are compared with."""

    #: ``worker_max_memory_per_child`` in KiB; None: no limit.
    child_limit_kib: float | None = None
    #: That limit as text, if it is no number.
    malformed_child_limit: str | None = None
    guard_child_limit_bytes: int | None = None
    guard_total_limit_bytes: int | None = None
    #: The RSS of the audit's process, which has loaded the app: an estimate of a new child's.
    newborn_bytes: int = 60_000_000
    #: The memory of this machine, or of its cgroup.
    available_bytes: int = 8_000_000_000


@dataclass(frozen=True, kw_only=True)
class ResultsFacts:
    """The result backend."""

    is_redis: bool = False
    backend: str = "DisabledBackend"
    #: None: results never expire. 0 is read as None.
    expires_s: float | None = 86400.0
    #: ``task_ignore_result``.
    ignored: bool = False


@dataclass(frozen=True, kw_only=True)
class GuardFacts:
    """The guard's step and settings."""

    installed: bool = True
    enabled: bool = True
    dry_run: bool = False
    #: The error with which the worker would refuse to start.
    rejected: str | None = None
    #: The names of the settings that have a value, such as ``worker_guard_interval``.
    given: frozenset[str] = frozenset()
    parent_limit: bool = False
    parent_action: str = "log"
    #: Whether the results part deletes: it has an age of its own and a schedule.
    deletes_results: bool = False


@dataclass(frozen=True)
class StoredEntries:
    """Entries in a store that only one scheduler reads, and that no setting names."""

    #: ``redbeat`` or ``django-celery-beat``.
    source: str
    count: int
    #: The value of ``beat_scheduler`` that would name that scheduler.
    scheduler: str
    #: The present value of ``beat_scheduler``.
    named: str
    #: No scheduler is set. Beat's command line may name this one, so the audit assumes it.
    assumed: bool


@dataclass(frozen=True)
class Unreadable:
    """A setting that could not be read, and the error."""

    setting: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts about one app."""

    entries: tuple[BeatEntry, ...] = ()
    #: The scheduler whose rules apply, in words.
    scheduler: str = "Celery's own scheduler"
    stored: tuple[StoredEntries, ...] = ()
    spelling: Spelling = field(default_factory=Spelling)
    tasks: tuple[TaskFacts, ...] = ()
    delivery: DeliveryFacts = field(default_factory=DeliveryFacts)
    memory: MemoryFacts = field(default_factory=MemoryFacts)
    results: ResultsFacts = field(default_factory=ResultsFacts)
    guard: GuardFacts = field(default_factory=GuardFacts)
    #: ``worker_pool``.
    pool: str = "prefork"
    #: ``worker_state_db``.
    statedb: str | None = None
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def has_children(self) -> bool:
        """Whether the pool runs tasks in processes of their own."""
        return self.pool not in _CHILDLESS
