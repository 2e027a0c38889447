"""What the task does, in a process of the pool."""

from __future__ import annotations

from typing import Any

from worker_guard.event_log import Reporter, open_log, structlog_is_configured
from worker_guard.lease import Lease, SeenLease
from worker_guard.results.backend import TIMEOUT_S, open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup, open_history, open_lease
from worker_guard.scheduler import run_to_end
from worker_guard.settings import read_settings


def run_task(
    app: Any, *, by: str | None, max_age_hours: float | None, dry_run: bool
) -> dict[str, Any]:
    """Clean under the lease, log ``cleanup_completed``, and return the statistics.

    Raises:
        redis.exceptions.RedisError: the server is away, or refused a change. The log has what was
            done before.
    """
    settings = read_settings(
        app.conf, dry_run=dry_run, structlog_configured=structlog_is_configured()
    )
    by = by or "task"
    backend = open_result_backend(app, settings, timeout_s=TIMEOUT_S)
    job = FullSpeedCleanup(
        backend,
        max_age_s=seconds_of(max_age_hours),
        dry_run=settings.dry_run,
        by=by,
        trigger="task",
    )
    backend.check()
    lease = open_lease(backend, by, dry_run=settings.dry_run)
    run_to_end(lease.take())
    if not lease.held:
        return {"skipped": "another cleanup of this result backend is running"}
    log, close = open_log(settings.log_format)
    try:
        job.run(lambda _scanned: _keep(lease))
        run_to_end(lease.release())
    finally:
        outcome = job.outcome()
        if outcome is not None:
            Reporter(log, worker=by, dry_run=settings.dry_run)(outcome.event)
        close()
    assert outcome is not None
    open_history(backend, dry_run=settings.dry_run).add(outcome)
    if job.refused is not None:
        raise job.refused
    return outcome.statistics()


def _keep(lease: Lease | SeenLease) -> None:
    run_to_end(lease.renew())


def seconds_of(hours: float | None) -> float | None:
    """An age in hours as seconds.

    Raises:
        ValueError: it is not a number above 0.
    """
    if hours is None:
        return None
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < 8.8e6:
        raise ValueError(f"max_age_hours is {hours!r}; allowed: hours, above 0")
    return float(hours) * 3600
