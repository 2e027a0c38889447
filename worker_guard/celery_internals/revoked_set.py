"""The revoked set of the worker, how ids enter it, and the statedb.

Relies on: the names that each function lists; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

import contextvars
import pickle
from collections.abc import Callable, Iterable, KeysView, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

from celery.utils.collections import LimitedSet
from celery.worker import control, request, state

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace, Wrap
from worker_guard.values.source import Source

_source: contextvars.ContextVar[Source] = contextvars.ContextVar(
    "worker_guard_source", default=Source.OPERATOR
)

#: The message whose expiry Celery checks now, and whether this worker sees it for the first time.
_arrival: contextvars.ContextVar[tuple[str, bool] | None] = contextvars.ContextVar(
    "worker_guard_arrival", default=None
)

#: The key of the operators' ids in the statedb, beside Celery's own keys.
STATEDB_KEY = "worker_guard"

#: With this overload no discard rebuilds the heap.
_NEVER = float("inf")


def _coming_from(source: Source) -> Wrap:
    """A wrapper during which each id that is added to the set has the source ``source``."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # A context variable, not a flag: with gevent, another greenlet can run an operator's
            # revoke while this call waits for the network or for a log handler's lock.
            token = _source.set(source)
            try:
                return function(*args, **kwargs)
            finally:
                _source.reset(token)

        return wrapper

    return wrap


def has_just_arrived(context: Any) -> bool:
    """Whether this is the first time that any worker sees this expired message.

    Call it while ``task_revoked`` is sent. Relies on the transport, which sets ``redelivered`` if a
    worker returned the message or was lost with it.
    """
    redelivered = (context.delivery_info or {}).get("redelivered")
    return _arrival.get() == (context.id, True) and not redelivered


class ReplacedSetError(MissingInternalError):
    """The application replaced ``celery.worker.state.revoked``, so there are two sets.

    Celery adds to one and checks the other, so the guard clears and marks nothing. Keep Celery's
    set, and change its contents: ``add``, ``discard``, ``update``.
    """


def the_revoked_set() -> Any:
    """The revoked set that Celery adds to and checks.

    Relies on ``request.revoked_tasks`` and ``state.revoked`` being one object.

    Raises:
        ReplacedSetError: they are two objects.
    """
    if request.revoked_tasks is not state.revoked:
        raise ReplacedSetError(
            "the application replaced celery.worker.state.revoked; "
            "celery.worker.request.revoked_tasks is another set"
        )
    return state.revoked


def held_ids(revoked: Any) -> KeysView[str]:
    """A live view of the ids in the set. Relies on ``LimitedSet._data``, whose keys they are."""
    keys: KeysView[str] = revoked._data.keys()
    return keys


def watch_revoked_set(
    worker: Any,
    revoked: Any,
    on_added: Callable[[str, Source], None],
    on_dropped: Callable[[str], None],
    on_hello: Callable[[], None],
    changing: Callable[[], AbstractContextManager[object]],
) -> list[Hook]:
    """Call ``on_added(task_id, source)`` for each id that is added to the revoked set.

    ``on_dropped(task_id)`` is called for each id that Celery drops, because the set is full or the
    id is old; ``on_hello()`` when a starting peer has taken over the ids of this worker.
    ``changing()`` is held while an id is added: Celery removes an id before it renews it.

    Relies on ``state.revoked`` being a ``LimitedSet`` whose ``update`` calls ``self.add``, except
    for another ``LimitedSet``, and whose ``purge`` calls ``self.pop``; on ``Request.maybe_expire``,
    which adds the expired id; on the remote command ``hello`` and the consumer step Mingle, which
    add the ids of peers. An id that is added outside these three calls counts as an operator's. So
    the guard stays on the safe side if a later release adds another way into the set.
    """

    def wrap_add(add: Callable[..., Any]) -> Callable[..., Any]:
        def watched_add(item: str, now: float | None = None) -> Any:
            with changing():
                added = add(item, now)
                on_added(item, _source.get())
            return added

        return watched_add

    def wrap_update(update: Callable[..., Any]) -> Callable[..., Any]:
        def watched_update(other: Any) -> Any:
            if not isinstance(other, LimitedSet):
                return update(other)  # by ``add``; nothing is held meanwhile: ``other`` may wait
            # Celery merges these without ``add``. The other set may change, so copy its ids first.
            merged = list(held_ids(other))
            with changing():
                updated = update(other)
                for task_id in merged:
                    on_added(task_id, _source.get())
            return updated

        return watched_update

    def wrap_pop(pop: Callable[..., Any]) -> Callable[..., Any]:
        def watched_pop(default: Any = None) -> Any:
            task_id = pop(default)
            if task_id is not default:
                on_dropped(task_id)
            return task_id

        return watched_pop

    def wrap_maybe_expire(maybe_expire: Callable[..., Any]) -> Callable[..., Any]:
        expire = _coming_from(Source.EXPIRY)(maybe_expire)

        def watched_maybe_expire(message: Any) -> Any:
            # Checked here: when task_revoked is sent, Celery has forgotten the message.
            _arrival.set((message.id, message.id not in state.requests))
            return expire(message)

        return watched_maybe_expire

    def wrap_hello(hello: Callable[..., Any]) -> Callable[..., Any]:
        inherited_hello = _coming_from(Source.INHERITED)(hello)

        def watched_hello(*args: Any, **kwargs: Any) -> Any:
            reply = inherited_hello(*args, **kwargs)
            on_hello()
            return reply

        return watched_hello

    hooks: list[Hook] = []
    try:
        for name, wrap in (("add", wrap_add), ("update", wrap_update), ("pop", wrap_pop)):
            hooks.append(Hook(Namespace(revoked), name, wrap))
        hooks.append(Hook(Namespace(request.Request), "maybe_expire", wrap_maybe_expire))
        hooks.append(Hook(control.Panel.data, "hello", wrap_hello))
        mingle = _consumer_step(worker, "celery.worker.consumer.mingle.Mingle")
        if mingle is not None:
            hooks.append(Hook(Namespace(mingle), "sync", _coming_from(Source.INHERITED)))
    except MissingInternalError:
        for hook in reversed(hooks):
            hook.undo()
        raise
    return hooks


def _consumer_step(worker: Any, name: str) -> Any:
    """A step of the consumer's blueprint, or None if it is not included."""
    step = worker.consumer.blueprint.steps.get(name)
    return step if step in worker.consumer.steps else None


class Discarding:
    """Removes ids from the set in place, and rebuilds its heap once instead of every few ids.

    Relies on ``LimitedSet.max_heap_percent_overload`` and ``_maybe_refresh_heap``, which rebuilds
    the heap if it is overloaded; one rebuild for all ids (:meth:`finish`) is cheaper. Celery 5.6.3
    and earlier always need that rebuild, by ``_refresh_heap``: when ``purge`` finds an old entry
    that ``discard`` left in the heap, it drops another id too. So on these releases the heap is
    also rebuilt before each purge. Celery 5.7 recognizes such entries (``_is_current``).
    """

    def __init__(self, revoked: Any) -> None:
        self._revoked = revoked
        self._tells_apart = hasattr(revoked, "_is_current")
        refresh = "_maybe_refresh_heap" if self._tells_apart else "_refresh_heap"
        self._refresh = getattr(revoked, refresh, None)
        if not hasattr(revoked, "max_heap_percent_overload"):
            self._refresh = None
        self._held = self._stale = False
        self._purge: Hook | None = None

    def clear(self, task_ids: Iterable[str]) -> None:
        """Remove these ids."""
        if self._refresh is not None and not self._held:
            self._held = True
            self._revoked.max_heap_percent_overload = _NEVER
            if not self._tells_apart:
                self._purge = Hook(Namespace(self._revoked), "purge", self._refreshed_before)
        self._stale = True
        discard = self._revoked.discard
        for task_id in task_ids:
            discard(task_id)

    def finish(self) -> None:
        """Rebuild the heap. Call this once, after the last :meth:`clear`."""
        if not self._held:
            return
        self._held = False
        if self._purge is not None:
            self._purge.undo()
        del self._revoked.max_heap_percent_overload
        self._refresh_stale()

    def _refreshed_before(self, purge: Callable[..., Any]) -> Callable[..., Any]:
        def refreshing_purge(*args: Any, **kwargs: Any) -> Any:
            self._refresh_stale()
            return purge(*args, **kwargs)

        return refreshing_purge

    def _refresh_stale(self) -> None:
        if self._stale and self._refresh is not None:
            self._stale = False
            self._refresh()


def statedb(worker: Any) -> MutableMapping[str, Any] | None:
    """The open statedb, or None if the worker has none.

    Relies on ``worker._persistence.db``, a shelf that Celery writes at exit. Celery reads only the
    keys that it knows from it.
    """
    persistence = getattr(worker, "_persistence", None)
    return None if persistence is None else persistence.db


def ids_of_statedb(worker: Any) -> frozenset[str]:
    """The revoked ids that this worker read from its statedb.

    Relies on ``Persistent.decompress`` and the key ``zrevoked``, a pickled ``LimitedSet``. Celery
    itself has just unpickled it from the same file.
    """
    shelf = statedb(worker)
    packed = None if shelf is None else shelf.get("zrevoked")
    if not packed:
        return frozenset()
    try:
        return frozenset(pickle.loads(worker._persistence.decompress(packed)))  # noqa: S301
    except Exception as exc:
        raise MissingInternalError(f"the ids in the statedb can't be read: {exc!r}") from exc
