"""Starts of children: how long a pool waits for a child to be up, and which children fail.

Relies on: ``AsynPool._proc_alive_timeout``, which the pool reads when it forks a child, the
processes' ``outq`` and ``exitcode``, and billiard's ``_controlled_termination``; read in Celery
5.3.6 to 5.7 and billiard 4.2 and 4.3, run on Celery 5.3.6, 5.5.3 and 5.7.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.pool import EX_OK, EX_RECYCLE
from celery import signals


class PoolStarts:
    """The starts of the children of a prefork pool.

    With an event loop the pool kills each child that does not report within
    ``worker_proc_alive_timeout`` that it is up, and forks the next one. It does not check the
    children that it starts with. With threads it waits for ever.
    """

    def __init__(self, worker: Any) -> None:
        self._task_pool = worker.pool
        timeout_s = getattr(worker.pool._pool, "_proc_alive_timeout", None)
        self.configured_s = None if timeout_s is None else float(timeout_s)

    @property
    def timeout_s(self) -> float | None:
        """How long the pool waits for a child that it forks now; None: for ever."""
        timeout_s = getattr(self._task_pool._pool, "_proc_alive_timeout", None)
        return None if timeout_s is None else float(timeout_s)

    def allow(self, timeout_s: float) -> None:
        """Make the pool wait at least this long for the children that it forks from now on."""
        present_s = self.timeout_s
        if present_s is not None and timeout_s > present_s:
            self._task_pool._pool._proc_alive_timeout = timeout_s

    def restore(self) -> None:
        """Make the pool wait as long as it is configured to."""
        if self._task_pool._pool is not None and self.configured_s is not None:
            self._task_pool._pool._proc_alive_timeout = self.configured_s

    def follow(self, pid: int) -> Any:
        """The process object of a child: it has the exit code even if the pool drops it."""
        pool = self._task_pool._pool
        processes = () if pool is None else list(pool._pool)
        return next((process for process in processes if process.pid == pid), None)

    def failed(self, followed: Any) -> bool:
        """Whether that child failed or was killed, unless the pool ended it on purpose."""
        return (
            followed is not None
            and followed.exitcode not in (None, EX_OK, EX_RECYCLE)
            and not getattr(followed, "_controlled_termination", False)
        )

    def said_more(self, pid: int) -> bool:
        """Whether the main process has not read all messages of a child, such as "task begun"."""
        process = self.follow(pid)
        return process is not None and bool(process.outq._reader.poll(0))

    def watch_forks(self, on_fork: Callable[[], None]) -> Callable[[], None]:
        """Call ``on_fork()`` before each fork of this pool; return a function that undoes this."""

        def before_fork(sender: Any = None, **_: Any) -> None:
            if sender is self._task_pool._pool:
                on_fork()

        signals.worker_before_create_process.connect(before_fork, weak=False)
        return lambda: signals.worker_before_create_process.disconnect(before_fork)
