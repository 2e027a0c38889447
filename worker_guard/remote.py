"""The remote commands: ``celery inspect guard`` and ``celery control guard_sweep``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click
from celery.utils.functional import maybe_list
from celery.utils.serialization import strtobool
from celery.worker.control import control_command, inspect_command

from worker_guard.bootstep import step_of
from worker_guard.errors import WorkerGuardError


@inspect_command()
def guard(state: Any, **_: Any) -> dict[str, Any]:
    """Show the state of the worker's guard: counts, never ids."""
    running, reason = _guard(state)
    return {"error": reason} if running is None else asdict(running.status())


def _flag(given: str) -> bool:
    """A flag on the command line. Any other value is a usage error, not a traceback."""
    try:
        return bool(strtobool(given))
    except TypeError as exc:
        raise click.UsageError(f"dry_run is {given!r}; allowed: true or false") from exc


@control_command(args=[("dry_run", _flag)], signature="[dry_run=false]")
def guard_sweep(state: Any, dry_run: Any = False, **_: Any) -> dict[str, Any]:
    """Sweep the revoked set now."""
    running, reason = _guard(state)
    if running is None:
        return {"error": reason}
    from worker_guard.revoked.part import RevokedPart

    try:
        preview = bool(strtobool(dry_run))
    except TypeError:
        # An error here would be a traceback in the worker's log.
        return {"error": f"dry_run is {dry_run!r}; allowed: true or false"}
    try:
        done, dry = running.part(RevokedPart).sweep_now(dry_run=preview)
    except WorkerGuardError as exc:
        return {"error": str(exc)}
    if done is None:
        return {"ok": "sweeping; see the worker's log for the result", "dry_run": dry}
    return {"ok": {**asdict(done), "dry_run": dry}}


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def guard_unrevoke(state: Any, task_id: Any, **_: Any) -> dict[str, Any]:
    """Take back the revocations of these ids at this worker.

    Use ``celery guard unrevoke``, which also takes them off the record.
    """
    running, reason = _guard(state)
    if running is None:
        return {"error": reason}
    from worker_guard.revoked.part import RevokedPart

    try:
        found = running.part(RevokedPart).unrevoke(
            [str(each) for each in maybe_list(task_id) or ()]
        )
    except WorkerGuardError as exc:
        return {"error": str(exc)}
    return {"ok": f"taken back: {found}"}


def _guard(state: Any) -> tuple[Any, str]:
    """The worker's guard, or None and the reason."""
    step = step_of(state.consumer.controller)
    if step is None:
        return None, 'this worker\'s app lacks the line app.steps["worker"].add(WorkerGuard)'
    if not step.enabled:
        return None, "worker_guard_enabled is False"
    return step.guard, "the guard could not start; the worker's log says why"


def _extend_choices() -> None:
    """Let ``celery inspect`` and ``celery control`` accept these commands.

    Celery 5.3 reads the accepted names when ``celery.bin.control`` is imported; on the command
    line that is before the app is imported. Later releases look up each name when it is used.
    """
    command_line = sys.modules.get("celery.bin.control")
    if command_line is None:
        return
    accepted = (
        (command_line.inspect, "guard"),
        (command_line.control, "guard_sweep"),
        (command_line.control, "guard_unrevoke"),
    )
    for command, name in accepted:
        for param in command.params:
            choices = getattr(param.type, "choices", None)
            if param.name == "action" and choices is not None and name not in choices:
                param.type = click.Choice([*choices, name])


_extend_choices()
