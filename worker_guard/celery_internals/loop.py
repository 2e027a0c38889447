"""The loop of the main process: its turns, whether it stops, and what it has taken.

Relies on: ``celery.worker.state.maybe_shutdown``, which every kind of consumer loop calls on each
turn; the same function in ``celery.worker.consumer.consumer``, which the consumer calls when it
connects, and once a second while it waits to connect again; ``state.should_stop`` and
``should_terminate``; ``state.all_total_count``, ``reserved_requests`` and ``active_requests``;
``celery.utils.nodenames.node_format``; ``TaskPool.on_apply`` and ``_pool``, with ``free_count`` or
``free`` in gevent and eventlet, and with ``putlocks`` and billiard's ``threads`` and ``_putlock``
in prefork; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from celery.utils.nodenames import node_format
from celery.worker import state
from celery.worker.consumer import consumer

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace
from worker_guard.celery_internals.host import pool_name


def watch_turns(on_turn: Callable[[], None]) -> ExitStack:
    """Call ``on_turn()`` on each turn of the main loop, on the thread that runs it.

    Also while the worker has no broker: then about once a second, but not while the system
    connects. ``on_turn`` must not raise. Closing the stack ends this.
    """

    def wrap(maybe_shutdown: Callable[[], Any]) -> Callable[[], Any]:
        def turned() -> Any:
            on_turn()
            return maybe_shutdown()

        return turned

    if not (hasattr(state, "should_stop") and hasattr(state, "should_terminate")):
        raise MissingInternalError("this Celery release has no worker.state.should_stop")
    with ExitStack() as hooks:
        for module in (state, consumer):
            hooks.callback(Hook(Namespace(module), "maybe_shutdown", wrap).undo)
        return hooks.pop_all()


def watch_full_pool(worker: Any, held: Callable[[], AbstractContextManager[Any]]) -> ExitStack:
    """Enter ``held()`` while the main loop waits for a place in the pool, on the thread that waits.

    gevent, eventlet, and prefork without an event loop hold the loop like this, for as long as
    their tasks take. A pool that is not Celery's may run each task in the loop. The other pools
    don't hold it here. ``held`` must not raise. Closing the stack ends this.
    """
    pool, name = worker.pool, pool_name(worker)
    room = has_room if name in ("prefork", "gevent", "eventlet") else _never

    def wrap(on_apply: Callable[..., Any]) -> Callable[..., Any]:
        def applied(*args: Any, **kwargs: Any) -> Any:
            if room(pool):
                return on_apply(*args, **kwargs)
            with held():
                return on_apply(*args, **kwargs)

        return applied

    hooks = ExitStack()
    by_loop = name == "prefork" and not (
        getattr(getattr(pool, "_pool", None), "threads", False) and getattr(pool, "putlocks", False)
    )
    if not by_loop and name not in ("solo", "threads"):
        hooks.callback(Hook(Namespace(pool), "on_apply", wrap).undo)
    return hooks


def _never(_pool: Any) -> bool:
    return False


def has_room(pool: Any) -> bool:
    """Whether this pool takes one more task now, as far as it is one that can make it wait."""
    inner = getattr(pool, "_pool", None)
    if getattr(pool, "is_green", False):
        count = getattr(inner, "free_count", None) or getattr(inner, "free", None)
        return count is None or count() > 0
    return bool(getattr(getattr(inner, "_putlock", None), "_value", 1) > 0)


def is_stopping() -> bool:
    """Whether someone asked this worker to shut down."""
    # This runs on each turn. An exit code of 0 is a request, too.
    stop, terminate = state.should_stop, state.should_terminate
    return (stop is not None and stop is not False) or (
        terminate is not None and terminate is not False
    )


def count_received() -> int:
    """How many tasks this worker has taken to run: those that began, and those that wait."""
    waiting = len(state.reserved_requests) - len(state.active_requests)
    return int(state.all_total_count[0]) + waiting


def expand_node(text: str, node: str) -> str:
    """Expand ``%n``, ``%h`` and ``%d`` for this node, as Celery does in ``--logfile``.

    Raises:
        ValueError: there is another ``%``.
    """
    return str(node_format(text, node))
