"""Rules: messages that are delivered twice, or that wait where no other worker can take them."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import DeliveryFacts, Facts, Moment
from worker_guard.commands.audit.finding import Finding, Level
from worker_guard.commands.audit.rules.expiry import has_successors
from worker_guard.values.counts import some
from worker_guard.values.durations import duration

#: What Celery prefetches for each process by default.
_DEFAULT_MULTIPLIER = 4
#: A message is at risk if it can wait less than this for each message ahead of it.
_SLACK_S = 60.0


def visibility_timeout_short(facts: Facts) -> Iterator[Finding]:
    """A message that stays unacknowledged for longer than the visibility timeout."""
    timeout_s = facts.delivery.visibility_timeout_s
    if timeout_s is None:
        return
    certain = {name: s for name, s in _held_before_start(facts) if s > timeout_s}
    held = {**certain, **{name: s for name, s in _held_while_running(facts) if s > timeout_s}}
    if not held:
        return
    longest = sorted(held, key=lambda name: -held[name])
    wanted_s = max(held.values()) * 1.5
    yield Finding(
        level="error" if certain else "warning",
        subject="broker_transport_options",
        happens=f"A message that is not acknowledged within {duration(timeout_s)} is delivered "
        "again, and its task runs twice.",
        evidence={
            "transport": facts.delivery.transport,
            "visibility_timeout": duration(timeout_s),
            "held": some([f"{name} {duration(held[name])}" for name in longest]),
        },
        change=_set_visibility(facts, wanted_s),
    )


def _set_visibility(facts: Facts, wanted_s: float) -> str:
    setting = "broker_transport_options"
    if setting in facts.spelling.given:
        # Keep the other options.
        return f'{facts.spelling.name(setting)}["visibility_timeout"] = {wanted_s:.0f}'
    return facts.spelling.line(setting, f'{{"visibility_timeout": {wanted_s:.0f}}}')


def _held_before_start(facts: Facts) -> Iterator[tuple[str, float]]:
    """How long messages are held until their tasks may begin, by source."""
    for entry in facts.entries:
        if entry.countdown_s is not None:
            yield f"countdown of Beat entry {entry.name}", entry.countdown_s
        if isinstance(entry.eta, Moment):
            yield f"eta of Beat entry {entry.name}", entry.eta.ahead_s


def _held_while_running(facts: Facts) -> Iterator[tuple[str, float]]:
    """How long messages can be held at most, by source."""
    for task in facts.tasks:
        if task.retry_delay_s is not None:
            yield f"longest retry delay of task {task.name}", task.retry_delay_s
        # With early acknowledgement the message is gone while the task runs.
        if task.acks_late and task.time_limit_s is not None:
            yield f"time limit of task {task.name}", task.time_limit_s


def prefetch_outlasts_expires(facts: Facts) -> Iterator[Finding]:
    """Messages that expire in one worker while another worker is idle."""
    conf = facts.delivery
    # It does no harm if runs of a frequent entry expire: the next one follows.
    usual = 0 < conf.prefetch_multiplier <= _DEFAULT_MULTIPLIER
    entries = [e for e in facts.entries if not (usual and has_successors(e))]
    expiring = {f"Beat entry {e.name}": e.expires for e in entries}
    expiring |= {f"task {t.name}": t.expires for t in facts.tasks}
    lives = {name: life for name, life in expiring.items() if isinstance(life, float) and life > 0}
    if not lives or conf.prefetch_disabled or conf.prefetch_multiplier == 1:
        return
    shortest = min(lives, key=lambda name: lives[name])
    limit_s = _longest_limit_s(facts)
    level, happens = _prefetch(conf, lives[shortest], limit_s)
    if level is None:
        return
    known = {} if limit_s is None else {"longest_time_limit": duration(limit_s)}
    yield Finding(
        level=level,
        subject="worker_prefetch_multiplier",
        happens=happens,
        evidence={
            "worker_prefetch_multiplier": conf.prefetch_multiplier,
            "expires": f"{duration(lives[shortest])}, of {shortest}",
            **known,
        },
        change=facts.spelling.line("worker_prefetch_multiplier", "1"),
    )


def _prefetch(
    conf: DeliveryFacts, expires_s: float, limit_s: float | None
) -> tuple[Level | None, str]:
    ahead = conf.prefetch_multiplier
    if ahead == 0:
        return "warning", (
            "One worker takes every waiting message; those behind its running tasks expire there "
            "while other workers are idle."
        )
    if expires_s / ahead < _SLACK_S:
        return "warning" if ahead > _DEFAULT_MULTIPLIER else "note", (
            f"Up to {ahead} messages for each process wait in one worker; if each takes more than "
            f"{duration(expires_s / ahead)}, the last expires while other workers are idle."
        )
    if limit_s is not None and limit_s >= expires_s:
        return "note", (
            f"A message prefetched behind a task that may run for {duration(limit_s)} expires "
            f"after {duration(expires_s)}, while other workers are idle."
        )
    return None, ""


def _longest_limit_s(facts: Facts) -> float | None:
    limits = [task.time_limit_s for task in facts.tasks if task.time_limit_s is not None]
    return max(limits, default=None)
