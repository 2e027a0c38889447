"""The task ``worker_guard.cleanup``: the cleanup of the results, for a Beat schedule or a call.

Importing this module registers it with every app, as :func:`~celery.shared_task` does.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task


@shared_task(
    name="worker_guard.cleanup",
    bind=True,
    # A cleanup that failed is tried again when it is next due, and not before.
    autoretry_for=(),
    max_retries=0,
    acks_late=False,
)
def cleanup(self: Any, max_age_hours: float | None = 24, dry_run: bool = False) -> dict[str, Any]:
    """Delete results that are older than ``max_age_hours``; None: the age that is configured.

    Returns the statistics, or ``{"skipped": why}`` where another cleanup runs.

    Raises:
        ValueError: ``max_age_hours`` is no number above 0.
        WorkerGuardError: the result backend can't be cleaned, or there is no age to go by.
    """
    from worker_guard.results.task_run import run_task

    return run_task(
        self.app, by=self.request.hostname, max_age_hours=max_age_hours, dry_run=bool(dry_run)
    )
