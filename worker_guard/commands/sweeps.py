"""Asks the workers to sweep their revoked sets, by the remote command ``guard_sweep``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker_guard.commands.status.asking import BROKER_S, Workers, ask_once
from worker_guard.commands.status.loading import BrokenReplyError, load_status
from worker_guard.commands.status.view import is_unknown_command

#: Seconds for the sweep of a worker that just answered a ping: its result backend may hang.
SWEEP_S = 5.0

#: Seconds to wait for a sweep that takes more than one slice.
LONGEST_SWEEP_S = 30.0

#: Seconds between two looks at such a sweep.
LOOK_S = 0.5

_NOT_LOADED = (
    'worker_guard is not loaded there: add app.steps["worker"].add(WorkerGuard) to the module of '
    "its app, then restart it"
)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one worker answered.

    ``done`` holds the fields of ``cleanup_completed``. It is None while the worker still sweeps, or
    if there is an ``error``.
    """

    done: Mapping[str, Any] | None = None
    dry_run: bool = False
    error: str | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the worker still sweeps, so that its figures are not known."""
        return self.done is None and self.error is None

    @property
    def cleared(self) -> int:
        """How many ids left the set, as far as is known."""
        return int((self.done or {}).get("revoked_tasks_cleared", 0))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        if self.error is not None:
            return {"error": self.error}
        if self.done is None:
            return {"sweeping": True, "dry_run": self.dry_run}
        return {**self.done, "dry_run": self.dry_run}

    def text(self) -> str:
        """For people."""
        if self.error is not None:
            return "not swept"
        if self.done is None:
            return "sweeping; its log will say what was done"
        would = "would be " if self.dry_run else ""
        kept = self.done.get("revoked_tasks_kept") or {}
        return (
            f"{self.cleared} ids {would}cleared; left: {kept.get('operator', 0)} revoked by "
            f"operators, {kept.get('unproven', 0)} unproven, {kept.get('grace', 0)} in grace"
        )


def ask_for_sweeps(
    app: Any, *, destination: Sequence[str], timeout_s: float, dry_run: bool
) -> dict[str, Sweep]:
    """Ask the workers to sweep; returns those that answer, and those that were asked by name.

    Raises:
        Exception: the broker is away, or does not support remote control.
    """
    sweepers = _Sweepers(app, destination=destination, timeout_s=timeout_s, dry_run=dry_run)
    answers = ask_once(sweepers, limit_s=3 * BROKER_S + 4 * timeout_s + SWEEP_S)
    found = {name: read_answer(answer) for name, answer in answers.replies}
    if not found and not answers.present:
        return {}
    for name in (*answers.present, *answers.asked):
        waited_s = sweepers.sweep_s if name in answers.present else timeout_s
        late = f"no answer within {waited_s:g} s; its log will say what was done"
        found.setdefault(name, Sweep(error=late))
    return dict(sorted(found.items()))


def wait_for_sweeps(
    app: Any, sweeps: Mapping[str, Sweep], *, timeout_s: float, asked_mono: float
) -> dict[str, Sweep]:
    """Wait until the sweeps that still run have ended, and add their figures.

    Waits for at most :data:`LONGEST_SWEEP_S`. Don't call it for a dry run, which leaves no figures.

    Raises:
        Exception: the broker is away.
    """
    found = dict(sweeps)
    until = time.monotonic() + LONGEST_SWEEP_S
    while waiting := [name for name, sweep in found.items() if sweep.goes_on]:
        workers = Workers(app, destination=waiting, timeout_s=timeout_s)
        answers = ask_once(workers, limit_s=3 * BROKER_S + 4 * timeout_s)
        since_s = time.monotonic() - asked_mono
        for name, state in answers.replies:
            if name in waiting and (done := past_sweep(state, since_s)) is not None:
                found[name] = Sweep(done=done, dry_run=found[name].dry_run)
        if time.monotonic() >= until:
            break
        time.sleep(LOOK_S)
    return found


class _Sweepers(Workers):
    """Asks for a sweep where :class:`Workers` asks for the state."""

    def __init__(
        self, app: Any, *, destination: Sequence[str], timeout_s: float, dry_run: bool
    ) -> None:
        super().__init__(app, destination=destination, timeout_s=timeout_s)
        self._dry_run = dry_run
        self.sweep_s = max(timeout_s, SWEEP_S)

    def _states(self, present: Sequence[str]) -> list[tuple[str, object]]:
        return self._broadcast(
            "guard_sweep",
            # Also workers that answered no ping: a solo worker sweeps when its task ends.
            self._destination,
            limit=len(present),
            awaited=present,
            arguments={"dry_run": self._dry_run},
            timeout_s=self.sweep_s if present else None,
        )


def read_answer(answer: object) -> Sweep:
    """Read an answer to ``guard_sweep``; it may come from no guard, or from another release."""
    if not isinstance(answer, Mapping):
        return Sweep(error=f"not the answer of a guard: {answer!r:.100}")
    if is_unknown_command(answer):
        return Sweep(error=_NOT_LOADED)
    if (error := answer.get("error")) is not None:
        return Sweep(error=str(error))
    said = answer.get("ok")
    if isinstance(said, Mapping):
        done = {name: value for name, value in said.items() if name != "dry_run"}
        return Sweep(done=done, dry_run=bool(said.get("dry_run")))
    return Sweep(dry_run=bool(answer.get("dry_run")))


def past_sweep(answer: object, since_s: float) -> dict[str, Any] | None:
    """The sweep on request that ended within ``since_s``, in an answer to ``inspect guard``."""
    try:
        status = load_status(answer)
    except BrokenReplyError:
        return None
    for past in (status.last_cleanup, status.last_clearing):
        if past is None or (past.trigger, past.target) != ("control", "revoked"):
            continue
        if past.age_s is not None and past.age_s < since_s:
            return {k: value for k, value in asdict(past).items() if k not in ("at", "age_s")}
    return None
