"""An entry of Beat's schedule: how often it runs, and when its messages expire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from itertools import islice
from math import isfinite
from typing import Any

from celery import schedules
from celery.utils.time import maybe_iso8601

from worker_guard.commands.audit.beat_scheduler import BeatScheduler
from worker_guard.commands.audit.facts import BeatEntry, Malformed, Moment, When
from worker_guard.commands.audit.gaps import Gaps, crontab_gaps, gaps_between
from worker_guard.commands.audit.spelling import on_one_line
from worker_guard.values.durations import duration

#: The number of next runs from which the gaps of a dateutil rule are taken.
_RUNS = 400


def read_entry(
    app: Any, name: str, entry: Mapping[str, Any], *, source: str, scheduler: BeatScheduler
) -> BeatEntry:
    """The entry as this scheduler reads it."""
    given = entry.get("options")
    given = dict(given) if isinstance(given, Mapping) else {}
    options = scheduler.kept_options(given)
    in_database = scheduler.kind == "database"
    expires, ignored = _expires(entry, given, options, scheduler)
    ends = in_database and isinstance(entry.get("expires"), datetime)
    if ends:
        expires = entry["expires"]
    name_of_task = entry.get("task")
    task = app.tasks.get(name_of_task) if isinstance(name_of_task, str) else None
    # An explicit None overrides the task's own expiry, if Celery reads it.
    says = expires is not None or "expires" in options
    of_task = None if task is None or says else task.expires
    countdown = _countdown(options.get("countdown"))
    schedule = entry.get("schedule")
    interval_s = _fraction_s(schedule) if in_database else None
    return BeatEntry(
        name=name,
        task=str(name_of_task),
        source=source,
        schedule=_printed(schedule),
        gaps=gaps_of(schedule if interval_s is None else int(interval_s)),
        interval_s=interval_s,
        expires=when(expires if of_task is None else of_task),
        expires_option="expire_seconds" if in_database else "expires",
        expires_of_task=of_task is not None,
        ends_at_expires=ends,
        ignored_expires=ignored,
        ignored_options=tuple(key for key in given if key not in options and key != "expires"),
        has_options=bool(given),
        countdown_s=countdown if isinstance(countdown, float) else None,
        malformed_countdown=countdown if isinstance(countdown, str) else None,
        eta=when(options.get("eta")),
        task_id=None if options.get("task_id") is None else str(options["task_id"]),
    )


def _expires(
    entry: Mapping[str, Any],
    given: Mapping[str, Any],
    kept: Mapping[str, Any],
    scheduler: BeatScheduler,
) -> tuple[Any, tuple[str, When] | None]:
    """The expiry that counts, and one that this scheduler ignores."""
    seconds = given.get("expire_seconds")
    if scheduler.kind != "database":
        ignored = seconds if scheduler.kind in ("celery", "redbeat") else None
        return kept.get("expires"), _ignored("expire_seconds", ignored)
    counts = kept.get("expires") or _whole(seconds)
    if counts or seconds is not None:
        # DatabaseScheduler keeps 0, and reads it as no expiry.
        return counts or None, None if counts else _ignored("expire_seconds", seconds)
    if given.get("expires") is not None:
        return None, _ignored("expires", given["expires"])
    # Beside the options it is overwritten by theirs.
    return None, _ignored("expire_seconds", entry.get("expire_seconds"))


def _ignored(name: str, value: Any) -> tuple[str, When] | None:
    return None if value is None else (name, when(value))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and isfinite(value) else value


def when(value: Any) -> When:
    """A value of ``expires`` or ``eta``, as Celery reads it."""
    if value is None:
        return None
    if isinstance(value, int | float):
        # True and False too: Celery reads them as 1 s and 0 s.
        return Malformed(repr(value)) if _beyond_time(value) else float(value)
    moment = value
    if isinstance(value, str):
        try:
            moment = maybe_iso8601(value)
        except ValueError:
            return Malformed(repr(value))
    if not isinstance(moment, datetime):
        return Malformed(repr(value))
    naive = moment.utcoffset() is None
    aware = moment.replace(tzinfo=timezone.utc) if naive else moment
    ahead_s = (aware - datetime.now(timezone.utc)).total_seconds()
    return Moment(moment.isoformat(), ahead_s, naive)


def gaps_of(schedule: Any) -> Gaps | None:
    """The time between two runs of a schedule; None if it is not known."""
    interval_s = _interval_s(schedule)
    if interval_s is not None:
        return Gaps(interval_s, interval_s) if interval_s > 0 else None
    if isinstance(schedule, schedules.crontab):
        return crontab_gaps(
            minutes=schedule.minute,
            hours=schedule.hour,
            days_of_week=schedule.day_of_week,
            days_of_month=schedule.day_of_month,
            months=schedule.month_of_year,
        )
    if isinstance(schedule, schedules.solar):
        day_s = timedelta(days=1).total_seconds()
        return Gaps(day_s, day_s)
    # A redbeat schedule has a dateutil rule, which can be endless.
    runs = getattr(schedule, "rrule", None)
    return gaps_between(islice(runs, _RUNS)) if isinstance(runs, Iterable) else None


def _interval_s(schedule: Any) -> float | None:
    if isinstance(schedule, timedelta):
        return schedule.total_seconds()
    if isinstance(schedule, schedules.schedule):
        return float(schedule.seconds)
    return float(schedule) if isinstance(schedule, int | float) else None


def _fraction_s(schedule: Any) -> float | None:
    """The interval, if it is not a whole number of seconds."""
    interval_s = _interval_s(schedule)
    if interval_s is None or not isfinite(interval_s) or interval_s <= 0:
        return None
    return None if interval_s.is_integer() else interval_s


def _countdown(value: Any) -> float | str | None:
    """Seconds, or a text if Celery can't send the value: it adds a number to the present time."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not _beyond_time(value)
    return float(value) if is_number else repr(value)


def _beyond_time(seconds: float) -> bool:
    """Whether no date is so many seconds from now: infinite, or after the year 9999."""
    try:
        datetime.now(timezone.utc) + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return True
    return False


def _printed(schedule: Any) -> str:
    if isinstance(schedule, int | float):
        return f"every {duration(schedule)}"
    return on_one_line(schedule)
