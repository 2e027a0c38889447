"""The remote commands: ``celery inspect guard`` and ``celery control guard_sweep``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from celery.utils.serialization import strtobool
from celery.worker.control import control_command, inspect_command

_NO_GUARD = {"error": "no guard runs in this worker: worker_guard_enabled is False"}


@inspect_command()
def guard(state: Any, **_: Any) -> dict[str, Any]:
    """State of the worker's guard: counts, never ids."""
    running = _guard(state)
    return _NO_GUARD if running is None else running.describe()


@control_command(args=[("dry_run", strtobool)], signature="[dry_run=false]")
def guard_sweep(state: Any, dry_run: Any = False, **_: Any) -> dict[str, Any]:
    """Sweep the revoked set now."""
    running = _guard(state)
    if running is None:
        return _NO_GUARD
    done = running.sweep(dry_run=bool(strtobool(dry_run)))
    if done is None:
        return {"ok": "sweeping; the worker's log will say what came of it"}
    return {"ok": asdict(done)}


def _guard(state: Any) -> Any:
    from worker_guard.bootstep import guard_of

    return guard_of(state.consumer.controller)
