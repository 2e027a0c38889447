"""Rules: entries and settings that Beat or a worker can't read."""

from __future__ import annotations

from collections.abc import Iterator

from worker_guard.commands.audit.facts import Facts
from worker_guard.commands.audit.finding import Finding

_HAPPENS = {
    "ends-beat": "Beat exits at its start because of this entry, and sends no other entry either.",
    "left-out": "Beat logs an error at its start, and skips this entry.",
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
    """An entry that Beat can't load."""
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
    """A setting with a value of a wrong type. The other settings are audited."""
    for one in facts.unreadable:
        yield Finding(
            level="error",
            subject=one.setting,
            happens="Celery can't read it, and the audit skipped what depends on it.",
            evidence={"reading_it_raises": one.says},
            change=f"correct {_written(facts, one.setting)}, or remove it to get its default",
        )


def _written(facts: Facts, settings: str) -> str:
    if settings.startswith("task "):
        return settings
    return ", ".join(facts.spelling.name(setting) for setting in settings.split(", "))
