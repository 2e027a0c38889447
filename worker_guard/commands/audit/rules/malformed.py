"""Rules: what Beat or a worker can't even read."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts
from worker_guard.commands.audit.finding import Finding

_HAPPENS = {
    "ends-beat": "Beat ends at its start over this entry, and sends none of the others either.",
    "left-out": "Beat logs an error at its start, and leaves this entry out.",
    "no-task": "Beat sends messages that name no task, and workers discard them.",
    "never-sent": "Beat logs an error at each run and sends nothing.",
}
_CHANGE = {
    "ends-beat": '{{"task": …, "schedule": seconds, timedelta or crontab, "args": …, "kwargs": …, '
    '"options": {{"{expires}": …}}}}',
    "left-out": '{{"task": …, "schedule": seconds, timedelta or crontab, "args": …, "kwargs": …, '
    '"options": {{"{expires}": …}}}}',
    "no-task": '{schedule}["{name}"]["task"] = "the task\'s full name"',
    "never-sent": '{schedule}["{name}"]["options"] = {{}}',
}


def entry_not_loadable(facts: Facts) -> Iterator[Finding]:
    """An entry that is not what Beat makes entries of."""
    for entry in facts.entries:
        if entry.flaw is None:
            continue
        yield Finding(
            level="error",
            subject=f"Beat entry {entry.name}",
            happens=_HAPPENS[entry.flaw.kind],
            evidence={"beat_says": entry.flaw.says},
            change=_CHANGE[entry.flaw.kind].format(
                name=entry.name,
                schedule=facts.spelling.name("beat_schedule"),
                expires=entry.expires_option,
            ),
        )


def setting_not_readable(facts: Facts) -> Iterator[Finding]:
    """A setting of another kind than Celery's; the rest is audited."""
    for one in facts.unreadable:
        yield Finding(
            level="error",
            subject=one.setting,
            happens="Celery can't read it either, and what depends on it was not audited.",
            evidence={"reading_it_raises": one.says},
            change=f"correct {_written(facts, one.setting)}, or remove it to get its default",
        )


def _written(facts: Facts, settings: str) -> str:
    if settings.startswith("task "):
        return settings
    return ", ".join(facts.spelling.name(setting) for setting in settings.split(", "))
