"""Settings of a Django project whose schedule is in its database."""

from __future__ import annotations

import json
import os

from tests.harness.audit_entry import given_schedule

#: Settings of Celery's, as JSON, without their namespace and in lower case; null: not set.
CONFIGURATION = "WORKER_GUARD_TEST_DJANGO"
#: Set, Django keeps times without a zone.
NAIVE = "WORKER_GUARD_TEST_NAIVE"
DATABASE = "WORKER_GUARD_TEST_DATABASE"

USE_TZ = not os.environ.get(NAIVE)
DJANGO_CELERY_BEAT_TZ_AWARE = USE_TZ
SECRET_KEY = "of the tests"
TIME_ZONE = "UTC"
INSTALLED_APPS = ["django_celery_beat"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get(DATABASE, ":memory:"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
CELERY_BROKER_URL = "memory://"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Whole seconds: the database keeps no others.
CELERY_BEAT_SCHEDULE = given_schedule(every_s=1) or {}
for name, value in json.loads(os.environ.get(CONFIGURATION, "{}")).items():
    globals()[f"CELERY_{name.upper()}"] = value
    if value is None:
        del globals()[f"CELERY_{name.upper()}"]
