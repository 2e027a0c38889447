"""The children of a prefork pool, and how one of them leaves."""

from __future__ import annotations

from collections.abc import Callable
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
    """A process of the pool. ``slot`` is its place, which its replacement takes over.

    ``up`` is False until it has said that it takes tasks.
    """

    pid: int
    slot: int
    up: bool


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """A task that a child has accepted and not finished; ``since_mono`` is when it did."""

    task_id: str
    task_name: str
    since_mono: float | None


class PoolChildren:
    """The children of a prefork pool, and how one of them leaves without losing its work.

    A child leaves by its sentinel: an event that it looks at before it waits for its next job.
    An idle child is past that look already, and is made to look again: with an event loop by a
    nudge in its inbox, without one by an no-op job. No signal is sent at any time: whatever the
    pool has written to the child is run by it, or was never begun and is put back by the pool.

    With an event loop the pool gives no further job to a child that was asked (see
    :mod:`~worker_guard.celery_internals.inboxes`). All that this takes is done as it is asked: such
    a child leaves though the guard never looks at it again, and no slot is left unused.

    Relies on ``TaskPool._pool`` (None after stop), ``Pool._pool``, ``_cache``, ``_poolctrl``,
    ``_processes`` and the processes' ``index`` and ``exitcode``; with an event loop also on
    ``AsynPool._waiting_to_start``, ``_result_handler`` and what
    :mod:`~worker_guard.celery_internals.inboxes` names, else on what :class:`NoOpJobs` does. Run
    on billiard 4.2.0 and 4.3.2.

    Raises:
        MissingInternalError: the pool has no children, or lacks one of these.
    """

    _NEEDED = ("_pool", "_cache", "_processes", "_poolctrl")
    _NEEDED_BY_LOOP = ("_waiting_to_start", "_result_handler", *inboxes.NEEDED)

    def __init__(self, worker: Any) -> None:
        from celery.concurrency.prefork import TaskPool

        if not isinstance(worker.pool, TaskPool):
            raise MissingInternalError(f"the {pool_name(worker)} pool has no children")
        self._task_pool = worker.pool
        pool = worker.pool._pool
        #: Whether the pool is driven by the event loop; else by threads of its own.
        self.has_event_loop = not getattr(pool, "threads", True)
        needed = self._NEEDED + (self._NEEDED_BY_LOOP if self.has_event_loop else NoOpJobs.NEEDED)
        missing = [name for name in needed if not hasattr(pool, name)]
        if missing:
            raise MissingInternalError(f"this release's pool has no {', '.join(missing)}")
        self._asked: dict[int, Any] = {}
        self._empty_jobs = NoOpJobs()

    def why_not_to_recycle(self) -> str:
        """Why the children can't be asked to leave; empty: they can."""
        if not getattr(self._task_pool._pool, "allow_restart", False):
            return "the pool was made without an exit event for each child"
        if not self.has_event_loop and not getattr(self._task_pool, "forking_enable", True):
            return "a pool with threads that spawns its children loses them when its thread ends"
        return ""

    def listed(self) -> list[PoolChild]:
        """The children that the pool has now, in the order of their slots."""
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
        """How many children the pool is to have."""
        pool = self._task_pool._pool
        return 0 if pool is None else int(pool._processes)

    def running(self) -> dict[int, RunningTask]:
        """The task that each busy child has accepted and not finished.

        Relies on ``ApplyResult._time_accepted``: the child's monotonic clock, which on the
        platforms that fork is the main process's too; Celery's own ``time_start`` builds on that.
        """
        pool = self._task_pool._pool
        found: dict[int, RunningTask] = {}
        for job in () if pool is None else list(pool._cache.values()):
            if job.correlation_id and job.accepted() and not job.ready():
                known = state.requests.get(job.correlation_id)
                name = str(getattr(known, "name", ""))
                for pid in job.worker_pids():
                    found[pid] = RunningTask(
                        task_id=job.correlation_id,
                        task_name=name,
                        since_mono=getattr(job, "_time_accepted", None),
                    )
        return found

    def is_busy(self, pid: int) -> bool:
        """Whether a job was given to this child and isn't known to be finished."""
        process = self._process(pid)
        return process is not None and bool(self._jobs(self._task_pool._pool, process))

    def ask_to_leave(self, pid: int) -> bool:
        """Set the child's sentinel, and have it given no further job; False: not now, try again.

        Not before it is up, and not while its first job is on its way to it: where the connection
        to the broker is lost just then, Celery forgets that job, and a child that leaves without
        reading it would hand it on to its replacement, beside the one that the broker sends again.

        The event's lock is only tried: a child that was killed while it held it holds it for ever.
        """
        process = self._process(pid)
        pool = self._task_pool._pool
        sentinel = None if process is None else pool._poolctrl.get(pid)
        if sentinel is None or (self.has_event_loop and not self._has_settled(pool, process)):
            return False
        if not sentinel._cond.acquire(False):
            return False
        try:
            # What Event.set does, less the notifying: nobody waits for it.
            sentinel._flag.acquire(False)
            sentinel._flag.release()
        finally:
            sentinel._cond.release()
        self._asked[pid] = process
        if self.has_event_loop:
            inboxes.close(pool, process)
        return True

    def wake(self, pid: int) -> None:
        """Without an event loop: have the child look at its sentinel where it is idle.

        With one that was done when it was asked.
        """
        process = self._process(pid)
        pool = self._task_pool._pool
        if process is not None and not self.has_event_loop and not self._jobs(pool, process):
            self._empty_jobs.give(pool)

    def let_stay(self) -> None:
        """Leave the pool as it was found: whoever has not left yet is given jobs again."""
        pool = self._task_pool._pool
        if pool is not None and self.has_event_loop:
            for process in self._asked.values():
                if process in pool._pool:
                    inboxes.reopen(pool, process, busy=bool(self._jobs(pool, process)))

    def has_left(self, pid: int) -> bool:
        """Whether a child that was asked to leave is no more in the pool."""
        return self._process(pid) is not self._asked.get(pid)

    def left_by_itself(self, pid: int) -> bool:
        """Whether a child that has left did so between two tasks, and not by a signal.

        Forgets the child.
        """
        process = self._asked.pop(pid, None)
        return process is not None and process.exitcode in (EX_OK, EX_RECYCLE)

    def maintain(self) -> None:
        """Reap who has left, and replace it, now instead of at the pool's next look.

        Only with an event loop: otherwise a thread does that, and two must not.
        """
        if self.has_event_loop and self._task_pool._pool is not None:
            self._task_pool.maintain_pool()

    def watch_births(self, on_born: Callable[[int], None]) -> Hook | None:
        """Have ``on_born(pid)`` called when a child is up, before it gets a task.

        None: with threads nobody is told. Relies on ``ResultHandler.state_handlers``.
        """
        if not self.has_event_loop:
            return None
        from celery.concurrency.asynpool import WORKER_UP

        handlers = getattr(self._task_pool._pool._result_handler, "state_handlers", None)
        if handlers is None or WORKER_UP not in handlers:
            raise MissingInternalError("this release's pool does not tell when a child is up")

        def wrap(on_process_alive: Callable[..., Any]) -> Callable[..., Any]:
            def told(pid: int) -> Any:
                told_pool = on_process_alive(pid)
                on_born(pid)
                return told_pool

            return told

        return Hook(handlers, WORKER_UP, wrap)

    def _process(self, pid: int) -> Any:
        pool = self._task_pool._pool
        processes = () if pool is None else list(pool._pool)
        return next((process for process in processes if process.pid == pid), None)

    @classmethod
    def _has_settled(cls, pool: Any, process: Any) -> bool:
        """Whether the child is up, and has begun with a job where it was given any."""
        jobs = cls._jobs(pool, process)
        return inboxes.is_known(pool, process) and (not jobs or any(job.accepted() for job in jobs))

    @staticmethod
    def _jobs(pool: Any, process: Any) -> list[Any]:
        """The jobs that this child was given and that aren't known to be finished."""
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
