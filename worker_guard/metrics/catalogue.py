"""The catalogue: every metric of the guard, from plain values. Pure: no I/O, no clock.

Labels are bounded: origins, parts, alerts, causes and triggers, which are fixed sets. No task, no
task's name and no process is a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from worker_guard.events import AlertRaised, CleanupCompleted, Event, PartFailed, Trigger

PREFIX = "worker_guard_"

Sample = tuple[Mapping[str, str], float]
"""Labels and a value."""


#: What can begin a sweep in a worker's main process; the task runs in the pool.
_TRIGGERS: tuple[Trigger, ...] = ("timer", "schedule", "control")


@dataclass
class Tally:
    """Counts what the guard told since its start."""

    part_failures: Counter[str] = field(default_factory=Counter)
    cleanups: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_TRIGGERS, 0)))
    alerts_raised: Counter[str] = field(default_factory=Counter)

    def note(self, event: Event) -> None:
        """An event was reported."""
        if isinstance(event, PartFailed):
            self.part_failures[event.part] += 1
        elif isinstance(event, CleanupCompleted):
            self.cleanups[event.trigger] += 1
        elif isinstance(event, AlertRaised):
            self.alerts_raised[event.alert] += 1


@dataclass(frozen=True, kw_only=True)
class AlertFigures:
    """One alert that is switched on."""

    threshold: float
    active: bool


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the guard of one worker knows at one moment. None: not known, or there is no limit."""

    info: Mapping[str, str]
    parts: Mapping[str, bool]
    consecutive_failures: Mapping[str, int]
    tally: Tally
    revoked_set_ids: int
    revoked: Mapping[str, int]
    expired: Mapping[str, int]
    totals: Mapping[str, int]
    parent_used_bytes: int | None
    parent_limit_bytes: int | None
    children_used_bytes: Sequence[int]
    child_limit_bytes: int | None
    alerts: Mapping[str, AlertFigures]
    redis_memory_share: float | None


def figures_of(
    described: Mapping[str, Any],
    *,
    info: Mapping[str, str],
    tally: Tally,
    expired: Mapping[str, int],
    alerts: Mapping[str, AlertFigures],
    redis_memory_share: float | None,
) -> Figures:
    """The figures of what ``inspect guard`` answers, and of what it does not hold."""
    memory: Mapping[str, Any] = described["memory"] or {}
    parent: Mapping[str, Any] = memory.get("parent") or {}
    children = [child["used_bytes"] for child in memory.get("children", ())]
    revoked = {name: n for name, n in described["revoked"].items() if n is not None}
    total = revoked.pop("total")
    for not_an_origin in ("stamps", "clearing", "next_clear_s"):
        revoked.pop(not_an_origin, None)
    return Figures(
        info=info,
        parts={name: state == "on" for name, state in described["parts"].items()},
        consecutive_failures=described["consecutive_failures"],
        tally=tally,
        revoked_set_ids=total,
        revoked=revoked,
        expired=expired,
        totals=described["totals"],
        parent_used_bytes=parent.get("used_bytes"),
        parent_limit_bytes=memory.get("parent_limit_bytes"),
        children_used_bytes=[used for used in children if used is not None],
        child_limit_bytes=memory.get("child_limit_bytes"),
        alerts=alerts,
        redis_memory_share=redis_memory_share,
    )


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
    """A metric without labels; without a sample where its value is not known."""

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
    return _one("counter", f"{name}_total", text, lambda f: f.totals[name])


#: All metrics, in the order in which they are scraped.
FAMILIES: tuple[Family, ...] = (
    Family(
        "info",
        "gauge",
        "Always 1; the labels say what runs.",
        ("worker", "version", "celery_version", "pool", "dry_run"),
        lambda f: ((f.info, 1),),
    ),
    _by("part", "gauge", "part_on", "1: this part of the guard is on.", lambda f: f.parts),
    _by(
        "part",
        "gauge",
        "part_consecutive_failures",
        "Failures of this part since its last success.",
        lambda f: f.consecutive_failures,
    ),
    _by(
        "part",
        "counter",
        "part_failures_total",
        "Failures of this part that were reported.",
        # From 0 on, so that the first one is an increase.
        lambda f: {**dict.fromkeys(f.parts, 0), **f.tally.part_failures},
    ),
    _one("gauge", "revoked_set_ids", "Ids in the revoked set.", lambda f: f.revoked_set_ids),
    _by(
        "origin",
        "gauge",
        "revoked_ids",
        "Ids in the revoked set that the guard holds back or will clear, by their origin.",
        lambda f: f.revoked,
    ),
    _total("revoked_tasks_cleared", "Ids cleared from the revoked set on proof."),
    _by(
        "cause",
        "counter",
        "expired_tasks_total",
        "Messages that expired at this worker, by the cause.",
        lambda f: f.expired,
    ),
    _by(
        "trigger",
        "counter",
        "cleanups_total",
        "Sweeps that came to their end, of the revoked set and of results, by what began them.",
        lambda f: f.tally.cleanups,
    ),
    _total("expired_results_deleted", "Results that this worker deleted."),
    _total("task_states_cleaned", "Keys to which this worker gave a lifetime."),
    _total("children_recycled", "Children that were replaced."),
    _one(
        "gauge", "parent_memory_bytes", "Memory of the main process.", lambda f: f.parent_used_bytes
    ),
    _one(
        "gauge",
        "parent_memory_limit_bytes",
        "worker_guard_parent_memory_limit.",
        lambda f: f.parent_limit_bytes,
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
        lambda f: f.child_limit_bytes,
    ),
    _one(
        "gauge",
        "redis_memory_ratio",
        "Used share of the memory of the result backend's Redis.",
        lambda f: f.redis_memory_share,
    ),
    _by(
        "alert",
        "gauge",
        "alert_active",
        "1: this alert is active.",
        lambda f: {name: alert.active for name, alert in f.alerts.items()},
    ),
    _by(
        "alert",
        "gauge",
        "alert_threshold",
        "The threshold of this alert.",
        lambda f: {name: alert.threshold for name, alert in f.alerts.items()},
    ),
    _by(
        "alert",
        "counter",
        "alerts_raised_total",
        "How often this alert was raised.",
        lambda f: {**dict.fromkeys(f.alerts, 0), **f.tally.alerts_raised},
    ),
)
