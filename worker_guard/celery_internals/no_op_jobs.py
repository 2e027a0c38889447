"""No-op jobs: they make an idle child check its exit event in a pool without an event loop.

Relies on: ``Pool._pool``, ``_putlock`` and ``apply_async``; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

from typing import Any

from celery.utils.functional import noop


class NoOpJobs:
    """Gives a no-op job to each idle child, as Celery's own ``TaskPool.restart`` gives one.

    All children take turns to read one queue, so the guard can't choose which child gets a job.
    Each idle child must get one, so that the right one does.
    """

    NEEDED = ("_putlock", "apply_async")

    def __init__(self) -> None:
        self._given: list[Any] = []

    def give(self, pool: Any) -> None:
        """Give one for each child and free slot, unless some of the last ones are unfinished."""
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
