"""The task ``worker_guard.cleanup``: the cleanup of the results, for a Beat schedule or a call.

Importing this module registers the task with every app, as :func:`~celery.shared_task` does.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task


@shared_task(
    name="worker_guard.cleanup",
    bind=True,
    # After a failure the next run of the schedule cleans, and no retry before it.
    autoretry_for=(),
    max_retries=0,
    acks_late=False,
)
def cleanup(self: Any, max_age_hours: float | None = 24, dry_run: bool = False) -> dict[str, Any]:
    """Delete results that are older than ``max_age_hours``; None: the configured age.

    Returns the statistics, or ``{"skipped": why}`` if another cleanup runs.

    Raises:
        ValueError: ``max_age_hours`` is not a number above 0.
        WorkerGuardError: a cleanup is not possible, or no age is configured.
    """
    from worker_guard.results.task_run import run_task

    return run_task(
        self.app, by=self.request.hostname, max_age_hours=max_age_hours, dry_run=bool(dry_run)
    )
