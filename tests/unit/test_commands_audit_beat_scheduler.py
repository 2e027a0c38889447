"""Which scheduler Beat uses, what it takes from an entry, and how an app writes its settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import BaseSchedule
from redbeat import RedBeatScheduler

from worker_guard.commands.audit.beat_scheduler import BeatScheduler, scheduler_of
from worker_guard.commands.audit.gather import gather

ENTRY = {"task": "proj.task", "schedule": 60.0}


class Own(Scheduler):
    """An application's own."""


class OwnRedBeat(RedBeatScheduler):
    """An application's own, of redbeat's kind."""


def app_with(**conf: Any) -> Celery:
    """An app with these settings, set on the app."""
    app = Celery("scheduler", set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        (None, "celery"),
        ("celery.beat:PersistentScheduler", "celery"),
        ("celery.beat.Scheduler", "celery"),
        (PersistentScheduler, "celery"),
        ("redbeat.RedBeatScheduler", "redbeat"),
        ("redbeat.schedulers:RedBeatScheduler", "redbeat"),
        (OwnRedBeat, "redbeat"),
        (f"{__name__}:OwnRedBeat", "redbeat"),
        # Where no Django project is set up, its module can't be imported.
        ("django_celery_beat.schedulers:DatabaseScheduler", "database"),
        ("django_celery_beat.schedulers.DatabaseScheduler", "database"),
        # The entry point of django-celery-beat.
        ("django", "database"),
        (Own, "other"),
        (f"{__name__}.Own", "other"),
        ("proj.no_such_module:Scheduler", "other"),
    ],
    ids=str,
)
def test_how_a_scheduler_is_named(named: Any, kind: str) -> None:
    """By a path, by a name that a package registers, by the class, or by one derived from it."""
    app = app_with(**({} if named is None else {"beat_scheduler": named}))
    scheduler = scheduler_of(app)
    assert scheduler.kind == kind
    assert scheduler.given is (named is not None)


def test_a_scheduler_of_an_old_configuration() -> None:
    """``CELERYBEAT_SCHEDULER``, and a namespace's."""
    app = Celery("scheduler", set_as_current=False)
    app.config_from_object({"CELERYBEAT_SCHEDULER": "redbeat.RedBeatScheduler"})
    assert (scheduler_of(app).kind, scheduler_of(app).given) == ("redbeat", True)
    app = Celery("scheduler", set_as_current=False)
    app.config_from_object({"CELERY_BEAT_SCHEDULER": "django"}, namespace="CELERY")
    assert (scheduler_of(app).kind, scheduler_of(app).given) == ("database", True)


def test_what_a_scheduler_keeps_is_its_own_affair() -> None:
    """A DatabaseScheduler is asked; one that can't be drops all but what the package's keeps."""
    options = {"queue": "work", "expires": 60, "jitter": 5}
    unknown = BeatScheduler("database", "database", "django", True)
    assert unknown.kept_options(options) == {"queue": "work"}
    entry = SimpleNamespace(_unpack_options=lambda queue=None, jitter=None, **_: locals())
    own = BeatScheduler("database", "database", "proj", True, SimpleNamespace(Entry=entry))
    assert own.kept_options(options) == {"queue": "work", "jitter": 5}
    celerys = BeatScheduler("celery", "celery", "celery.beat:Scheduler", True)
    assert celerys.kept_options(options) == options


SECONDS = ("expire_seconds", 60.0)


@pytest.mark.parametrize(
    ("scheduler", "options", "expires", "ignored"),
    [
        ("celery.beat:PersistentScheduler", {"expires": 60}, 60.0, None),
        ("celery.beat:PersistentScheduler", {"expire_seconds": 60}, None, SECONDS),
        ("celery.beat:Scheduler", {"expires": 60, "expire_seconds": 60}, 60.0, SECONDS),
        ("redbeat.RedBeatScheduler", {"expires": 60, "task_id": "same"}, 60.0, None),
        ("redbeat.RedBeatScheduler", {"expire_seconds": 60}, None, SECONDS),
        # Nobody knows what it knows.
        (Own, {"expire_seconds": 60}, None, None),
    ],
    ids=str,
)
def test_which_expiry_counts(scheduler: Any, options: Any, expires: Any, ignored: Any) -> None:
    """By the rules of the scheduler; django-celery-beat's are shown on its real Beat."""
    app = app_with(beat_schedule={"e": {**ENTRY, "options": options}}, beat_scheduler=scheduler)
    app.conf.broker_url = app.conf.redbeat_redis_url = "memory://"
    (entry,) = gather(app)[0].entries
    assert (entry.expires, entry.ignored_expires) == (expires, ignored)
    assert entry.task_id == options.get("task_id")


@pytest.mark.parametrize(
    ("entry", "kind", "says"),
    [
        ({**ENTRY, "enabled": True}, None, ""),
        ({**ENTRY, "jitter": 5}, "left-out", "unexpected keyword argument 'jitter'"),
        ({**ENTRY, "one_off": True}, "left-out", "unexpected keyword argument 'one_off'"),
        ({**ENTRY, "schedule": "60"}, "left-out", "'str' object has no attribute 'app'"),
        (
            {**ENTRY, "options": {"expires": {1, 2}}},
            "ends-beat",
            "Object of type set is not JSON serializable",
        ),
        ({**ENTRY, "args": [...]}, "ends-beat", "is not JSON serializable"),
    ],
    ids=str,
)
def test_what_redbeat_makes_of_an_entry(entry: Any, kind: str | None, says: str) -> None:
    """It leaves out what is no entry, and ends over one that it can't store."""
    app = app_with(beat_schedule={"e": entry}, beat_scheduler="redbeat.RedBeatScheduler")
    app.conf.redbeat_redis_url = "memory://"
    (read,) = gather(app)[0].entries
    assert (read.flaw.kind if read.flaw else None) == kind
    assert read.flaw is None or says in read.flaw.says


def test_redbeat_stores_only_what_it_has_a_shape_for() -> None:
    """Over another schedule, a solar one for instance, Beat ends."""
    entry = {**ENTRY, "schedule": BaseSchedule()}
    app = app_with(beat_schedule={"e": entry}, beat_scheduler="redbeat.RedBeatScheduler")
    app.conf.redbeat_redis_url = "memory://"
    (read,) = gather(app)[0].entries
    assert read.flaw is not None
    assert read.flaw.kind == "ends-beat"


def test_an_entry_that_is_switched_off_is_not_audited() -> None:
    """``enabled`` is redbeat's, and the database's."""
    entry = {**ENTRY, "enabled": False}
    app = app_with(beat_schedule={"e": entry}, beat_scheduler="redbeat.RedBeatScheduler")
    app.conf.redbeat_redis_url = "memory://"
    assert gather(app)[0].entries == ()


# -- how the app writes its settings ---------------------------------------------------------


class OldModule:
    """A configuration with Celery's old names."""

    CELERY_ACKS_LATE = True
    CELERYBEAT_SCHEDULE: ClassVar = {"e": ENTRY}


class Module:
    """A configuration with Celery's names."""

    task_acks_late = True
    beat_schedule: ClassVar = {"e": ENTRY}


class Namespaced:
    """A configuration under a namespace."""

    CELERY_TASK_ACKS_LATE = True
    CELERY_BEAT_SCHEDULE: ClassVar = {"e": ENTRY}


@pytest.mark.parametrize(
    ("source", "namespace", "late", "schedule", "guard"),
    [
        (None, None, "app.conf.task_acks_late", "app.conf.beat_schedule", "app.conf.worker_guard_"),
        (Module, None, "task_acks_late", "beat_schedule", "worker_guard_"),
        (OldModule, None, "CELERY_ACKS_LATE", "CELERYBEAT_SCHEDULE", "worker_guard_"),
        (
            Namespaced,
            "CELERY",
            "CELERY_TASK_ACKS_LATE",
            "CELERY_BEAT_SCHEDULE",
            "CELERY_WORKER_GUARD_",
        ),
    ],
    ids=["none", "module", "old", "namespace"],
)
def test_where_settings_stand(
    source: Any, namespace: str | None, late: str, schedule: str, guard: str
) -> None:
    """In a module, in Django's settings, or on the app."""
    app = Celery("spelt", set_as_current=False)
    if source is not None:
        app.config_from_object(source, namespace=namespace)
    else:
        app.conf.beat_schedule = {"e": ENTRY}
    spelling = gather(app)[0].spelling
    assert spelling.name("task_acks_late") == late
    assert spelling.name("beat_schedule") == schedule
    assert spelling.name("worker_guard_interval") in (f"{guard}interval", f"{guard}INTERVAL")


def test_what_is_set_on_the_app_outweighs_its_source() -> None:
    """A line in the source would change nothing."""
    app = Celery("spelt", set_as_current=False)
    app.config_from_object(Namespaced, namespace="CELERY")
    app.conf.task_acks_late = False
    spelling = gather(app)[0].spelling
    assert spelling.name("task_acks_late") == "app.conf.task_acks_late"
    assert spelling.name("task_time_limit") == "CELERY_TASK_TIME_LIMIT"


def test_entries_that_celery_was_given_by_add_periodic_task() -> None:
    """They stand in no source."""
    app = Celery("spelt", set_as_current=False)
    app.config_from_object({"CELERY_TASK_ACKS_LATE": True}, namespace="CELERY")
    app.add_periodic_task(60, app.signature("proj.task"), name="e")
    spelling = gather(app)[0].spelling
    assert spelling.name("beat_schedule") == "app.conf.beat_schedule"
    assert spelling.name("beat_scheduler") == "CELERY_BEAT_SCHEDULER"
