"""The app of a Django project with django-celery-beat. Run as a program it makes the database."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from celery import Celery

from worker_guard import WorkerGuard

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.harness.audit_django_settings")

app = Celery("harness")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.steps["worker"].add(WorkerGuard)


@app.task(name="harness.add")
def add(x: int, y: int) -> int:
    return x + y


def make_database() -> None:
    """Entries good and bad, one that is switched off, and Celery's own."""
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
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


if __name__ == "__main__":
    make_database()
