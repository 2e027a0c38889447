"""The tests' app, with a task and children that wait until a file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import signals

from tests.harness.app import app

__all__ = ["UP_BY", "app", "occupy"]

#: No child is up before this file is there.
UP_BY = "WORKER_GUARD_TEST_UP_BY"


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


@app.task(name="harness.occupy")
def occupy(began: str, until: str) -> None:
    """Make a file, and run until the other one is there."""
    Path(began).touch()
    _wait_for(Path(until))


def wait_to_be_up(**_: Any) -> None:
    _wait_for(Path(os.environ[UP_BY]))


if UP_BY in os.environ:
    signals.worker_process_init.connect(wait_to_be_up, weak=False)
