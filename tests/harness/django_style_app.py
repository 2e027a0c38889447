"""An app that takes its settings under a namespace, as Django projects do."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

from celery import Celery

from tests.harness.app import CONFIGURATION
from worker_guard import WorkerGuard

settings = SimpleNamespace(
    DEBUG=True,
    CELERY_TASK_DEFAULT_QUEUE="work",
    **{
        f"CELERY_{name.upper()}": value
        for name, value in json.loads(os.environ.get(CONFIGURATION, "{}")).items()
    },
)

app = Celery("harness")
app.config_from_object(settings, namespace="CELERY")
app.steps["worker"].add(WorkerGuard)


@app.task(name="harness.add")
def add(x: int, y: int) -> int:
    return x + y
