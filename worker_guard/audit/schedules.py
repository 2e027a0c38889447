"""Beat's schedule, from wherever it is kept. Nothing is written, and no scheduler is made.

A scheduler of redbeat or django-celery-beat writes when it is made; so their entries are read by
their models, and Beat's own schedule file is left alone: it holds when entries last ran.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from itertools import islice
from typing import Any

from celery import schedules
from celery.utils.time import maybe_iso8601
from redis.exceptions import RedisError

from worker_guard.audit.facts import BeatEntry, Moment, Odd, When
from worker_guard.audit.gaps import Gaps, crontab_gaps, gaps_between
from worker_guard.audit.loading import flaw_of
from worker_guard.reporting import masked

#: Seconds that a server of schedules has to answer.
TIMEOUT_S = 5.0

#: A rule's gaps are taken from so many of its next runs.
_RUNS = 400


def read_entries(app: Any) -> tuple[list[BeatEntry], list[str]]:
    """All entries, and a line for each schedule that could not be read."""
    entries = {str(name): entry for name, entry in dict(app.conf.beat_schedule or {}).items()}
    found = [_configured(app, name, entry) for name, entry in entries.items()]
    unread: list[str] = []
    for store, read in (("redbeat", _of_redbeat), ("django-celery-beat", _of_django)):
        # At its start Beat writes the configuration's entries over those of the same name.
        kept = _kept(app, store, read, unread)
        found += [entry for entry in kept if entry.name not in entries]
    return found, unread


def _configured(app: Any, name: str, entry: Any) -> BeatEntry:
    """An entry of the configuration; one that is no mapping has nothing but its flaw."""
    flaw = flaw_of(app, name, entry)
    try:
        given = dict(entry)
    except (TypeError, ValueError):
        given = {}
    read = _entry(app, name, given, source="beat_schedule")
    return read if flaw is None else replace(read, flaw=flaw, gaps=None)


def _kept(
    app: Any, store: str, read: Callable[[Any], Iterator[BeatEntry]], unread: list[str]
) -> list[BeatEntry]:
    try:
        return list(read(app))
    except Exception as exc:  # noqa: BLE001 - the rest of the audit is worth having
        reason = " ".join(str(exc).split()) or type(exc).__name__
        unread.append(masked(f"{store}: {reason}"))
        return []


def when(value: Any) -> When:
    """A value of ``expires`` or ``eta``, as Celery takes it."""
    if value is None:
        return None
    if isinstance(value, int | float):
        # True and False too, which Celery takes for 1 s and 0 s.
        return Odd(repr(value)) if _beyond_time(value) else float(value)
    moment = value
    if isinstance(value, str):
        try:
            moment = maybe_iso8601(value)
        except ValueError:
            return Odd(repr(value))
    if not isinstance(moment, datetime):
        return Odd(repr(value))
    naive = moment.utcoffset() is None
    aware = moment.replace(tzinfo=timezone.utc) if naive else moment
    ahead_s = (aware - datetime.now(timezone.utc)).total_seconds()
    return Moment(moment.isoformat(), ahead_s, naive)


def gaps_of(schedule: Any) -> Gaps | None:
    """The time between two runs of a schedule; None where it can't be told."""
    if isinstance(schedule, timedelta):
        schedule = schedule.total_seconds()
    if isinstance(schedule, schedules.schedule):
        schedule = schedule.seconds
    if isinstance(schedule, int | float):
        return Gaps(float(schedule), float(schedule)) if schedule > 0 else None
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
    # redbeat's; it keeps a dateutil rule, which can go on for ever.
    runs = getattr(schedule, "rrule", None)
    return gaps_between(islice(runs, _RUNS)) if isinstance(runs, Iterable) else None


def _entry(app: Any, name: str, entry: Mapping[str, Any], *, source: str) -> BeatEntry:
    options = entry.get("options")
    options = dict(options) if isinstance(options, Mapping) else {}
    name_of_task = entry.get("task")
    task = app.tasks.get(name_of_task) if isinstance(name_of_task, str) else None
    countdown = _countdown(options.get("countdown"))
    of_task = None if task is None or "expires" in options else task.expires
    return BeatEntry(
        name=name,
        task=str(name_of_task),
        source=source,
        schedule=_printed(entry.get("schedule")),
        gaps=gaps_of(entry.get("schedule")),
        expires=when(options.get("expires") if of_task is None else of_task),
        expires_of_task=of_task is not None,
        countdown_s=countdown if isinstance(countdown, float) else None,
        countdown_odd=countdown if isinstance(countdown, str) else None,
        eta=when(options.get("eta")),
        task_id=None if options.get("task_id") is None else str(options["task_id"]),
        ends_at_expires=source == "django-celery-beat",
    )


def _of_redbeat(app: Any) -> Iterator[BeatEntry]:
    """The entries that redbeat keeps in Redis, where it is installed."""
    if not find_spec("redbeat"):
        return
    named = "redbeat" in str(app.conf.beat_scheduler).lower()
    named = named or bool(app.conf.get("redbeat_redis_url"))
    if not (named or _has_redis_broker(app)):
        return
    try:
        definitions = _redbeat_definitions(app)
    except RedisError:
        if named:
            raise
        # It is only installed; nothing says that this Redis, the broker's, has a schedule.
        return
    for entry in definitions:
        if entry.get("enabled", True):
            yield _entry(app, str(entry["name"]), entry, source="redbeat")


def _has_redis_broker(app: Any) -> bool:
    # Beat's command line can name redbeat, which then falls back on the broker.
    with app.connection_for_read() as connection:
        return connection.transport_cls in ("redis", "rediss")


def _redbeat_definitions(app: Any) -> list[dict[str, Any]]:
    from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis

    with _quietly():
        key = ensure_conf(app).schedule_key
        # Without redbeat's own retries, which can go on for ever.
        client = get_redis(app)
        client = getattr(client, "wrapped_connection", client)
        pool = getattr(client, "connection_pool", None)
        if pool is not None:
            pool.connection_kwargs.setdefault("socket_timeout", TIMEOUT_S)
            pool.connection_kwargs.setdefault("socket_connect_timeout", TIMEOUT_S)
        raw = [client.hget(name, "definition") for name in client.zrange(key, 0, -1)]
    return [RedBeatSchedulerEntry.decode_definition(one) for one in raw if one]


def _of_django(app: Any) -> Iterator[BeatEntry]:
    """The enabled entries of django-celery-beat, where the app's Django project has it."""
    # Imported already where the app is a Django project's, by Celery's own fixup.
    if "django" not in sys.modules or not find_spec("django_celery_beat"):
        return
    from django.apps import apps
    from django.db import connections

    if not apps.ready or not apps.is_installed("django_celery_beat"):
        return
    from django_celery_beat.models import PeriodicTask

    kinds = ("interval", "crontab", "solar", "clocked")
    try:
        rows = list(PeriodicTask.objects.filter(enabled=True).select_related(*kinds))
    finally:
        connections.close_all()
    for row in rows:
        entry = {
            "task": row.task,
            "schedule": row.schedule if row.scheduler is not None else None,
            "options": {"expires": row.expires_} if row.expires_ else {},
        }
        yield _entry(app, row.name, entry, source="django-celery-beat")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what redbeat says about its own settings out of the audit's output."""
    logger = logging.getLogger("celery.beat")
    was = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was


def _countdown(value: Any) -> float | str | None:
    """Seconds; as text what Celery can't send: it adds a number to the present time."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not _beyond_time(value)
    return float(value) if is_number else repr(value)


def _beyond_time(seconds: float) -> bool:
    """Whether so many seconds from now are no point in time: infinite, or after the year 9999."""
    try:
        datetime.now(timezone.utc) + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return True
    return False


def _printed(schedule: Any) -> str:
    if isinstance(schedule, int | float):
        return f"every {schedule:g} s"
    return str(schedule)
