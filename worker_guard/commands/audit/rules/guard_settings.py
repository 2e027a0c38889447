"""Rules: the guard itself, and a revoked set that only the guard would clear."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts
from worker_guard.commands.audit.finding import Finding
from worker_guard.values.counts import some
from worker_guard.values.sizes import size

_ADD = 'app.steps["worker"].add(WorkerGuard)'

_CHILD_LIMIT = "worker_guard_child_memory_limit"
_TOTAL_LIMIT = "worker_guard_total_memory_limit"
_METRICS_PORT = "worker_guard_metrics_port"
_HEARTBEAT_FILE = "worker_guard_heartbeat_file"

_OF_RESULTS = {
    "worker_guard_results_schedule",
    "worker_guard_results_max_age",
    "worker_guard_state_patterns",
}
_OF_BROKER = {"worker_guard_broker_schedule"}
_OF_REDIS_MEMORY = {"worker_guard_alert_redis_memory"}
_OF_CHILDREN = {
    _CHILD_LIMIT,
    _TOTAL_LIMIT,
    "worker_guard_recycle_concurrency",
    "worker_guard_recycle_min_lifetime",
    "worker_guard_alert_recycles_per_hour",
}
_OF_RECYCLING = {"worker_guard_recycle_concurrency", "worker_guard_recycle_min_lifetime"}


def statedb_without_guard(facts: Facts) -> Iterator[Finding]:
    """A revoked set that outlives restarts, without a guard that clears it."""
    guard = facts.guard
    if facts.statedb is None or (guard.installed and guard.enabled):
        return
    yield Finding(
        level="warning",
        subject="worker_state_db",
        happens="Ids that only expiry revoked survive each restart, and workers discard a task "
        "that reuses one.",
        evidence={
            "worker_state_db": facts.statedb,
            "WorkerGuard": "disabled" if guard.installed else "not in the app's steps",
        },
        change=facts.spelling.line("worker_guard_enabled", "True") if guard.installed else _ADD,
    )


def guard_not_installed(facts: Facts) -> Iterator[Finding]:
    """A guard that is not installed, perhaps with settings for it."""
    if facts.guard.installed:
        return
    given = sorted(facts.guard.given)
    yield Finding(
        level="warning" if given else "note",
        subject="WorkerGuard",
        happens="The workers of this app run without the guard"
        + (", and its settings have no effect." if given else "."),
        evidence={"settings": some(given)} if given else {},
        change=_ADD,
    )


def guard_settings_rejected(facts: Facts) -> Iterator[Finding]:
    """A setting with which the worker does not start."""
    if facts.guard.rejected is None:
        return
    yield Finding(
        level="error" if facts.guard.installed else "warning",
        subject="worker_guard settings",
        happens="The worker does not start."
        if facts.guard.installed
        else "The worker will not start once the guard is added.",
        evidence={"worker_says": facts.guard.rejected},
        change="correct the setting that it names, or remove it to get its default",
    )


def guard_changes_nothing(facts: Facts) -> Iterator[Finding]:
    """A guard that is switched off, or that only watches."""
    guard = facts.guard
    if not guard.installed or (guard.enabled and not guard.dry_run):
        return
    setting, value = (
        ("worker_guard_dry_run", False) if guard.enabled else ("worker_guard_enabled", True)
    )
    yield Finding(
        level="note",
        subject=setting,
        happens="The guard measures and logs, and changes nothing."
        if guard.enabled
        else "The guard is installed, and does nothing.",
        evidence={setting: not value},
        change=facts.spelling.line(setting, str(value)),
    )


def guard_setting_without_effect(facts: Facts) -> Iterator[Finding]:
    """A setting of a part that is off in this app."""
    guard, spelling = facts.guard, facts.spelling
    if not guard.installed:
        return
    of_results = sorted(guard.given & _OF_RESULTS)
    if of_results and not facts.results.is_redis:
        yield _no_effect(
            of_results,
            "the results part is off, because it needs a Redis result backend",
            {"result_backend": facts.results.backend},
            spelling.line("result_backend", '"redis://…"'),
        )
    of_broker = sorted(guard.given & _OF_BROKER)
    if of_broker and not facts.delivery.broker_is_redis:
        yield _no_effect(
            of_broker,
            "the broker part is off, because it needs a Redis broker",
            {"transport": facts.delivery.transport},
            spelling.line("worker_guard_broker_schedule", "None"),
        )
    of_redis_memory = sorted(guard.given & _OF_REDIS_MEMORY)
    if of_redis_memory and not facts.results.is_redis:
        yield _no_effect(
            of_redis_memory,
            "the alert is off, because it watches the Redis of the result backend",
            {"result_backend": facts.results.backend},
            spelling.line("worker_guard_alert_redis_memory", "None"),
        )
    of_children = sorted(guard.given & _OF_CHILDREN)
    if of_children and not facts.has_children:
        yield _no_effect(
            of_children,
            f"the pool {facts.pool} has no children to recycle",
            {"worker_pool": facts.pool},
            spelling.line("worker_pool", '"prefork"')
            + f", or {spelling.name('worker_guard_parent_memory_limit')}",
        )
    of_recycling = sorted(guard.given & _OF_RECYCLING)
    if of_recycling and facts.has_children and not guard.given & {_CHILD_LIMIT, _TOTAL_LIMIT}:
        yield _no_effect(
            of_recycling,
            "without a limit no child is recycled",
            {_CHILD_LIMIT: None, _TOTAL_LIMIT: None},
            spelling.line(_CHILD_LIMIT, '"400MB"'),
        )
    child_bytes = facts.memory.guard_child_limit_bytes
    total_bytes = facts.memory.guard_total_limit_bytes
    if facts.has_children and child_bytes and total_bytes and child_bytes >= total_bytes:
        yield _no_effect(
            [_CHILD_LIMIT],
            "the worker reaches its total limit before a child reaches this one",
            {_CHILD_LIMIT: size(child_bytes), _TOTAL_LIMIT: size(total_bytes)},
            spelling.line(_CHILD_LIMIT, f'"{total_bytes // 4 // 1024**2}MiB"'),
        )
    yield from _needed_setting_missing(facts)
    if guard.parent_action != "log" and not guard.parent_limit:
        yield _no_effect(
            ["worker_guard_parent_action"],
            "the main process has no memory limit",
            {"worker_guard_parent_memory_limit": None},
            spelling.line("worker_guard_parent_memory_limit", '"1GB"'),
        )


def _needed_setting_missing(facts: Facts) -> Iterator[Finding]:
    """Settings that only shape what another setting switches on."""
    given = facts.guard.given
    for setting, needed, why, value in (
        ("worker_guard_metrics_host", _METRICS_PORT, "without a port nothing listens", "9808"),
        (
            "worker_guard_heartbeat_interval",
            _HEARTBEAT_FILE,
            "without a path no heartbeat is written",
            '"/run/worker/%n.json"',
        ),
    ):
        if setting in given and needed not in given:
            line = facts.spelling.line(needed, value)
            yield _no_effect([setting], why, {needed: None}, line)


def _no_effect(settings: list[str], why: str, evidence: dict[str, object], change: str) -> Finding:
    return Finding(
        level="warning",
        subject=some(settings),
        happens=f"It has no effect: {why}.",
        evidence=evidence,
        change=change,
    )
