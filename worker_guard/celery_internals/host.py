"""The worker itself: its pool's name and options, its requests, its shutdown.

Relies on: the names that each function lists; read in Celery 5.3.6 to 5.7.
"""

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

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace, Wrap
from worker_guard.celery_internals.sockets import bound_all_reads, bound_other_reads

#: Seconds for each read while the guard's own shutdown closes the connections. Redis answers a
#: pending BRPOP within one.
_CLOSING_S = 5.0


def pool_name(worker: Any) -> str:
    """The pool as ``-P`` names it (prefork, solo, threads, gevent …), or else its class's path.

    Relies on ``celery.concurrency.ALIASES``.
    """
    path = f"{worker.pool_cls.__module__}:{worker.pool_cls.__qualname__}"
    aliases = getattr(concurrency, "ALIASES", {})
    names = [alias for alias, target in aliases.items() if target == path]
    return str(names[0]) if names else path


def allow_recycling(worker: Any) -> None:
    """Make the pool with an exit event for each child. Call this before the pool is made.

    Relies on ``worker.pool_restarts``, which the worker's Pool step reads. The remote command
    ``pool_restart`` reads the configuration instead, so this does not enable it.
    """
    if not hasattr(worker, "pool_restarts"):
        raise MissingInternalError("this Celery release has no worker.pool_restarts")
    worker.pool_restarts = True


def watch_accepted(on_accepted: Callable[[int, str], None]) -> Hook:
    """Call ``on_accepted(pid, task_name)`` for each task that a child begins.

    Without an event loop a thread of the pool calls it. The hook's ``undo`` ends this. Relies on
    ``Request.on_accepted(pid, time_accepted)``.
    """

    def wrap(accepted: Callable[..., Any]) -> Callable[..., Any]:
        def watched(task: Any, pid: int, time_accepted: float) -> Any:
            on_accepted(pid, task.name)
            return accepted(task, pid, time_accepted)

        return watched

    return Hook(Namespace(request.Request), "on_accepted", wrap)


def held_task_ids(worker: Any) -> set[str]:
    """The ids of the messages that this worker holds: running, waiting, or due later."""
    return {each.id for each in held_requests(worker)}


def held_requests(worker: Any) -> list[Any]:
    """The messages that this worker holds: running, waiting, or due later. Two can have one id.

    Relies on ``state.requests`` and ``reserved_requests``, which have those that wait for the pool
    or run (from 5.7 on those with an ETA too); on ``consumer.timer.schedule.queue``, as ``inspect
    scheduled`` does; and on ``consumer.task_buckets``, which hold those over their rate limit.
    """
    held = [*list(state.requests.values()), *list(state.reserved_requests)]
    consumer = worker.consumer
    schedule = getattr(getattr(consumer, "timer", None), "schedule", None)
    for waiting in list(getattr(schedule, "queue", ())):
        arguments = (getattr(waiting.entry, "args", None) or ())[:1]
        held.extend(each for each in arguments if isinstance(each, request.Request))
    for bucket in list(getattr(consumer, "task_buckets", {}).values()):
        held.extend(message for message, _ in list(getattr(bucket, "contents", ())))
    return list({id(each): each for each in held}.values())


def shut_down_warmly(worker: Any) -> None:
    """Let the worker finish its running tasks and exit with code 0, also if a connection is dead.

    Closing a connection reads from it, and a dead one never answers. So the reads get a time limit,
    but none that can cost an acknowledgement: when the consumer stops, those of the connections for
    events and remote control; after the last task, all.

    Relies on ``celery.worker.state.should_stop``, which every kind of consumer loop checks, and on
    ``Consumer.stop`` and ``Consumer.shutdown``, which Celery calls before it waits for the tasks,
    and after.
    """
    if not hasattr(state, "should_stop"):
        raise MissingInternalError("this Celery release has no worker.state.should_stop")
    consumer = Namespace(worker.consumer)
    Hook(consumer, "stop", _after(lambda: bound_other_reads(worker, _CLOSING_S)))
    Hook(consumer, "shutdown", _after(lambda: bound_all_reads(worker, _CLOSING_S)))
    state.should_stop = EX_OK


def _after(first: Callable[[], None]) -> Wrap:
    """A wrapper that does something first. If that raises, the function is called all the same."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(Exception):
                first()
            return function(*args, **kwargs)

        return wrapper

    return wrap


def outlive_the_forking_thread() -> None:
    """Keep this child alive when the thread that forked it ends. Call this in the child.

    Celery has the kernel kill each child when its parent dies, and to the kernel the parent is the
    thread that forked. In a pool without an event loop, the thread that forks replacements ends as
    soon as a warm shutdown begins, and the tasks that they run would be lost. The child still ends
    with the main process: a thread of its own checks for that.

    Relies on ``billiard.util.set_pdeathsig``. On platforms other than Linux it changes nothing.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        set_pdeathsig(0)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Kill this child when the main process ends, as the kernel did when the thread ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def keep_replacements_alive() -> Callable[[], None]:
    """Call the above in each child that is forked from now on; return a function that undoes it."""

    def initialize(**_: Any) -> None:
        outlive_the_forking_thread()

    signals.worker_process_init.connect(initialize, weak=False)
    return lambda: signals.worker_process_init.disconnect(initialize)
