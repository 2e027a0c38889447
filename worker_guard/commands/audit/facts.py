"""What the rules judge: plain values, gathered from an app beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from worker_guard.commands.audit.gaps import Gaps
from worker_guard.commands.audit.spelling import Spelling

#: By alias, and by module where that differs.
_CHILDLESS = {"solo", "threads", "thread", "gevent", "eventlet"}

#: A time that is further away than a century is a number that was read as a year.
_NEVER_S = 100 * 365 * 86400.0


@dataclass(frozen=True)
class Moment:
    """A fixed point in time, where a duration could stand."""

    written: str
    #: Seconds from now, as Celery reads it: a naive one as UTC. Below 0 it is over.
    ahead_s: float
    naive: bool

    @property
    def never(self) -> bool:
        """Whether nobody who starts a worker today will see it."""
        return self.ahead_s > _NEVER_S


@dataclass(frozen=True)
class Odd:
    """A value that Celery can't send, as it is written."""

    written: str


#: When something is to be: in so many seconds, at a fixed time, or as nobody can tell.
When = float | Moment | Odd | None


@dataclass(frozen=True)
class Flaw:
    """What keeps Beat from running an entry: what comes of it, and what there is to say."""

    kind: Literal["ends-beat", "left-out", "no-task", "never-sent"]
    says: str


@dataclass(frozen=True, kw_only=True)
class BeatEntry:
    """One entry of a Beat schedule."""

    name: str
    task: str
    #: Where it stands: ``beat_schedule``, ``redbeat`` or ``django-celery-beat``.
    source: str = "beat_schedule"
    #: The schedule as Celery prints it.
    schedule: str
    #: None where nobody can say when it runs, or it runs once.
    gaps: Gaps | None
    #: What counts, by the rules of the scheduler that runs the entry.
    expires: When = None
    #: The option from which this scheduler takes an expiry.
    expires_option: str = "expires"
    #: An expiry from which it takes none, by its name and as it is written.
    ignored_expires: tuple[str, When] | None = None
    #: Further options that it drops.
    ignored_options: tuple[str, ...] = ()
    #: What it makes whole seconds of, where that is another number.
    interval_s: float | None = None
    #: Whether the entry has ``options``, to which a line can add.
    has_options: bool = True
    #: The entry has no ``expires``; it is the task's own.
    expires_of_task: bool = False
    #: The scheduler stops sending it at ``expires``, so that a fixed time is meant.
    ends_at_expires: bool = False
    countdown_s: float | None = None
    #: The same where Celery can't send it, as it is written.
    countdown_odd: str | None = None
    eta: When = None
    task_id: str | None = None
    flaw: Flaw | None = None


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task of the app, as a worker would run it: settings and annotations applied."""

    name: str
    acks_late: bool = False
    #: None and False do the same; False was written by somebody.
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool = False
    time_limit_s: float | None = None
    #: The longest countdown of a retry that the task declares.
    retry_delay_s: float | None = None
    expires: When = None
    ignore_result: bool = False


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How messages reach the workers, and what acknowledges them."""

    transport: str = "amqp"
    #: None: this transport gives no message back by itself.
    visibility_timeout_s: float | None = None
    prefetch_multiplier: int = 4
    prefetch_disabled: bool = False
    #: Of this process's local time, now.
    utc_offset_s: float = 0.0
    acks_late: bool = False
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """Limits of memory, and what they are compared with."""

    #: ``worker_max_memory_per_child`` in KiB; None: no limit.
    child_limit_kib: float | None = None
    #: The same where it is no number.
    child_limit_odd: str | None = None
    guard_child_limit_bytes: int | None = None
    #: RSS of the audit's own process, which has loaded the app: about a newborn child's.
    newborn_bytes: int = 60_000_000
    #: What this machine, or this cgroup, has.
    available_bytes: int = 8_000_000_000


@dataclass(frozen=True, kw_only=True)
class Results:
    """The result backend."""

    is_redis: bool = False
    backend: str = "DisabledBackend"
    #: None: never. 0 is read as None.
    expires_s: float | None = 86400.0
    #: ``task_ignore_result``.
    ignored: bool = False


@dataclass(frozen=True, kw_only=True)
class GuardFacts:
    """The guard's step and settings."""

    installed: bool = True
    enabled: bool = True
    dry_run: bool = False
    #: What the worker would say, and not start.
    rejected: str | None = None
    #: Names of the settings that are set to something, such as ``worker_guard_interval``.
    given: frozenset[str] = frozenset()
    parent_limit: bool = False
    parent_action: str = "log"
    #: prometheus_client is installed where the audit runs.
    has_prometheus: bool = True
    #: The results part deletes: it has an age of its own, and a schedule.
    deletes_results: bool = False


@dataclass(frozen=True)
class StoredEntries:
    """Entries in a store that only one scheduler reads, and that no setting names."""

    #: ``redbeat`` or ``django-celery-beat``.
    source: str
    count: int
    #: What ``beat_scheduler`` would be.
    scheduler: str
    #: ``beat_scheduler`` as it is.
    named: str
    #: Nothing is named, so that Beat's command line may name it, and the audit takes it for that.
    assumed: bool


@dataclass(frozen=True)
class Unreadable:
    """A setting that could not be read, and what reading it raises."""

    setting: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All of them."""

    entries: tuple[BeatEntry, ...] = ()
    #: The scheduler that the rules go by, in words.
    scheduler: str = "Celery's own scheduler"
    stored: tuple[StoredEntries, ...] = ()
    spelling: Spelling = field(default_factory=Spelling)
    tasks: tuple[TaskFacts, ...] = ()
    delivery: Delivery = field(default_factory=Delivery)
    memory: MemoryFacts = field(default_factory=MemoryFacts)
    results: Results = field(default_factory=Results)
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
