"""The bootstep that ``app.steps["worker"].add(WorkerGuard)`` adds to a worker."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.utils.log import get_logger

from worker_guard import register
from worker_guard.settings import SettingError, check_shares, read_settings

if TYPE_CHECKING:
    from worker_guard.guard import Guard

logger = get_logger(__name__)


class WorkerGuard(bootsteps.StartStopStep):
    """The guard's worker step. Add it to ``app.steps["worker"]``; settings are optional.

    Raises:
        SettingError: at worker start, on a bad ``worker_guard_*`` setting.
    """

    label = "WorkerGuard"

    # Celery starts this step after it reads the statedb, and before the consumer alone. So it stops
    # this step after the consumer, when no more messages arrive, and before it writes the statedb.
    requires = ("celery.worker.components:StateDB", "celery.worker.components:Pool")

    def __init__(self, worker: Any, guard_dry_run: bool = False, **kwargs: Any) -> None:
        from celery.worker import state as worker_state

        from worker_guard.event_log import structlog_is_configured

        self.settings = read_settings(
            worker.app.conf,
            dry_run=bool(guard_dry_run),
            structlog_configured=structlog_is_configured(),
        )
        self.enabled = self.settings.enabled
        if guard_dry_run and not self.enabled:
            raise SettingError(
                "--guard-dry-run was given, but worker_guard_enabled is False; remove one of them"
            )
        if guard_dry_run:
            # The cleanup task needs it too: it runs in the pool and does not see the command line.
            worker.app.conf.worker_guard_dry_run = True
        if self.enabled:
            self._check_shares(worker)
        self.guard: Guard | None = None
        # No step has read the statedb yet, so the application put these ids into the set.
        self._before_statedb = frozenset(worker_state.revoked)
        super().__init__(worker, **kwargs)
        if self.enabled:
            worker.app.steps["consumer"].add(GuardTimer)
            self._prepare_pool(worker)

    def _check_shares(self, worker: Any) -> None:
        from worker_guard.memory.reader import available_bytes

        try:
            available = available_bytes()
        except Exception:  # noqa: BLE001 - the memory part fails alike, and reports why
            return
        check_shares(worker.app.conf, self.settings, available)

    def _prepare_pool(self, worker: Any) -> None:
        """Let the pool, which is not made yet, ask its children to leave."""
        from worker_guard.celery_internals import MissingInternalError, allow_recycling

        limits = (self.settings.child_memory_limit, self.settings.total_memory_limit)
        if limits == (None, None) or self.settings.dry_run:
            return
        # If this release lacks it, recycling is off, and the start event says so.
        with contextlib.suppress(MissingInternalError):
            allow_recycling(worker)

    def start(self, worker: Any) -> None:
        """Start the guard. If it fails, the failure is logged and the worker runs without it."""
        from worker_guard import __version__
        from worker_guard.guard import Guard

        try:
            guard = Guard(
                worker,
                self.settings,
                version=__version__,
                before_statedb=self._before_statedb,
            )
            try:
                guard.start()
            except Exception:
                guard.abandon()
                raise
        except Exception:
            logger.exception("worker_guard could not start; the worker runs without it")
        else:
            self.guard = guard

    def stop(self, worker: Any) -> None:
        """Stop the guard at a warm shutdown."""
        self._stop(worker, cold=False)

    def terminate(self, worker: Any) -> None:
        """Stop the guard at a cold shutdown."""
        self._stop(worker, cold=True)

    def _stop(self, worker: Any, *, cold: bool) -> None:
        guard, self.guard = self.guard, None
        worker.app.steps["consumer"].discard(GuardTimer)
        if guard is not None:
            guard.stop(cold=cold)


class GuardTimer(bootsteps.StartStopStep):
    """Arms the guard's timers for each broker connection.

    A worker step can't do this: in Celery 5.3 to 5.6 its timers end with the connection.
    """

    label = "WorkerGuardTimer"
    requires = ("celery.worker.consumer.mingle:Mingle",)

    def start(self, consumer: Any) -> None:
        """Arm the timers for a new connection."""
        guard = guard_of(consumer.controller)
        if guard is None:
            return
        try:
            guard.arm(consumer)
        except Exception:
            # An error here would end the worker, or make it drop its connection.
            logger.exception("worker_guard could not set its timers; the worker runs without it")

    def stop(self, consumer: Any) -> None:
        """Disarm the timers when the connection is lost or closed."""
        guard = guard_of(consumer.controller)
        if guard is not None:
            guard.disarm()


def step_of(worker: Any) -> WorkerGuard | None:
    """The guard's step in this worker, or None if the app has none."""
    step = worker.blueprint.steps.get(WorkerGuard.name)
    return step if isinstance(step, WorkerGuard) else None


def guard_of(worker: Any) -> Guard | None:
    """The guard that runs in this worker, or None."""
    step = step_of(worker)
    return None if step is None else step.guard


# Also for an app that names this module: the step comes with its remote commands and its task.
register()
