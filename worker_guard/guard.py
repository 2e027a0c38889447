"""The guard of one worker: its parts put together, started, armed and stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import celery
from celery.worker import state

from worker_guard import celery_internals
from worker_guard.alerts.part import Alerts
from worker_guard.backoff import Backoff
from worker_guard.event_log import Reporter, open_log
from worker_guard.events import (
    CleanupCompleted,
    Event,
    PartFailed,
    Started,
    Stopped,
    Trigger,
)
from worker_guard.memory.part import Memory
from worker_guard.metrics.catalogue import AlertFigures, Figures, Tally, figures_of
from worker_guard.metrics.endpoint import Endpoint
from worker_guard.metrics.part import METRICS, Metrics
from worker_guard.results.cleanup import open_scheduled_cleanup
from worker_guard.results.scheduled_cleanup import ScheduledCleanup
from worker_guard.revoked.part import Revoked
from worker_guard.revoked.sweeper import Sweeper, Totals
from worker_guard.scheduler import BURST_S, REST_S, Later, Part, Scheduler
from worker_guard.settings import Settings
from worker_guard.values.masking import reason_of

_ON = "on"


@dataclass(frozen=True, kw_only=True)
class _Past:
    """An event that is remembered, and when it was, by the wall clock and by the monotonic one."""

    event: CleanupCompleted
    at: float
    ended_mono: float

    def describe(self, now: float) -> dict[str, Any]:
        age_s = round(now - self.ended_mono, 1)
        return {**asdict(self.event), "at": round(self.at, 3), "age_s": age_s}


class Guard:
    """All that runs inside one worker.

    A part that can't run on this release, or with this configuration, is off, with its reason in
    :attr:`parts`; the others run.
    """

    def __init__(
        self, worker: Any, settings: Settings, *, version: str, before_statedb: Collection[str] = ()
    ) -> None:
        self._worker = worker
        self._before_statedb = before_statedb
        self._settings = settings
        self._version = version
        self._monotonic: Callable[[], float] = time.monotonic
        self.parts: dict[str, str] = {}
        self._totals = Totals()
        self._tally = Tally()
        self._started_mono = self._monotonic()
        self._last_cleanup: _Past | None = None
        self._last_clearing: _Past | None = None
        self._last_results_cleanup: _Past | None = None

        log, self._close_log = open_log(settings.log_format)
        self._reporter = Reporter(log, worker=worker.hostname, dry_run=settings.dry_run)
        self._compose()

    def _compose(self) -> None:
        settings = self._settings
        self._pool_hooks = self._containment("memory_pool")
        self._metering = self._containment(METRICS)
        self._revoked = Revoked(
            self._worker.app,
            settings,
            totals=self._totals,
            report=self._report,
            run_soon=self._hasten,
            monotonic=self._monotonic,
        )
        parts: list[Part] = [*self._revoked.parts]
        self._janitor = self._open_janitor()
        if self._janitor is not None:
            parts.append(self._janitor)
        self._memory = self._compose_memory()
        if self._memory is not None:
            parts.extend(self._memory.parts)
        self._alerts = Alerts(
            settings,
            app=self._worker.app,
            revoked_tasks=self._revoked.alarming,
            report=self._report,
            monotonic=self._monotonic,
        )
        self.parts.update(self._alerts.states)
        parts.extend(self._alerts.parts)
        self._metrics = Metrics(
            settings,
            figures=self._figures,
            states=self.parts,
            failed=lambda error: self._metering.noticed(error, self._monotonic()),
            monotonic=self._monotonic,
        )
        parts.extend(self._metrics.parts)
        self._scheduler = Scheduler(
            parts,
            report=self._report,
            monotonic=self._monotonic,
            longest_pauses_s=self._revoked.longest_pauses_s,
        )

    def _compose_memory(self) -> Memory | None:
        try:
            memory = Memory(
                self._worker,
                self._settings,
                report=self._report,
                recycled=self._child_recycled,
                run_soon=self._hasten,
                on_error=lambda error: self._pool_hooks.noticed(error, self._monotonic()),
                monotonic=self._monotonic,
            )
        except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
            self.parts["memory"] = self.parts["recycling"] = reason_of(exc)
            return None
        self.parts.update(memory.states)
        return memory

    def _open_janitor(self) -> ScheduledCleanup | None:
        try:
            janitor, self.parts["results"] = (
                open_scheduled_cleanup(
                    self._worker.app,
                    self._settings,
                    by=self._worker.hostname,
                    totals=self._totals,
                    report=self._report,
                    monotonic=self._monotonic,
                ),
                _ON,
            )
        except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
            self.parts["results"] = reason_of(exc)
            return None
        return janitor

    # -- the worker's life -----------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch, and report that the guard runs."""
        self._start_revoked()
        self._start_memory()
        pool = celery_internals.pool_name(self._worker)
        self._attempt(METRICS, lambda: self._metrics.start(pool))
        self._scheduler.run_soon(Endpoint.name)
        self._report(
            Started(
                version=self._version,
                celery_version=celery.__version__,
                pool=pool,
                concurrency=self._worker.concurrency,
                parts=dict(sorted(self.parts.items())),
                settings=self._settings.named(),
            )
        )

    def _start_revoked(self) -> None:
        parts = self._revoked.parts
        self._revoked.start(self._worker, before_statedb=self._before_statedb)
        for part in parts:
            if part not in self._revoked.parts:
                self._scheduler.drop(part.name)
        self.parts.update(self._revoked.states)

    def _start_memory(self) -> None:
        memory = self._memory
        if memory is None:
            return
        try:
            memory.start()
        except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
            self._memory = None
            for part in memory.parts:
                self._scheduler.drop(part.name)
            self.parts["memory"] = self.parts["recycling"] = reason_of(exc)
            self._attempt("memory", memory.stop)

    def abandon(self) -> None:
        """Leave the worker as it was found, after a start that failed."""
        with ExitStack() as steps:  # each, from the last one on, though another raises
            steps.callback(self._close_log)
            steps.callback(self._metrics.stop)
            if self._memory is not None:
                steps.callback(self._memory.stop)
            steps.callback(self._revoked.unhook)

    def arm(self, consumer: Any) -> None:
        """The consumer has a connection: tick by its timer."""
        timer = consumer.timer
        later: Later = timer.call_after
        burst_s = 0.0
        if consumer.hub is None:
            burst_s = BURST_S

            # Without an event loop the timer is a thread or a greenlet of its own, and the set
            # is not made for two threads.
            def later(delay_s: float, tick: Callable[[], None]) -> None:
                timer.call_after(delay_s, consumer.call_soon, (tick,))

        self._scheduler.arm(later, burst_s=burst_s, rest=lambda: time.sleep(REST_S))

    def disarm(self) -> None:
        """The consumer's connection is gone, and on some releases its timers with it."""
        self._scheduler.disarm()
        if self._memory is not None:
            self._memory.disconnected()

    def stop(self, *, cold: bool = False) -> None:
        """Sweep for the last time, before the statedb is written, and undo every hook.

        A ``cold`` shutdown asks the result backend nothing.
        """
        self._scheduler.disarm()
        self._attempt(Sweeper.name, lambda: self._scheduler.close(Sweeper.name))
        if (janitor := self._janitor) is not None:
            # A sweep under way reports what it has done so far.
            self._attempt(janitor.name, lambda: self._scheduler.close(janitor.name))
            if not cold:
                self._attempt(janitor.name, janitor.give_back)
        if not cold:
            self._attempt("operator_marks", self._revoked.write_last_marks)
        self._attempt("last_sweep", lambda: self._revoked.sweep_for_the_last_time(ask=not cold))
        if (memory := self._memory) is not None:
            self._attempt("memory", memory.stop)
        self._attempt(METRICS, self._metrics.stop)
        self._revoked.unhook()
        self._attempt("statedb", lambda: self._revoked.note_in_statedb(self._worker))
        self._report(
            Stopped(
                revoked_tasks_cleared=self._totals.revoked_tasks_cleared,
                expired_results_deleted=self._totals.expired_results_deleted,
                task_states_cleaned=self._totals.task_states_cleaned,
                children_recycled=self._totals.children_recycled,
            )
        )
        self._close_log()

    def _attempt(self, part: str, step: Callable[[], None]) -> None:
        """Do one step of the shutdown; its failure is reported, and the next one is done."""
        try:
            step()
        except Exception as exc:  # noqa: BLE001 - reported; not tried again, so no pause
            self._report(
                PartFailed(
                    part=part,
                    error=f"{type(exc).__name__}: {exc}",
                    consecutive_failures=1,
                    retry_in_s=0.0,
                )
            )

    # -- remote commands -------------------------------------------------------------------

    def sweep(
        self, *, dry_run: bool, trigger: Trigger = "control"
    ) -> tuple[CleanupCompleted | None, bool]:
        """Sweep now; returns what came of it, and whether nothing was changed.

        None: it takes more than one slice, and the log will say what came of it.
        """
        preview = dry_run and not self._settings.dry_run
        report = self._reporter.as_dry_run() if preview else self._report
        done, rest = self._revoked.sweep(report, trigger, preview=preview)
        if done is None:
            self._scheduler.resume(Sweeper.name, rest)
        return done, dry_run or self._settings.dry_run

    def describe(self, *, suspects: bool = True) -> dict[str, Any]:
        """The state of this guard: counts, whatever the set's size, and never ids."""
        now = self._monotonic()

        def age(past: _Past | None) -> dict[str, Any] | None:
            return None if past is None else past.describe(now)

        return {
            "version": self._version,
            "pid": os.getpid(),
            "pool": celery_internals.pool_name(self._worker),
            "concurrency": self._worker.concurrency,
            "uptime_s": round(now - self._started_mono, 1),
            "active_tasks": len(state.active_requests),
            "dry_run": self._settings.dry_run,
            "parts": dict(sorted(self.parts.items())),
            "consecutive_failures": {
                **self._scheduler.failures(),
                "revoked_verify": self._revoked.lookups.consecutive_failures,
            },
            "revoked": self._revoked.describe(
                due_in_s=self._scheduler.due_in_s(Sweeper.name), compare=suspects
            ),
            "memory": self._memory.describe(suspects=suspects) if self._memory else None,
            "alerts": self._alerts.describe(),
            "totals": asdict(self._totals),
            "last_cleanup": age(self._last_cleanup),
            "last_clearing": age(self._last_clearing),
            "last_results_cleanup": age(self._last_results_cleanup),
            "last_backfill": self._describe_backfill(now),
        }

    def _describe_backfill(self, now: float) -> dict[str, Any] | None:
        backfill = self._revoked.backfill
        if backfill.last is None:
            return None
        age_s = now - backfill.last_mono
        at = round(time.time() - age_s, 3)
        return {**asdict(backfill.last), "at": at, "age_s": round(age_s, 1)}

    def _figures(self) -> Figures:
        """For the metrics, on whichever thread they are collected."""
        alerts = {alert.name: alert for alert in self._alerts.all}
        redis_memory = alerts.get("redis_memory")
        return figures_of(
            self.describe(suspects=False),
            info={
                "worker": str(self._worker.hostname),
                "version": self._version,
                "celery_version": celery.__version__,
                "pool": celery_internals.pool_name(self._worker),
                "dry_run": str(self._settings.dry_run).lower(),
            },
            tally=self._tally,
            expired=asdict(self._revoked.backfill.causes_in_all()),
            alerts={
                name: AlertFigures(threshold=alert.threshold, active=alert.since_mono is not None)
                for name, alert in alerts.items()
            },
            redis_memory_share=None if redis_memory is None else redis_memory.value,
        )

    # -- what the parts are given ----------------------------------------------------------

    def _report(self, event: Event) -> None:
        if isinstance(event, CleanupCompleted):
            self._remember(event, _Past(event=event, at=time.time(), ended_mono=self._monotonic()))
        self._tally.note(event)
        self._reporter(event)

    def _remember(self, event: CleanupCompleted, past: _Past) -> None:
        self._last_cleanup = past
        if event.revoked_tasks_cleared:
            self._last_clearing = past
        if event.trigger == "schedule":
            self._last_results_cleanup = past

    def _containment(self, part: str) -> Backoff:
        return Backoff(part, first_pause_s=self._settings.interval, report=self._report)

    def _hasten(self, part: str, *, within_s: float = 0.0, anyway: bool = False) -> None:
        # The parts are made before the scheduler that runs them.
        self._scheduler.run_soon(part, within_s=within_s, anyway=anyway)

    def _child_recycled(self) -> None:
        self._totals.children_recycled += 1
        self._alerts.recycled()
