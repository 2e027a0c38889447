"""The tests' app with code of its own that changes the revoked set, as applications do."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import signals
from celery.utils.collections import LimitedSet
from celery.worker import state
from celery.worker.control import control_command

from tests.harness.app import app

#: Ids that the application puts into the set before the worker starts.
BEFORE_START = "WORKER_GUARD_TEST_REVOKED_BEFORE_START"

#: When the application puts a set of its own in the place of Celery's: "before" the start.
REPLACED = "WORKER_GUARD_TEST_REVOKED_REPLACED"

__all__ = ["BEFORE_START", "REPLACED", "app"]


@signals.worker_init.connect
def revoke_before_start(**_: Any) -> None:
    for task_id in os.environ.get(BEFORE_START, "").split():
        state.revoked.add(task_id)
    if REPLACED in os.environ:
        state.revoked = LimitedSet(maxlen=100, expires=100)


@control_command(args=[("task_id", str)])
def merge_revoked_set(panel: Any, task_id: str) -> dict[str, str]:
    """Merge another set, past ``add``."""
    other = LimitedSet()
    other.add(task_id)
    state.revoked.update(other)
    return {"ok": "merged"}


@control_command(args=[("task_id", str)])
def put_past_update(panel: Any, task_id: str) -> dict[str, str]:
    """Put an id into the set by no way that anybody could hear of."""
    other = LimitedSet()
    other.add(task_id)
    LimitedSet.update(state.revoked, other)
    return {"ok": "put"}


@control_command()
def fill_with_later_stamps(panel: Any) -> dict[str, str]:
    """What Celery 5.6 and before do with the ids of a host that has been up for longer."""
    later = time.monotonic() + 1e6
    state.revoked.update({f"later-{n}": later + n for n in range(state.revoked.maxlen)})
    return {"ok": "filled"}


@control_command()
def replace_revoked_set(panel: Any) -> dict[str, str]:
    """Put a set of its own in the place of Celery's, while the worker runs."""
    state.revoked = LimitedSet(maxlen=100, expires=100)
    return {"ok": "replaced"}


@control_command()
def clear_revoked_set(panel: Any) -> dict[str, str]:
    """Empty the set."""
    state.revoked.clear()
    return {"ok": "cleared"}


@control_command(args=[("task_id", str)])
def discard_revoked(panel: Any, task_id: str) -> dict[str, str]:
    """Take an id out of the set."""
    state.revoked.discard(task_id)
    return {"ok": "discarded"}
