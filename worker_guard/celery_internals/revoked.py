"""The revoked set of the worker, the ways into it, and the statedb."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from celery.worker import control, request, state

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace, Wrap
from worker_guard.revoked.ledger import Source

_source: contextvars.ContextVar[Source] = contextvars.ContextVar(
    "worker_guard_source", default=Source.OPERATOR
)

#: The key under which operators' ids stand in the statedb, beside Celery's own keys.
STATEDB_KEY = "worker_guard"

#: No heap has this overload, so that no discard rebuilds it.
_NEVER = float("inf")


class RevokedSet(Protocol):
    """What the guard uses of ``celery.worker.state.revoked``, a ``LimitedSet``."""

    expires: float

    def __contains__(self, task_id: object) -> bool: ...
    def __len__(self) -> int: ...
    def add(self, item: str, now: float | None = None) -> None: ...
    def discard(self, item: str) -> None: ...
    def as_dict(self) -> dict[str, float]: ...


def _coming_from(source: Source) -> Wrap:
    """Make a wrapper under which whatever is added to the set is said to come from ``source``."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # A context variable, not a flag: with gevent another greenlet can run an operator's
            # revoke while this call waits for the network or for a log handler's lock.
            token = _source.set(source)
            try:
                return function(*args, **kwargs)
            finally:
                _source.reset(token)

        return wrapper

    return wrap


def watch_revoked_set(
    worker: Any,
    on_added: Callable[[str, Source], None],
    on_hello: Callable[[], None],
    changing: Callable[[], AbstractContextManager[object]],
) -> list[Hook]:
    """Have ``on_added(task_id, source)`` called for each id added to the revoked set.

    ``on_hello()`` is called when a peer that starts has taken over the ids of this worker.
    ``changing()`` is held during the adding itself, which takes an id out before it renews it.

    Relies on: ``state.revoked`` being a ``LimitedSet`` whose ``update`` calls ``self.add``;
    ``Request.maybe_expire`` adding the expired id; the remote command ``hello`` and the consumer
    step Mingle adding what peers sent. An id added while none of these three runs counts as an
    operator's, which is the safe side when a release adds a way in.
    """

    def wrap_add(add: Callable[..., Any]) -> Callable[..., Any]:
        def watched_add(item: str, now: float | None = None) -> Any:
            with changing():
                added = add(item, now)
            on_added(item, _source.get())
            return added

        return watched_add

    def wrap_hello(hello: Callable[..., Any]) -> Callable[..., Any]:
        foreign_hello = _coming_from(Source.FOREIGN)(hello)

        def watched_hello(*args: Any, **kwargs: Any) -> Any:
            reply = foreign_hello(*args, **kwargs)
            on_hello()
            return reply

        return watched_hello

    hooks: list[Hook] = []
    try:
        hooks.append(Hook(Namespace(state.revoked), "add", wrap_add))
        expiry = _coming_from(Source.EXPIRY)
        hooks.append(Hook(Namespace(request.Request), "maybe_expire", expiry))
        hooks.append(Hook(control.Panel.data, "hello", wrap_hello))
        mingle = _consumer_step(worker, "celery.worker.consumer.mingle.Mingle")
        if mingle is not None:
            hooks.append(Hook(Namespace(mingle), "sync", _coming_from(Source.FOREIGN)))
    except MissingInternalError:
        for hook in reversed(hooks):
            hook.undo()
        raise
    return hooks


def _consumer_step(worker: Any, name: str) -> Any:
    """An included step of the consumer's blueprint, or None."""
    step = worker.consumer.blueprint.steps.get(name)
    return step if step in worker.consumer.steps else None


class Discarding:
    """Takes ids out of the set, in place, without rebuilding its heap for each few of them.

    Relies on ``LimitedSet.max_heap_percent_overload`` and on ``_maybe_refresh_heap``, which
    rebuilds the heap where it is due; one rebuild for all (:meth:`finish`) is cheaper. In 5.6.3
    and before it is always due, by ``_refresh_heap``: there an entry that ``discard`` left in the
    heap takes an id that was added again with it when its own time is over. (5.7, by
    ``_is_current``, tells the two apart.)
    """

    def __init__(self, revoked: Any) -> None:
        self._revoked = revoked
        tells_apart = hasattr(revoked, "_is_current")
        refresh = "_maybe_refresh_heap" if tells_apart else "_refresh_heap"
        self._refresh = getattr(revoked, refresh, None)
        if not hasattr(revoked, "max_heap_percent_overload"):
            self._refresh = None
        self._held = False

    def clear(self, task_ids: Iterable[str]) -> None:
        """Take these ids out."""
        if self._refresh is not None and not self._held:
            self._held = True
            self._revoked.max_heap_percent_overload = _NEVER
        discard = self._revoked.discard
        for task_id in task_ids:
            discard(task_id)

    def finish(self) -> None:
        """Bring the heap in line with what is left; to be called once after the last clear."""
        if self._held:
            self._held = False
            del self._revoked.max_heap_percent_overload
            assert self._refresh is not None
            self._refresh()


def statedb(worker: Any) -> MutableMapping[str, Any] | None:
    """The open statedb, or None where the worker has none.

    Relies on ``worker._persistence.db``, a shelf that Celery writes at exit and from which it
    takes only the keys that it knows.
    """
    persistence = getattr(worker, "_persistence", None)
    return None if persistence is None else persistence.db
