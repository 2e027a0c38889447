"""Children of a prefork pool that ended by a signal that the worker did not send.

Relies on: ``Pool.process_flush_queues``, which the pool calls for each child that has ended, and
before it gives up the child's job; ``Pool._timeout_handler._trywaitkill``, which ends a child at
its hard time limit; ``_controlled_termination``, which ``terminate_job`` (revoke with terminate, a
lost connection, a cold shutdown) and ``shrink`` (``pool_shrink``, autoscale) leave on the process;
``Pool._state``; with an event loop also ``Pool._waiting_to_start`` and ``asynpool.error``, with
which the pool logs which child it is about to kill because that was not up in time; read in Celery
5.3.6 to 5.7 and billiard 4.3.2.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from billiard.common import TERM_SIGNAL
from billiard.pool import RUN

from worker_guard.celery_internals.children import RunningTask, running_tasks
from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace

#: Without an event loop a thread of the pool reaps the children, while others read results and
#: send signals. For so many seconds what they know of a child may be missing.
SETTLE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Death:
    """A child that was killed. ``signal`` is the signal's name, ``task`` what the child ran."""

    pid: int
    signal: str
    task: RunningTask | None


@dataclass(frozen=True, kw_only=True)
class _Dead:
    process: Any
    signum: int
    task: RunningTask | None
    job: Any
    settled_mono: float


class PoolDeaths:
    """Sees the children that end, and tells those that were killed from those that were not.

    Only a signal that ends the process counts, and not the one by which billiard asks a child to
    end (SIGTERM). A child catches that and exits, unless it comes a second time; and the pool sends
    it to each child that says that it exits. A child that exits with an error was not killed.
    """

    _NEEDED = ("_pool", "_cache", "_state", "process_flush_queues", "_timeout_handler")
    _NEEDED_BY_LOOP = ("_waiting_to_start",)

    def __init__(self, worker: Any, *, has_event_loop: bool) -> None:
        self._pool = worker.pool._pool
        self._has_event_loop = has_event_loop
        needed = self._NEEDED + (self._NEEDED_BY_LOOP if has_event_loop else ())
        missing = [name for name in needed if not hasattr(self._pool, name)]
        if missing:
            raise MissingInternalError(f"this release's pool has no {', '.join(missing)}")
        self._dead: deque[_Dead] = deque(maxlen=10_000)
        #: Those that the pool killed: at their time limit, or because they were not up in time.
        self._ended_by_pool: WeakSet[Any] = WeakSet()

    def watch(
        self, on_killed: Callable[[int], None], on_error: Callable[[Exception], None]
    ) -> Callable[[], None]:
        """Note the children that end from now on; return a function that undoes this.

        ``on_killed(pid)`` is called for each that a signal ended, whoever sent it; without an event
        loop on a thread of the pool. ``on_error`` gets what is raised meanwhile.
        """
        seen: WeakSet[Any] = WeakSet()

        def flushing(flush: Callable[..., Any]) -> Callable[..., Any]:
            def watched(process: Any) -> Any:
                result = flush(process)  # first, since it reads the child's last results
                try:
                    if process not in seen:  # the pool can call this twice
                        seen.add(process)
                        self._note(process, on_killed)
                except Exception as exc:  # noqa: BLE001 - the pool goes on
                    on_error(exc)
                return result

            return watched

        def ending(kill: Callable[..., Any]) -> Callable[..., Any]:
            def watched(process: Any) -> Any:
                self._ended_by_pool.add(process)
                return kill(process)

            return watched

        def logging(error: Callable[..., Any]) -> Callable[..., Any]:
            def watched(text: Any, *args: Any, **kwargs: Any) -> Any:
                waiting = list(self._pool._waiting_to_start)
                self._ended_by_pool.update(p for p in waiting if any(p is arg for arg in args))
                return error(text, *args, **kwargs)

            return watched

        hooks = ExitStack()
        try:
            hooks.callback(Hook(Namespace(self._pool), "process_flush_queues", flushing).undo)
            handler = self._pool._timeout_handler
            if handler is not None:
                hooks.callback(Hook(Namespace(handler), "_trywaitkill", ending).undo)
            if self._has_event_loop:
                from celery.concurrency import asynpool  # needs an operating system that forks

                hooks.callback(Hook(Namespace(asynpool), "error", logging).undo)
        except MissingInternalError:
            hooks.close()
            raise
        return hooks.close

    def killed(self) -> list[Death]:
        """The children that were killed since the last call, each once."""
        found, now = [], time.monotonic()
        while self._dead and self._dead[0].settled_mono <= now:
            dead = self._dead.popleft()
            if dead.process in self._ended_by_pool or _ended_on_purpose(dead.process):
                continue
            # Without an event loop its result can be read after it was reaped.
            ran = dead.task if self._has_event_loop or not _has_result(dead.job) else None
            found.append(Death(pid=dead.process.pid, signal=_name(dead.signum), task=ran))
        return found

    def _note(self, process: Any, on_killed: Callable[[int], None]) -> None:
        exitcode = process.exitcode
        if exitcode is None or exitcode >= 0 or -exitcode == TERM_SIGNAL:
            return
        if self._pool._state != RUN:
            return  # once the pool shuts down, children end with it
        job, task = next(
            ((job, task) for pid, job, task in running_tasks(self._pool) if pid == process.pid),
            (None, None),
        )
        settled_mono = time.monotonic() + (0.0 if self._has_event_loop else SETTLE_S)
        self._dead.append(
            _Dead(process=process, signum=-exitcode, task=task, job=job, settled_mono=settled_mono)
        )
        on_killed(process.pid)


def _ended_on_purpose(process: Any) -> bool:
    return bool(getattr(process, "_controlled_termination", False))


def _has_result(job: Any) -> bool:
    return job is not None and job.ready() and job._worker_lost is None


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return str(signum)  # a real-time signal
