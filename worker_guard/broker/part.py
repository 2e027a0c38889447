"""The part that removes control replies that nobody reads from a Redis broker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from worker_guard import celery_internals
from worker_guard.broker.scheduled_look import ScheduledLook
from worker_guard.broker.server import open_broker
from worker_guard.part import Context, Part, PartOff
from worker_guard.scheduler import run_to_end
from worker_guard.settings import PREFIX
from worker_guard.status_model import BrokerStatus


class BrokerPart(Part):
    """Deletes orphaned replies by schedule, in one worker at a time, and looks at ``unacked``."""

    name: ClassVar[str] = "broker"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._look = _scheduled_look(context)
        self.jobs.append(self._look)

    def stop(self, *, cold: bool) -> None:
        """Give the lease back, so that another worker can look."""
        try:
            if not cold:
                run_to_end(self._look.lease.release())
        finally:
            self._look.broker.close()

    def status(self, *, quick: bool) -> dict[str, Any]:  # noqa: ARG002
        """What the last look found: all of it if it was this worker's."""
        look = self._look
        status = BrokerStatus(unacked_without_index=look.last.without_index)
        if look.found is not None:
            status = replace(
                status,
                looked_s=round(self.context.monotonic() - look.found_mono, 1),
                replies_deleted=look.found.deleted,
                replies_unread=look.found.unread,
            )
        return {"broker": status}


def _scheduled_look(context: Context) -> ScheduledLook:
    """Make the job. Connects to nothing yet.

    Raises:
        PartOff: a setting says so.
        MissingInternalError: the broker is not Redis.
    """
    settings, worker = context.settings, context.worker
    schedule_s = settings.broker_schedule
    if schedule_s is None:
        raise PartOff(f"{PREFIX}broker_schedule is None")
    broker = open_broker(worker.app, timeout_s=celery_internals.REDIS_TIMEOUT_S)
    by, dry_run = str(worker.hostname), settings.dry_run
    return ScheduledLook(
        schedule_s=schedule_s,
        broker=broker,
        notes=broker.notes(by=by, dry_run=dry_run, schedule_s=schedule_s),
        lease=broker.lease(by=by, dry_run=dry_run),
        dry_run=dry_run,
        by=by,
        report=context.report,
        monotonic=context.monotonic,
    )
