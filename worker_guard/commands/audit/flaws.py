"""Whether Beat can load an entry of the configuration, and send it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from celery.beat import ScheduleEntry

from worker_guard.commands.audit.beat_scheduler import BeatScheduler
from worker_guard.commands.audit.facts import Flaw

_OTHERS = ("redbeat", "django_celery_beat")


def flaw_of(app: Any, name: str, entry: Any, scheduler: BeatScheduler) -> Flaw | None:
    """The flaw of this entry of ``beat_schedule``, or None.

    This creates the entry as the scheduler does, but stores it nowhere. It does not check entries
    for an application's own scheduler, which can have other keys.
    """
    if scheduler.kind == "database":
        return _of_database(entry, scheduler)
    return None if scheduler.kind == "other" else _of_celery(app, name, entry, scheduler)


def _of_celery(app: Any, name: str, entry: Any, scheduler: BeatScheduler) -> Flaw | None:
    in_redis = scheduler.kind == "redbeat"
    try:
        given = dict(entry)
        # redbeat knows this key. With Celery's scheduler, Beat's command line can name another one.
        if any(map(find_spec, _OTHERS)):
            given.pop("enabled", None)
        made = ScheduleEntry(**{**given, "name": name, "app": app})
    except Exception as exc:  # noqa: BLE001 - any error that Beat would raise
        # redbeat continues with the other entries, unless it has this one already.
        return _flaw("left-out" if in_redis else "ends-beat", exc)
    try:
        if in_redis:
            _store_in_redis(made)
    except Exception as exc:  # noqa: BLE001 - the same
        return _flaw("ends-beat", exc)
    return _of_made(made, given)


def _of_made(made: ScheduleEntry, given: Mapping[str, Any]) -> Flaw | None:
    if not callable(getattr(made.schedule, "is_due", None)):
        return Flaw("ends-beat", f"the schedule is {given.get('schedule')!r}")
    if not isinstance(made.task, str) or not made.task:
        return Flaw("no-task", f"the task is {made.task!r}")
    if not isinstance(made.options, Mapping):
        return Flaw("never-sent", f"the options are {made.options!r}")
    return None


def _flaw(kind: Any, exc: Exception) -> Flaw:
    return Flaw(kind, " ".join(f"{type(exc).__name__}: {exc}".split()))


def _store_in_redis(made: ScheduleEntry) -> None:
    from redbeat.decoder import RedBeatJSONEncoder

    stored = ("task", "args", "kwargs", "options", "schedule")
    json.dumps({name: getattr(made, name) for name in stored}, cls=RedBeatJSONEncoder)


def _of_database(entry: Any, scheduler: BeatScheduler) -> Flaw | None:
    """The flaw that DatabaseScheduler finds at its start; it continues with the other entries."""
    try:
        fields = dict(entry)
        task = fields.get("task", "")
        _store_in_database(scheduler, **fields)
    except Exception as exc:  # noqa: BLE001 - any error that Beat would raise
        return _flaw("left-out", exc)
    return None if task else Flaw("no-task", "the task is ''")


def _store_in_database(
    scheduler: BeatScheduler,
    schedule: Any,
    args: Any = None,
    kwargs: Any = None,
    relative: Any = None,  # noqa: ARG001 - known and ignored
    options: Any = None,
    **fields: Any,
) -> None:
    """Do what ``ModelEntry.from_entry`` does, without the database."""
    from celery.schedules import maybe_schedule
    from django.core.exceptions import FieldDoesNotExist
    from django.db import connection, models
    from django_celery_beat.models import PeriodicTask
    from django_celery_beat.schedulers import ModelEntry
    from kombu.utils.json import dumps

    made = maybe_schedule(schedule)
    if not any(isinstance(made, kind) for kind, _, _ in ModelEntry.model_schedules):
        raise ValueError(f"Cannot convert schedule type {made!r} to model")
    dumps(args or [])
    dumps(kwargs or {})
    entry_class = getattr(scheduler.cls, "Entry", ModelEntry)
    columns = {**fields, **entry_class._unpack_options(**options or {})}
    if columns.get("expires") and columns.get("expire_seconds") is not None:
        raise ValueError("Only one can be set, in expires and expire_seconds")
    for name, value in columns.items():
        try:
            column: Any = PeriodicTask._meta.get_field(name)
        except FieldDoesNotExist:
            raise TypeError(f"Invalid field name for model PeriodicTask: {name!r}") from None
        if value is None and not column.null:
            raise ValueError(f"{name} can't be None")
        stored = column.get_db_prep_save(value, connection)
        if isinstance(column, models.PositiveIntegerField) and stored is not None and stored < 0:
            raise ValueError(f"{name} can't be {value!r}")
