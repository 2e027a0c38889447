"""The guard of one worker: its parts, from start to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any, TypeVar

import celery
from celery.utils.log import get_logger
from celery.worker import state

from worker_guard import celery_internals
from worker_guard.activity import Activity
from worker_guard.alerts.part import AlertsPart
from worker_guard.broker.part import BrokerPart
from worker_guard.event_log import Reporter, open_log
from worker_guard.events import Event, Started, Stopped
from worker_guard.health.part import HealthPart
from worker_guard.memory.part import MemoryPart
from worker_guard.metrics.part import MetricsPart
from worker_guard.part import Context, Part, PartOff
from worker_guard.results.part import ResultsPart
from worker_guard.revoked.part import RevokedPart
from worker_guard.scheduler import Scheduler
from worker_guard.settings import Settings
from worker_guard.stall.part import StallPart
from worker_guard.status_model import ON, GuardStatus
from worker_guard.values.masking import reason_of

logger = get_logger(__name__)

#: In the order in which they start and stop.
PARTS: tuple[type[Part], ...] = (
    HealthPart,
    RevokedPart,
    ResultsPart,
    BrokerPart,
    MemoryPart,
    StallPart,
    AlertsPart,
    MetricsPart,
)

P = TypeVar("P", bound=Part)


class Guard:
    """Everything that runs inside one worker. It treats all parts alike, as a ``Part``."""

    def __init__(
        self, worker: Any, settings: Settings, *, version: str, before_statedb: Collection[str] = ()
    ) -> None:
        self._worker, self._settings, self._version = worker, settings, version
        self._started_mono = time.monotonic()
        log, self._close_log = open_log(settings.log_format)
        self._reporter = Reporter(log, worker=worker.hostname, dry_run=settings.dry_run)
        self._activity = Activity(dry_run=settings.dry_run, monotonic=time.monotonic, now=time.time)
        self._scheduler = Scheduler(report=self._report, monotonic=time.monotonic)
        self._context = Context(
            worker=worker,
            settings=settings,
            report=self._report,
            preview=self._reporter.as_dry_run(),
            scheduler=self._scheduler,
            activity=self._activity,
            status=partial(self.status, quick=True),
            status_of=self._status_of,
            before_statedb=before_statedb,
        )
        self._parts: list[Part] = []
        self._off: dict[str, str] = {}
        for kind in PARTS:
            try:
                part = kind(self._context)
            except Exception as exc:  # noqa: BLE001 - the start event gives the reason
                self._off.update(dict.fromkeys((kind.name, *kind.also), reason_of(exc)))
                continue
            self._parts.append(part)
            for job in part.jobs:
                self._scheduler.add(job)

    @property
    def parts(self) -> dict[str, str]:
        """Each part with ``"on"`` or the reason why it is off."""
        states = dict(self._off)
        for part in self._parts:
            states.update(part.states)
        return dict(sorted(states.items()))

    def part(self, kind: type[P]) -> P:
        """The part of this kind.

        Raises:
            PartOff: it is off; the message is the reason.
        """
        for part in self._parts:
            if isinstance(part, kind):
                return part
        raise PartOff(self._off[kind.name])

    # -- the worker's life -----------------------------------------------------------------

    def start(self) -> None:
        """Start each part, and report that the guard runs."""
        self._parts = [part for part in self._parts if self._start(part)]
        self._report(
            Started(
                version=self._version,
                celery_version=celery.__version__,
                pool=celery_internals.pool_name(self._worker),
                concurrency=self._worker.concurrency,
                parts=self.parts,
                settings=self._settings.named(),
            )
        )

    def arm(self, consumer: Any) -> None:
        """The consumer is connected: tick on its timer."""
        for part in self._parts:
            self._context.attempt(part.name, part.connected)
        self._scheduler.arm_by(consumer)

    def disarm(self) -> None:
        """The consumer's connection is lost, and on some Celery releases its timers too."""
        self._scheduler.disarm()

    def stop(self, *, cold: bool = False) -> None:
        """Stop each part, and report what was done since the start."""
        self._scheduler.disarm()
        for part in self._parts:
            self._stop(part, cold=cold)
        done = asdict(self._activity.totals)
        self._report(Stopped(**{f.name: done[f.name] for f in fields(Stopped)}))
        self._close_log()

    def abandon(self) -> None:
        """Undo everything after a failed start."""
        for part in self._parts:
            self._stop(part, cold=True)
        self._close_log()

    def _start(self, part: Part) -> bool:
        try:
            part.start()
        except Exception as exc:  # noqa: BLE001 - the start event gives the reason
            off = reason_of(exc)
            self._off.update({n: off if why == ON else why for n, why in part.states.items()})
            self._stop(part, cold=True)
            return False
        return True

    def _stop(self, part: Part, *, cold: bool) -> None:
        for job in part.jobs:
            # A run that is under way reports what it has done so far.
            self._context.attempt(job.name, partial(self._scheduler.drop, job.name))
        self._context.attempt(part.name, partial(part.stop, cold=cold))

    # -- what is known ---------------------------------------------------------------------

    def status(self, *, quick: bool = False) -> GuardStatus:
        """The state of this guard; ``quick`` leaves out what takes milliseconds."""
        shares: dict[str, Any] = {}
        for part in self._parts:
            shares.update(part.status(quick=quick))
        return GuardStatus(
            version=self._version,
            celery_version=celery.__version__,
            worker=str(self._worker.hostname),
            pid=os.getpid(),
            pool=celery_internals.pool_name(self._worker),
            concurrency=self._worker.concurrency,
            uptime_s=round(time.monotonic() - self._started_mono, 1),
            active_tasks=len(state.active_requests),
            dry_run=self._settings.dry_run,
            parts=self.parts,
            consecutive_failures=self._scheduler.failures(),
            **self._activity.status(),
            **shares,
        )

    def _status_of(self, name: str) -> Mapping[str, Any]:
        shares = (part.status(quick=True) for part in self._parts if part.name == name)
        return next(shares, {})

    def _report(self, event: Event) -> None:
        """Never raises: jobs report their failures with it, in timer callbacks."""
        try:
            self._activity.note(event)
        except Exception:
            logger.exception("%s was not counted", event.name)
        self._reporter(event)
