"""What a part of the guard is, and what it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from worker_guard.activity import Activity
from worker_guard.errors import WorkerGuardError
from worker_guard.events import Event, PartFailed
from worker_guard.scheduler import Job, Scheduler
from worker_guard.settings import Settings
from worker_guard.status_model import ON, GuardStatus

__all__ = ["ON", "Context", "Job", "Part", "PartOff"]


class PartOff(WorkerGuardError):  # noqa: N818 - a state of the part, not a fault
    """A part can't run here; the message is the reason, for the start event."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What each part gets.

    ``report`` sends an event to the log and to ``activity``; ``preview`` sends it to the log only,
    marked as a dry run. ``status`` returns the state of the whole guard, ``status_of`` that of one
    part by its name, both without what takes milliseconds. ``before_statedb`` are the ids that were
    in the revoked set before the statedb was read: the application put them there.
    """

    worker: Any
    settings: Settings
    report: Callable[[Event], None]
    preview: Callable[[Event], None]
    scheduler: Scheduler
    activity: Activity
    status: Callable[[], GuardStatus]
    status_of: Callable[[str], Mapping[str, Any]]
    before_statedb: Collection[str] = ()
    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time

    def attempt(self, name: str, step: Callable[[], object]) -> None:
        """Run one step of a start or stop. If it raises, report that; the next step still runs."""
        try:
            step()
        except Exception as exc:  # noqa: BLE001 - reported; not tried again, so no pause
            self.report(
                PartFailed(
                    part=name,
                    error=f"{type(exc).__name__}: {exc}",
                    consecutive_failures=1,
                    retry_in_s=0.0,
                )
            )


class Part:
    """A part of the guard. It is made before the worker connects, and must not connect itself.

    If :meth:`__init__` or :meth:`start` raises, the part is off with that reason. The worker and
    the other parts run.
    """

    #: The part's name in events and in the status.
    name: ClassVar[str]

    #: Further names, each with its own state, for what else the part does.
    also: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: Context) -> None:
        self.context = context
        #: What the scheduler repeats.
        self.jobs: list[Job] = []
        #: The part's names, each with ``"on"`` or the reason why it is off.
        self.states: dict[str, str] = dict.fromkeys((self.name, *self.also), ON)

    def start(self) -> None:
        """Install hooks and open ports. The pool runs, the consumer is not started yet."""

    def connected(self) -> None:
        """The consumer has a new connection, and takes no message before this returns."""

    def stop(self, *, cold: bool) -> None:
        """Finish, and undo what :meth:`start` did, even if that failed midway.

        In a ``cold`` shutdown, ask no server anything.
        """

    def status(self, *, quick: bool) -> Mapping[str, Any]:  # noqa: ARG002 - here it has no share
        """Its share of :class:`~worker_guard.status_model.GuardStatus`: values by field.

        ``quick`` leaves out what takes milliseconds.
        """
        return {}
