"""The part that cleans the results by schedule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

from worker_guard.part import Context, Part
from worker_guard.results.cleanup import open_scheduled_cleanup


class ResultsPart(Part):
    """Old results are deleted by schedule, in one worker at a time."""

    name: ClassVar[str] = "results"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        worker = context.worker
        self._cleanup = open_scheduled_cleanup(
            worker.app,
            context.settings,
            by=worker.hostname,
            totals=SimpleNamespace(expired_results_deleted=0, task_states_cleaned=0),
            report=context.report,
            monotonic=context.monotonic,
        )
        self.jobs.append(self._cleanup)

    def stop(self, *, cold: bool) -> None:
        """Let another worker clean up."""
        if not cold:
            self._cleanup.give_back()
