"""The catalogue: every metric of the guard, from plain values. Pure: no I/O, no clock.

Labels are bounded: origins, parts, alerts, causes, triggers and kinds of process, which are fixed
sets. No task, no task's name and no process id is a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from worker_guard.activity import Activity
from worker_guard.status_model import (
    ON,
    GuardStatus,
    MemoryStatus,
    ProcessStatus,
    RevokedStatus,
)

PREFIX = "worker_guard_"

Sample = tuple[Mapping[str, str], float]
"""Labels and a value."""


@dataclass(frozen=True)
class Figures:
    """What the guard of one worker knows at one moment."""

    status: GuardStatus
    activity: Activity

    @property
    def memory(self) -> MemoryStatus:
        """Empty if the memory is not watched."""
        return self.status.memory or MemoryStatus()

    @property
    def revoked(self) -> RevokedStatus:
        """Empty if there is no revoked part."""
        return self.status.revoked or RevokedStatus()

    @property
    def parent(self) -> ProcessStatus:
        """The main process."""
        return self.memory.parent or ProcessStatus()

    @property
    def children_used_bytes(self) -> list[int]:
        """What each child uses whose memory was read."""
        return [c.used_bytes for c in self.memory.children if c.used_bytes is not None]


@dataclass(frozen=True)
class Family:
    """One metric: its name without the prefix, and its samples at a moment."""

    short_name: str
    kind: Literal["counter", "gauge"]
    text: str
    labels: tuple[str, ...]
    samples: Callable[[Figures], Iterable[Sample]]

    @property
    def name(self) -> str:
        """The name as it is scraped."""
        return PREFIX + self.short_name


def _one(
    kind: Literal["counter", "gauge"],
    name: str,
    text: str,
    value: Callable[[Figures], float | None],
) -> Family:
    """A metric without labels; it has no sample while its value is not known."""

    def samples(figures: Figures) -> Iterable[Sample]:
        known = value(figures)
        return () if known is None else (({}, known),)

    return Family(name, kind, text, (), samples)


def _by(
    label: str,
    kind: Literal["counter", "gauge"],
    name: str,
    text: str,
    values: Callable[[Figures], Mapping[str, float]],
) -> Family:
    """A metric with one label."""

    def samples(figures: Figures) -> Iterable[Sample]:
        return [({label: key}, value) for key, value in sorted(values(figures).items())]

    return Family(name, kind, text, (label,), samples)


def _total(name: str, text: str) -> Family:
    """A counter that the guard keeps among its totals."""
    return _one("counter", f"{name}_total", text, lambda f: getattr(f.status.totals, name))


def _info(status: GuardStatus) -> dict[str, str]:
    return {
        "worker": str(status.worker),
        "version": status.version,
        "celery_version": str(status.celery_version),
        "pool": str(status.pool),
        "dry_run": str(status.dry_run).lower(),
    }


def _alerts_active(status: GuardStatus) -> dict[str, float]:
    active = {alert.alert for alert in status.alerts}
    return {name: name in active for name in status.alert_thresholds}


def _parts_on(figures: Figures) -> dict[str, float]:
    return {name: why == ON for name, why in figures.status.parts.items()}


def _origins(revoked: RevokedStatus) -> dict[str, int]:
    counts = {
        name: getattr(revoked, name)
        for name in ("operator", "expired", "confirmed", "unproven", "would_clear")
    }
    return {name: count for name, count in counts.items() if count is not None}


def _limits_in_s(figures: Figures) -> dict[str, float]:
    children = [c.limit_in_s for c in figures.memory.children if c.limit_in_s is not None]
    soonest = {"main": figures.parent.limit_in_s, "child": min(children, default=None)}
    return {process: in_s for process, in_s in soonest.items() if in_s is not None}


#: All metrics, in the order in which they are scraped.
FAMILIES: tuple[Family, ...] = (
    Family(
        "info",
        "gauge",
        "Always 1; the labels say what runs.",
        ("worker", "version", "celery_version", "pool", "dry_run"),
        lambda f: ((_info(f.status), 1),),
    ),
    _by(
        "part",
        "gauge",
        "part_on",
        "1: this part of the guard is on.",
        _parts_on,
    ),
    _by(
        "part",
        "gauge",
        "part_consecutive_failures",
        "Failures of this part since its last success.",
        lambda f: f.status.consecutive_failures,
    ),
    _by(
        "part",
        "counter",
        "part_failures_total",
        "Failures of this part that were reported.",
        # From 0 on, so that the first one is an increase.
        lambda f: {**dict.fromkeys(f.status.parts, 0), **f.activity.part_failures},
    ),
    _one(
        "gauge",
        "ready",
        "1: the worker is connected, not stalled, not stopping, and a child is up.",
        lambda f: None if f.status.health is None else f.status.health.ready,
    ),
    _one("gauge", "revoked_set_ids", "Ids in the revoked set.", lambda f: f.revoked.total),
    _by(
        "origin",
        "gauge",
        "revoked_ids",
        "Ids in the revoked set, by origin.",
        lambda f: _origins(f.revoked),
    ),
    _total("revoked_tasks_cleared", "Ids cleared from the revoked set."),
    _by(
        "cause",
        "counter",
        "expired_tasks_total",
        "Messages that expired at this worker, by cause.",
        lambda f: asdict(f.revoked.expired_tasks),
    ),
    _by(
        "trigger",
        "counter",
        "cleanups_total",
        "Finished sweeps of the revoked set and cleanups of results, by what began them.",
        lambda f: f.activity.cleanups,
    ),
    _total("expired_results_deleted", "Results that this worker deleted."),
    _total("task_states_cleaned", "Keys to which this worker gave a TTL."),
    _total("broker_keys_cleaned", "Lists of control replies that this worker deleted."),
    _one(
        "gauge",
        "broker_replies_unread",
        "Lists of control replies that are deleted if nobody reads them.",
        lambda f: None if f.status.broker is None else f.status.broker.replies_unread,
    ),
    _one(
        "gauge",
        "broker_unacked_without_index",
        "Messages that the broker never delivers again.",
        lambda f: None if f.status.broker is None else f.status.broker.unacked_without_index,
    ),
    _total("children_recycled", "Children that were replaced."),
    _by(
        "oom",
        "counter",
        "children_killed_total",
        "Children that were killed, by whether the kernel did it for memory.",
        lambda f: f.activity.killed,
    ),
    _one(
        "gauge",
        "parent_memory_bytes",
        "Memory of the main process.",
        lambda f: f.parent.used_bytes,
    ),
    _one(
        "gauge",
        "parent_memory_limit_bytes",
        "worker_guard_parent_memory_limit.",
        lambda f: f.memory.parent_limit_bytes,
    ),
    _one(
        "gauge",
        "children",
        "Children whose memory was read.",
        lambda f: len(f.children_used_bytes),
    ),
    _one(
        "gauge",
        "children_memory_bytes",
        "Memory of all children together.",
        lambda f: sum(f.children_used_bytes),
    ),
    _one(
        "gauge",
        "child_memory_max_bytes",
        "Memory of the largest child.",
        lambda f: max(f.children_used_bytes, default=None),
    ),
    _one(
        "gauge",
        "child_memory_limit_bytes",
        "worker_guard_child_memory_limit.",
        lambda f: f.memory.child_limit_bytes,
    ),
    _by(
        "process",
        "gauge",
        "process_limit_seconds",
        "Seconds until the main process, or the first child, reaches its limit if it grows on.",
        _limits_in_s,
    ),
    _one(
        "gauge",
        "stalled",
        "1: messages wait, the consumer would take them, and none comes.",
        lambda f: None if f.status.stall is None else f.status.stall.stalled,
    ),
    _one(
        "gauge",
        "consumer_idle_seconds",
        "Time since the last message, or since the consumer could take one.",
        lambda f: None if f.status.stall is None else f.status.stall.idle_s,
    ),
    _by(
        "action",
        "counter",
        "stall_actions_total",
        "What the guard did about a stalled consumer or a main loop that hung.",
        lambda f: f.activity.stall_actions,
    ),
    _one(
        "gauge",
        "total_memory_bytes",
        "Memory of all processes of the worker, if there is a limit for it.",
        lambda f: f.memory.total_bytes,
    ),
    _one(
        "gauge",
        "total_memory_limit_bytes",
        "worker_guard_total_memory_limit.",
        lambda f: f.memory.total_limit_bytes,
    ),
    _one(
        "gauge",
        "redis_memory_ratio",
        "Used share of the memory of the result backend's Redis.",
        lambda f: f.status.redis_memory_share,
    ),
    _by(
        "alert",
        "gauge",
        "alert_active",
        "1: this alert is active.",
        lambda f: _alerts_active(f.status),
    ),
    _by(
        "alert",
        "gauge",
        "alert_threshold",
        "The threshold of this alert.",
        lambda f: f.status.alert_thresholds,
    ),
    _by(
        "alert",
        "counter",
        "alerts_raised_total",
        "How often this alert was raised.",
        lambda f: {**dict.fromkeys(f.status.alert_thresholds, 0), **f.activity.alerts_raised},
    ),
)
