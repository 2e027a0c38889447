"""Reads the facts that the rules check from an app.

Connects only to stores of schedules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from celery.app.defaults import DEFAULTS

from worker_guard import celery_internals
from worker_guard.bootstep import WorkerGuard
from worker_guard.commands.audit.beat_entries import when
from worker_guard.commands.audit.beat_stores import BeatSchedule, read_schedule
from worker_guard.commands.audit.facts import (
    DeliveryFacts,
    Facts,
    GuardFacts,
    MemoryFacts,
    ResultsFacts,
    TaskFacts,
)
from worker_guard.commands.audit.settings_reading import SettingsReading
from worker_guard.commands.audit.spelling import Spelling
from worker_guard.memory.reader import MemoryReader, available_bytes
from worker_guard.settings import PREFIX, SettingError, Settings, given_keys, read_settings
from worker_guard.values.sizes import size_bytes

#: kombu's defaults, by transport.
_VISIBILITY_S = {
    "redis": 3600.0,
    "rediss": 3600.0,
    "sentinel": 3600.0,
    "sqs": 1800.0,
    "slmq": 1800.0,
    "pgmq": 1800.0,
}
#: Celery's default, for a task that sets no delay.
_RETRY_DELAY_S = 180.0
#: celery.app.autoretry's default.
_BACKOFF_MAX_S = 600.0


def gather(app: Any) -> tuple[Facts, list[str]]:
    """The facts about an app, and a line for each schedule that could not be read.

    Loads the app's modules as a worker does; their errors are raised.
    """
    app.loader.import_default_modules()
    app.finalize(auto=True)
    memory_bytes = _own_rss_bytes()
    reading = SettingsReading()
    schedule = reading.of("beat_schedule", lambda: read_schedule(app), BeatSchedule())
    settings, rejected = _settings(app)
    results = _results(app, reading)
    facts = Facts(
        entries=tuple(schedule.entries),
        scheduler=schedule.scheduler,
        stored=schedule.stored,
        spelling=_spelling(app),
        tasks=tuple(_tasks(app, reading)),
        delivery=_delivery(app, reading),
        memory=_memory(app, settings, memory_bytes),
        results=results,
        guard=_guard(app, settings, rejected, results),
        pool=_pool(app),
        statedb=str(app.conf.worker_state_db) if app.conf.worker_state_db else None,
    )
    facts = replace(facts, unreadable=tuple(reading.unreadable))
    return facts, schedule.unread


def _spelling(app: Any) -> Spelling:
    conf = app.conf
    names = (*DEFAULTS, *(PREFIX + field.name for field in fields(Settings)))
    on_app = {name for name in names if celery_internals.is_set_on_app(conf, name)}
    given = {name for name in names if celery_internals.is_given(conf, name)}
    if conf.beat_schedule and "beat_schedule" not in given:
        # add_periodic_task put the entries there.
        on_app.add("beat_schedule")
    # Celery's own fixup recognizes a Django project like this; such projects use shared tasks.
    in_django = bool(conf.prefix and os.environ.get("DJANGO_SETTINGS_MODULE"))
    return Spelling(
        in_source=celery_internals.names_in_source(conf),
        on_app=frozenset(on_app),
        given=frozenset(given),
        namespace=conf.prefix or "",
        decorator="@shared_task" if in_django else "@app.task",
    )


def _is_users(name: str) -> bool:
    return not name.startswith(("celery.", PREFIX, "worker_guard."))


def _tasks(app: Any, reading: SettingsReading) -> Iterator[TaskFacts]:
    for name, task in sorted(app.tasks.items()):
        if _is_users(name):
            read = reading.of(f"task {name}", partial(_task, task), None)
            if read is not None:
                yield read


def _task(task: Any) -> TaskFacts:
    return TaskFacts(
        name=task.name,
        acks_late=bool(task.acks_late),
        reject_on_worker_lost=_bool_or_none(task.reject_on_worker_lost),
        # From Celery 5.7 on.
        retry_on_worker_lost=bool(getattr(task, "retry_on_worker_lost", False)),
        time_limit_s=_time_limit_s(task),
        retry_delay_s=_retry_delay_s(task),
        expires=when(task.expires),
        ignore_result=bool(task.ignore_result),
    )


def _time_limit_s(task: Any) -> float | None:
    # Celery 5.3 does not put the settings into the task, but passes them to the pool.
    conf = task.app.conf
    hard, soft = task.time_limit or conf.task_time_limit, task.soft_time_limit
    return _seconds(hard or soft or conf.task_soft_time_limit)


def _retry_delay_s(task: Any) -> float | None:
    """The longest countdown that the task declares for its retries."""
    delay_s = _seconds(task.default_retry_delay)
    if not getattr(task, "autoretry_for", ()):
        return None if delay_s == _RETRY_DELAY_S else delay_s
    if getattr(task, "retry_backoff", False):
        return _longest_backoff_s(task)
    return _seconds(dict(getattr(task, "retry_kwargs", {})).get("countdown", delay_s))


def _longest_backoff_s(task: Any) -> float | None:
    """The last countdown, which is the longest: it doubles with each retry, up to a maximum."""
    limit_s = _seconds(getattr(task, "retry_backoff_max", _BACKOFF_MAX_S))
    retries = dict(getattr(task, "retry_kwargs", {})).get("max_retries", task.max_retries)
    if limit_s is None or retries is None:
        return limit_s
    # As celery.app.autoretry does. After 64 doublings no countdown is below the maximum.
    first_s = int(max(1.0, task.retry_backoff))
    return min(limit_s, float(first_s * 2 ** min(max(retries - 1, 0), 64)))


def _transport(app: Any) -> tuple[str, str, dict[str, Any]]:
    with app.connection_for_read() as connection:
        options = dict(connection.transport_options or {})
        return str(connection.transport_cls), str(connection.transport.driver_type), options


def _delivery(app: Any, reading: SettingsReading) -> DeliveryFacts:
    conf = app.conf
    no_transport: tuple[str, str, dict[str, Any]] = ("", "", {})
    transport, driver, options = reading.of(
        "broker_url, broker_transport_options", lambda: _transport(app), no_transport
    )
    visibility_s = _VISIBILITY_S.get(transport.lower())
    if visibility_s is not None:
        visibility_s = _seconds(options.get("visibility_timeout")) or visibility_s
    offset = datetime.now().astimezone().utcoffset()
    return DeliveryFacts(
        transport=transport,
        broker_is_redis=driver == "redis",
        visibility_timeout_s=visibility_s,
        prefetch_multiplier=reading.of(
            "worker_prefetch_multiplier",
            lambda: int(conf.worker_prefetch_multiplier or 0),
            DeliveryFacts.prefetch_multiplier,
        ),
        # From Celery 5.6 on.
        prefetch_disabled=bool(conf.get("worker_disable_prefetch")),
        utc_offset_s=offset.total_seconds() if offset else 0.0,
        acks_late=bool(conf.task_acks_late),
        reject_on_worker_lost=_bool_or_none(conf.task_reject_on_worker_lost),
        retry_on_worker_lost=bool(conf.get("task_retry_on_worker_lost")),
    )


def _memory(app: Any, settings: Settings, own_bytes: int) -> MemoryFacts:
    limit = app.conf.worker_max_memory_per_child
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    available = available_bytes()
    guarded = settings.enabled and _has_guard(app)
    return MemoryFacts(
        # As in billiard, 0 means no limit.
        child_limit_kib=float(limit) if is_number and limit > 0 else None,
        malformed_child_limit=None if is_number or not limit else repr(limit),
        guard_child_limit_bytes=size_bytes(settings.child_memory_limit, available)
        if guarded
        else None,
        guard_total_limit_bytes=size_bytes(settings.total_memory_limit, available)
        if guarded
        else None,
        newborn_bytes=own_bytes,
        available_bytes=available,
    )


def _own_rss_bytes() -> int:
    reading = MemoryReader("rss").read(os.getpid(), None)
    return reading.rss_bytes if reading else 0


def _results(app: Any, reading: SettingsReading) -> ResultsFacts:
    ignored = bool(app.conf.task_ignore_result)
    so_far = len(reading.unreadable)
    expires_s = reading.of("result_expires", lambda: _expires_s(app), ResultsFacts.expires_s)
    if len(reading.unreadable) > so_far:
        # Celery can't create a backend with it.
        return ResultsFacts(ignored=ignored)
    backend = reading.of("result_backend", lambda: app.backend, None)
    if backend is None:
        return ResultsFacts(ignored=ignored)
    return ResultsFacts(
        is_redis=celery_internals.is_redis(backend),
        backend=type(backend).__name__,
        expires_s=expires_s,
        ignored=ignored,
    )


def _expires_s(app: Any) -> float | None:
    expires = app.conf.result_expires
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    return None if seconds is None else float(seconds)


def _settings(app: Any) -> tuple[Settings, str | None]:
    try:
        return read_settings(app.conf), None
    except SettingError as exc:
        return Settings(), str(exc)


def _guard(app: Any, settings: Settings, rejected: str | None, results: ResultsFacts) -> GuardFacts:
    installed = _has_guard(app)
    works = installed and settings.enabled and not settings.dry_run and rejected is None
    return GuardFacts(
        installed=installed,
        enabled=settings.enabled,
        dry_run=settings.dry_run,
        rejected=rejected,
        given=frozenset(
            PREFIX + name
            for name in given_keys(app.conf)
            # None switches a part off on purpose.
            if rejected is not None or getattr(settings, name) not in (None, ())
        ),
        parent_limit=settings.parent_memory_limit is not None,
        parent_action=settings.parent_action,
        deletes_results=works
        and results.is_redis
        and bool(settings.results_max_age)
        and settings.results_schedule is not None,
    )


def _has_guard(app: Any) -> bool:
    return WorkerGuard in app.steps["worker"]


def _pool(app: Any) -> str:
    """The pool's alias, even if the setting is a class or its path."""
    pool = app.conf.worker_pool
    path = pool if isinstance(pool, str) else getattr(pool, "__module__", str(pool))
    return path.partition(":")[0].removesuffix(".TaskPool").rpartition(".")[2]


def _bool_or_none(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _seconds(value: Any) -> float | None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        return None if seconds is None else float(seconds)
    except (TypeError, ValueError):
        return None
