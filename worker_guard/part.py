"""What a part of the guard is, and what it is given."""

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
    """What each part is given.

    ``report`` tells an event to the log and to ``activity``; ``preview`` to the log alone, as of a
    dry run. ``status`` is the state of the whole guard, without what takes milliseconds.
    ``before_statedb`` are the ids that the application put into the revoked set by itself.
    """

    worker: Any
    settings: Settings
    report: Callable[[Event], None]
    preview: Callable[[Event], None]
    scheduler: Scheduler
    activity: Activity
    status: Callable[[], GuardStatus]
    before_statedb: Collection[str] = ()
    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time

    def attempt(self, name: str, step: Callable[[], object]) -> None:
        """Do one step of a start or a stop. A failure is reported, and the next step is done."""
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
    """A part of the guard. It is made before the worker connects, and connects to nothing itself.

    Whatever :meth:`__init__` or :meth:`start` raises, the part is off with that reason, and the
    worker and the other parts run on.
    """

    #: How the part is called in the events and in the status.
    name: ClassVar[str]

    #: Names of what else this part does, with a state of its own.
    also: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: Context) -> None:
        self.context = context
        #: What the scheduler repeats.
        self.jobs: list[Job] = []
        #: The part's names, each with ``"on"`` or the reason why it is off.
        self.states: dict[str, str] = dict.fromkeys((self.name, *self.also), ON)

    def start(self) -> None:
        """Hook in, and open ports. The pool is there, the consumer is not."""

    def stop(self, *, cold: bool) -> None:
        """Finish, and undo what :meth:`start` did, also if that failed midway.

        In a ``cold`` shutdown no server is asked anything.
        """

    def status(self, *, quick: bool) -> Mapping[str, Any]:  # noqa: ARG002 - here it has no share
        """Its share of :class:`~worker_guard.status_model.GuardStatus`: values by field.

        ``quick`` leaves out what takes milliseconds.
        """
        return {}
