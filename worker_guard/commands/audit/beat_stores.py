"""Reads Beat's schedule from its store. Writes nothing, and creates no scheduler.

The schedulers of redbeat and django-celery-beat write when they are created, so their entries are
read through their models. Beat's own schedule file is not read: it has only times of last runs.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from redis.exceptions import RedisError

from worker_guard.commands.audit.beat_entries import read_entry
from worker_guard.commands.audit.beat_scheduler import (
    IN_WORDS,
    NAMES,
    OF_STORES,
    BeatScheduler,
    scheduler_of,
)
from worker_guard.commands.audit.facts import BeatEntry, StoredEntries
from worker_guard.commands.audit.flaws import flaw_of
from worker_guard.values.masking import masked

#: Seconds within which the server of a store must answer.
TIMEOUT_S = 5.0

#: DatabaseScheduler adds this entry itself, so it does not count as an entry of the user.
_CELERYS_OWN = "celery.backend_cleanup"


@dataclass(frozen=True)
class BeatSchedule:
    """All entries that Beat runs, and the stores that it does not read."""

    entries: list[BeatEntry] = field(default_factory=list)
    #: The scheduler, in words.
    scheduler: str = IN_WORDS["celery"]
    stored: tuple[StoredEntries, ...] = ()
    #: A line for each store that could not be read.
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """An entry of a store, in the form of an entry of ``beat_schedule``."""

    name: str
    entry: Mapping[str, Any]
    enabled: bool


def read_schedule(app: Any) -> BeatSchedule:
    """The entries of the configuration, and of the store that the scheduler reads."""
    scheduler = scheduler_of(app)
    unread: list[str] = []
    rows = {
        store: _read_rows(app, store, read, scheduler, unread)
        for store, read in (("django-celery-beat", _django_rows), ("redbeat", _redbeat_rows))
    }
    for store, kept in rows.items():
        if kept and scheduler.kind == "celery":
            scheduler = scheduler.taken_for(OF_STORES[store])
    configured = {str(name): entry for name, entry in dict(app.conf.beat_schedule or {}).items()}
    own = next((kept for store, kept in rows.items() if OF_STORES[store] == scheduler.kind), [])
    return BeatSchedule(
        entries=_entries(app, scheduler, configured, own),
        scheduler=IN_WORDS[scheduler.kind],
        stored=tuple(_not_run(scheduler, rows)),
        unread=unread,
    )


def _entries(
    app: Any, scheduler: BeatScheduler, configured: Mapping[str, Any], rows: list[_Row]
) -> list[BeatEntry]:
    # The database keeps an entry disabled; redbeat reads that from the configuration.
    off = {row.name for row in rows if not row.enabled and scheduler.kind == "database"}
    found = [
        _configured(app, name, entry, scheduler)
        for name, entry in configured.items()
        if name not in off and not _is_switched_off(entry, scheduler)
    ]
    source = {kind: store for store, kind in OF_STORES.items()}.get(scheduler.kind, "")
    # At its start Beat overwrites stored entries with those of the same name in the configuration.
    return found + [
        read_entry(app, row.name, row.entry, source=source, scheduler=scheduler)
        for row in rows
        if row.enabled and row.name not in configured
    ]


def _configured(app: Any, name: str, entry: Any, scheduler: BeatScheduler) -> BeatEntry:
    """An entry of the configuration. If Beat can never send it, only its flaw is read."""
    flaw = flaw_of(app, name, entry, scheduler)
    if flaw is not None:
        task = entry.get("task") if isinstance(entry, Mapping) else None
        return BeatEntry(
            name=name,
            task=str(task),
            schedule="",
            gaps=None,
            flaw=flaw,
            expires_option="expire_seconds" if scheduler.kind == "database" else "expires",
        )
    return read_entry(app, name, dict(entry), source="beat_schedule", scheduler=scheduler)


def _is_switched_off(entry: Any, scheduler: BeatScheduler) -> bool:
    knows = scheduler.kind in ("database", "redbeat")
    return knows and isinstance(entry, Mapping) and entry.get("enabled", True) is False


def _not_run(scheduler: BeatScheduler, rows: Mapping[str, list[_Row]]) -> Iterator[StoredEntries]:
    for store, kept in rows.items():
        kind = OF_STORES[store]
        assumed = kind == scheduler.kind
        count = sum(row.enabled and row.name != _CELERYS_OWN for row in kept)
        if count and not (assumed and scheduler.named_kind == kind):
            yield StoredEntries(store, count, NAMES[kind], scheduler.named, assumed)


def _read_rows(
    app: Any,
    store: str,
    read: Callable[[Any], Iterator[_Row]],
    scheduler: BeatScheduler,
    unread: list[str],
) -> list[_Row]:
    named = scheduler.kind == OF_STORES[store]
    try:
        return list(read(app))
    except Exception as exc:  # noqa: BLE001 - the rest of the audit is still useful
        if named or not scheduler.given:
            reason = " ".join(str(exc).split()) or type(exc).__name__
            unread.append(masked(f"{store}: {reason}"))
        return []


def _redbeat_rows(app: Any) -> Iterator[_Row]:
    """The entries that redbeat keeps in Redis, if it is installed."""
    if not find_spec("redbeat"):
        return
    named = scheduler_of(app).kind == "redbeat" or bool(app.conf.get("redbeat_redis_url"))
    if not (named or _has_redis_broker(app)):
        return
    try:
        definitions = _redbeat_definitions(app)
    except RedisError:
        if named:
            raise
        # redbeat is only installed; no setting says that the broker's Redis has a schedule.
        return
    for entry in definitions:
        yield _Row(str(entry["name"]), entry, bool(entry.get("enabled", True)))


def _has_redis_broker(app: Any) -> bool:
    # Beat's command line can name redbeat, which then uses the broker.
    with app.connection_for_read() as connection:
        return connection.transport_cls in ("redis", "rediss")


def _redbeat_definitions(app: Any) -> list[dict[str, Any]]:
    from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis

    with _quietly():
        key = ensure_conf(app).schedule_key
        # Without redbeat's own retries, which can be endless.
        client = get_redis(app)
        client = getattr(client, "wrapped_connection", client)
        pool = getattr(client, "connection_pool", None)
        if pool is not None:
            pool.connection_kwargs.setdefault("socket_timeout", TIMEOUT_S)
            pool.connection_kwargs.setdefault("socket_connect_timeout", TIMEOUT_S)
        raw = [client.hget(name, "definition") for name in client.zrange(key, 0, -1)]
    return [RedBeatSchedulerEntry.decode_definition(one) for one in raw if one]


def _django_rows(app: Any) -> Iterator[_Row]:  # noqa: ARG001 - called like the other
    """The entries of django-celery-beat, if the app's Django project has it."""
    # In a Django project Celery's own fixup has imported Django already.
    if "django" not in sys.modules or not find_spec("django_celery_beat"):
        return
    from django.apps import apps
    from django.db import connections

    if not apps.ready or not apps.is_installed("django_celery_beat"):
        return
    from django_celery_beat.models import PeriodicTask

    kinds = ("interval", "crontab", "solar", "clocked")
    try:
        rows = list(PeriodicTask.objects.select_related(*kinds))
    finally:
        connections.close_all()
    for row in rows:
        seconds = row.expire_seconds
        entry = {
            "task": row.task,
            "schedule": row.schedule if row.scheduler is not None else None,
            "expires": row.expires,
            "options": {} if seconds is None else {"expire_seconds": seconds},
        }
        yield _Row(row.name, entry, row.enabled)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep redbeat's messages about its own settings out of the audit's output."""
    logger = logging.getLogger("celery.beat")
    was = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was
