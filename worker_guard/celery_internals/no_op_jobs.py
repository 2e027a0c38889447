"""Empty jobs: what makes an idle child look at its sentinel in a pool without an event loop."""

from __future__ import annotations

from typing import Any

from celery.utils.functional import noop


class NoOpJobs:
    """Gives an no-op job to each idle child, as Celery's own ``TaskPool.restart`` does to one.

    All children read one queue, in turns: nobody can choose who gets which job, so each idle one
    has to get an no-op job for the one that is meant to get its own.

    Relies on ``Pool._pool``, ``_putlock`` and ``apply_async``.
    """

    NEEDED = ("_putlock", "apply_async")

    def __init__(self) -> None:
        self._given: list[Any] = []

    def give(self, pool: Any) -> None:
        """Give as many as there are children and free slots, unless the last ones are under way."""
        self._given = [job for job in self._given if not job.ready()]
        if self._given:
            return
        for _ in range(len(pool._pool)):
            if not pool._putlock.acquire(False):
                return
            job = pool.apply_async(noop, waitforslot=False)
            if job is None:
                return
            self._given.append(job)
