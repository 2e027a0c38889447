"""The worker itself: its pool's name and options, its requests, its shutdown."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from billiard.pool import EX_OK
from billiard.util import set_pdeathsig
from celery import concurrency, signals
from celery.worker import request, state

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace


def pool_name(worker: Any) -> str:
    """The pool as ``-P`` names it: prefork, solo, threads, gevent …

    Relies on ``celery.concurrency.ALIASES``; a pool of the user's own gets its class's path.
    """
    path = f"{worker.pool_cls.__module__}:{worker.pool_cls.__qualname__}"
    aliases = getattr(concurrency, "ALIASES", {})
    names = [alias for alias, target in aliases.items() if target == path]
    return str(names[0]) if names else path


def allow_recycling(worker: Any) -> None:
    """Have the pool made with an exit event for each child; to be called before it is made.

    Relies on ``worker.pool_restarts``, which the worker's Pool step reads. The remote command
    ``pool_restart`` asks the configuration instead, and stays as it was.
    """
    if not hasattr(worker, "pool_restarts"):
        raise MissingInternalError("this Celery release has no worker.pool_restarts")
    worker.pool_restarts = True


def watch_accepted(on_accepted: Callable[[int, str], None]) -> Hook:
    """Have ``on_accepted(pid, task_name)`` called for each task that a child begins.

    Relies on ``Request.on_accepted(pid, time_accepted)``. Without an event loop it is called on a
    thread of the pool. Unhook by the hook's ``undo``.
    """

    def wrap(accepted: Callable[..., Any]) -> Callable[..., Any]:
        def watched(task: Any, pid: int, time_accepted: float) -> Any:
            on_accepted(pid, task.name)
            return accepted(task, pid, time_accepted)

        return watched

    return Hook(Namespace(request.Request), "on_accepted", wrap)


def shut_down_warmly() -> None:
    """Let the worker finish its running tasks and exit with code 0.

    Relies on ``celery.worker.state.should_stop``, which every kind of consumer loop looks at.
    """
    if not hasattr(state, "should_stop"):
        raise MissingInternalError("this Celery release has no worker.state.should_stop")
    state.should_stop = EX_OK


def outlive_the_forking_thread() -> None:
    """In a child forked by a thread of the pool: live on when that thread ends.

    Celery has the kernel kill each child when its parent dies, and the kernel takes the thread
    that forked it for the parent. Without an event loop replacements are forked by a thread that
    ends as soon as a warm shutdown begins, so that their running tasks would be lost. Such a
    child still ends when the main process does: a thread of its own looks for that.

    Relies on ``billiard.util.set_pdeathsig``; elsewhere than on Linux there is nothing to undo.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        set_pdeathsig(0)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """In a child: what the kernel did, for the main process instead of for its thread."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def keep_replacements_alive() -> Callable[[], None]:
    """Have each child that is forked from now on call the above; returns what undoes this."""

    def initialize(**_: Any) -> None:
        outlive_the_forking_thread()

    signals.worker_process_init.connect(initialize, weak=False)
    return lambda: signals.worker_process_init.disconnect(initialize)
