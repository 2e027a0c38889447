"""The children of a prefork pool, and how one of them leaves.

Relies on: ``TaskPool._pool`` (None after stop), ``Pool._pool``, ``_cache``, ``_poolctrl``,
``_processes`` and the processes' ``index`` and ``exitcode``; with an event loop also on
``AsynPool._waiting_to_start``, ``_result_handler`` and the names in
:mod:`~worker_guard.celery_internals.inboxes`, without one on those in :class:`NoOpJobs`; read in
Celery 5.3.6 to 5.7, run on billiard 4.2.0 and 4.3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from billiard.pool import EX_OK, EX_RECYCLE
from celery.worker import state

from worker_guard.celery_internals import inboxes
from worker_guard.celery_internals.hooks import Hook, MissingInternalError
from worker_guard.celery_internals.host import pool_name
from worker_guard.celery_internals.no_op_jobs import NoOpJobs


@dataclass(frozen=True, kw_only=True)
class PoolChild:
    """A process of the pool.

    Its replacement takes over its ``slot``. ``up`` is False until it reports that it takes tasks.
    """

    pid: int
    slot: int
    up: bool


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """A task that a child accepted at ``since_mono`` and has not finished."""

    task_id: str
    task_name: str
    since_mono: float | None


def running_tasks(pool: Any) -> Iterator[tuple[int, Any, RunningTask]]:
    """The process id, the job and the task of each job that a child accepted and has not finished.

    Relies on ``ApplyResult._time_accepted``, a reading of the child's monotonic clock. On platforms
    that fork, the main process has the same clock, as Celery's own ``time_start`` assumes.
    """
    for job in list(pool._cache.values()):
        if job.correlation_id and job.accepted() and not job.ready():
            known = state.requests.get(job.correlation_id)
            task = RunningTask(
                task_id=job.correlation_id,
                task_name=str(getattr(known, "name", "")),
                since_mono=getattr(job, "_time_accepted", None),
            )
            for pid in job.worker_pids():
                yield pid, job, task


class PoolChildren:
    """The children of a prefork pool, and how one of them leaves without losing its work.

    billiard gives each child an exit event, which the child checks before it waits for its next
    job. The guard sets that event. An idle child has already checked it, so the guard makes it
    check again: with an event loop by a nudge in its inbox, without one by a no-op job. The guard
    never sends a signal, so no job is lost: the child runs what the pool has written to it, or the
    pool puts back what the child did not begin.

    With an event loop the pool gives no further job to a child that was asked to leave (see
    :mod:`~worker_guard.celery_internals.inboxes`). :meth:`ask_to_leave` does all that this takes:
    the child leaves and its slot is filled even if the guard never looks at it again.

    Raises:
        MissingInternalError: the pool has no children, or lacks a name that this relies on.
    """

    _NEEDED = ("_pool", "_cache", "_processes", "_poolctrl")
    _NEEDED_BY_LOOP = ("_waiting_to_start", "_result_handler", *inboxes.NEEDED)

    def __init__(self, worker: Any) -> None:
        from celery.concurrency.prefork import TaskPool

        if not isinstance(worker.pool, TaskPool):
            raise MissingInternalError(f"the {pool_name(worker)} pool has no children")
        self._task_pool = worker.pool
        pool = worker.pool._pool
        #: Whether an event loop drives the pool; if not, threads of its own do.
        self.has_event_loop = not getattr(pool, "threads", True)
        needed = self._NEEDED + (self._NEEDED_BY_LOOP if self.has_event_loop else NoOpJobs.NEEDED)
        missing = [name for name in needed if not hasattr(pool, name)]
        if missing:
            raise MissingInternalError(f"this release's pool has no {', '.join(missing)}")
        self._asked: dict[int, Any] = {}
        self._no_op_jobs = NoOpJobs()

    def why_not_to_recycle(self) -> str:
        """Why the children can't be asked to leave; empty if they can."""
        if not getattr(self._task_pool._pool, "allow_restart", False):
            return "the pool was made without an exit event for each child"
        if not self.has_event_loop and not getattr(self._task_pool, "forking_enable", True):
            return "a pool with threads that spawns its children loses them when its thread ends"
        return ""

    def listed(self) -> list[PoolChild]:
        """The children of the pool now, in the order of their slots."""
        pool = self._task_pool._pool
        if pool is None:
            return []
        waiting = getattr(pool, "_waiting_to_start", ())
        children = [
            PoolChild(pid=process.pid, slot=process.index, up=process not in waiting)
            for process in list(pool._pool)
            if process.pid is not None
        ]
        return sorted(children, key=lambda child: child.slot)

    def size(self) -> int:
        """How many children the pool should have."""
        pool = self._task_pool._pool
        return 0 if pool is None else int(pool._processes)

    def count_up(self) -> int:
        """How many children are alive and, with an event loop, have said that they take tasks.

        Unlike ``PoolChild.up`` it is exact for the children that the pool starts with too.
        """
        pool = self._task_pool._pool
        alive = [p for p in (() if pool is None else list(pool._pool)) if p.exitcode is None]
        if self.has_event_loop:
            alive = [process for process in alive if inboxes.is_known(pool, process)]
        return len(alive)

    def running(self) -> dict[int, RunningTask]:
        """The task that each busy child has accepted and not finished."""
        pool = self._task_pool._pool
        return {} if pool is None else {pid: task for pid, _, task in running_tasks(pool)}

    def is_busy(self, pid: int) -> bool:
        """Whether the pool gave this child a job that isn't known to be finished."""
        process = self._process(pid)
        return process is not None and bool(self._jobs(self._task_pool._pool, process))

    def ask_to_leave(self, pid: int) -> bool:
        """Set the child's exit event and give it no further job; False: not now, try again.

        A child is not asked before it is up, nor while its first job is on its way to it. If the
        connection to the broker is lost at that moment, Celery forgets the job. A child that
        leaves without reading it would pass it on to its replacement, and the broker would send
        the same job again.

        The event's lock is tried, not waited for: a child killed while it holds the lock never
        releases it.
        """
        process = self._process(pid)
        pool = self._task_pool._pool
        exit_event = None if process is None else pool._poolctrl.get(pid)
        if exit_event is None or (self.has_event_loop and not self._has_settled(pool, process)):
            return False
        if not exit_event._cond.acquire(False):
            return False
        try:
            # As Event.set does, but without the notification: nobody waits for it.
            exit_event._flag.acquire(False)
            exit_event._flag.release()
        finally:
            exit_event._cond.release()
        self._asked[pid] = process
        if self.has_event_loop:
            inboxes.close(pool, process)
        return True

    def wake(self, pid: int) -> None:
        """Make an idle child check its exit event, in a pool without an event loop.

        With an event loop :meth:`ask_to_leave` has done so.
        """
        process = self._process(pid)
        pool = self._task_pool._pool
        if process is not None and not self.has_event_loop and not self._jobs(pool, process):
            self._no_op_jobs.give(pool)

    def let_stay(self) -> None:
        """Let the pool give jobs again to the children that have not left yet."""
        pool = self._task_pool._pool
        if pool is not None and self.has_event_loop:
            for process in self._asked.values():
                if process in pool._pool:
                    inboxes.reopen(pool, process, busy=bool(self._jobs(pool, process)))

    def has_left(self, pid: int) -> bool:
        """Whether a child that was asked to leave is gone from the pool."""
        return self._process(pid) is not self._asked.get(pid)

    def left_by_itself(self, pid: int) -> bool:
        """Whether a child left between two tasks and not by a signal. Forgets the child."""
        process = self._asked.pop(pid, None)
        return process is not None and process.exitcode in (EX_OK, EX_RECYCLE)

    def maintain(self) -> None:
        """Have the pool reap and replace the children that have left now, not at its next check.

        Only with an event loop: without one a thread of the pool does that, and two must not.
        """
        if self.has_event_loop and self._task_pool._pool is not None:
            self._task_pool.maintain_pool()

    def watch_births(self, on_born: Callable[[int], None]) -> Hook | None:
        """Call ``on_born(pid)`` when a child is up, before it gets a task.

        None for a pool with threads, which does not report this. Relies on
        ``ResultHandler.state_handlers``.
        """
        if not self.has_event_loop:
            return None
        from celery.concurrency.asynpool import WORKER_UP

        handlers = getattr(self._task_pool._pool._result_handler, "state_handlers", None)
        if handlers is None or WORKER_UP not in handlers:
            raise MissingInternalError("this release's pool does not report when a child is up")

        def wrap(on_process_alive: Callable[..., Any]) -> Callable[..., Any]:
            def watched(pid: int) -> Any:
                result = on_process_alive(pid)
                on_born(pid)
                return result

            return watched

        return Hook(handlers, WORKER_UP, wrap)

    def _process(self, pid: int) -> Any:
        pool = self._task_pool._pool
        processes = () if pool is None else list(pool._pool)
        return next((process for process in processes if process.pid == pid), None)

    @classmethod
    def _has_settled(cls, pool: Any, process: Any) -> bool:
        """Whether the child is up and, if it was given jobs, has begun one of them."""
        jobs = cls._jobs(pool, process)
        return inboxes.is_known(pool, process) and (not jobs or any(job.accepted() for job in jobs))

    @staticmethod
    def _jobs(pool: Any, process: Any) -> list[Any]:
        """The jobs of this child that aren't known to be finished."""
        return [
            job
            for job in list(pool._cache.values())
            if not job.ready()
            and (
                process.pid in job.worker_pids()
                or job._write_to is process
                or job._scheduled_for is process
            )
        ]
