"""Whether Beat can begin with an entry of the configuration, and send it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from celery.beat import ScheduleEntry

from worker_guard.audit.facts import Flaw

_OTHERS = ("redbeat", "django_celery_beat")


def flaw_of(app: Any, name: str, entry: Any) -> Flaw | None:
    """What is wrong with this entry of ``beat_schedule``; None: nothing.

    An entry is made of it as Beat does. Schedulers that are not Celery's have entries of their own,
    with other keys, of which nothing is said here.
    """
    if not str(app.conf.beat_scheduler).startswith("celery.beat"):
        return None
    try:
        given = dict(entry)
        # Beat's command line can name another scheduler; this key is what they share.
        if any(map(find_spec, _OTHERS)):
            given.pop("enabled", None)
        made = ScheduleEntry(**{**given, "name": name, "app": app})
    except Exception as exc:  # noqa: BLE001 - what Beat would raise, whatever it is
        return Flaw("ends-beat", f"{type(exc).__name__}: {exc}")
    if not callable(getattr(made.schedule, "is_due", None)):
        return Flaw("ends-beat", f"the schedule is {given.get('schedule')!r}")
    if not isinstance(made.task, str) or not made.task:
        return Flaw("no-task", f"the task is {made.task!r}")
    if not isinstance(made.options, Mapping):
        return Flaw("never-sent", f"the options are {made.options!r}")
    return None
