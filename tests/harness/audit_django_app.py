"""The app of a Django project with django-celery-beat. Run as a program it fills the database."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from typing import Any

from celery import Celery

from worker_guard import WorkerGuard

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.harness.audit_django_settings")

app = Celery("harness")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.steps["worker"].add(WorkerGuard)


@app.task(name="harness.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="harness.fleeting", expires=30)
def fleeting(x: int, y: int) -> int:
    """A task with an expiry of its own."""
    return x + y


def make_database() -> None:
    """Entries good and bad, one that is switched off, and Celery's own."""
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    minute = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.MINUTES)
    daily = CrontabSchedule.objects.create(minute="0", hour="4")
    make = PeriodicTask.objects.create
    make(name="short", task="harness.add", interval=minute, expire_seconds=30)
    make(name="lasting", task="harness.add", crontab=daily, expire_seconds=86400)
    end = datetime(2036, 1, 1, tzinfo=timezone.utc)
    make(name="ending", task="harness.add", crontab=daily, expires=end)
    make(name="off", task="harness.add", interval=minute, expire_seconds=30, enabled=False)
    cleanup = "celery.backend_cleanup"
    make(name=cleanup, task=cleanup, crontab=daily, expire_seconds=12 * 3600)


def add_row(name: str, **columns: Any) -> None:
    """An entry that runs each second."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    second, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(name=name, task="harness.add", interval=second, **columns)


def read_anew() -> None:
    """Have a Beat that runs read the database again, as any change of an entry does."""
    from django_celery_beat.models import PeriodicTasks

    PeriodicTasks.update_changed()


if __name__ == "__main__":
    import django
    from django.core.management import call_command

    django.setup()
    what, *arguments = sys.argv[1:] or ["example"]
    if what == "row":
        add_row(**json.loads(arguments[0]))
    elif what == "read-anew":
        read_anew()
    else:
        call_command("migrate", verbosity=0)
    if what == "example":
        make_database()
