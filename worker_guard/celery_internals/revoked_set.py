"""The revoked set of the worker, what it holds, and the statedb.

Relies on: the names that each function lists; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterable, KeysView, MutableMapping
from heapq import heappop
from typing import Any

from celery.utils.collections import LimitedSet
from celery.utils.functional import maybe_list
from celery.worker import request, state

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace

#: The key of the operators' ids in the statedb, beside Celery's own keys.
STATEDB_KEY = "worker_guard"

#: The stamp, in seconds, of ids that are never the oldest: no clock will come there. Each further
#: one is a second later: of two equal stamps, Celery 5.6.3 and before would compare the ids.
_FAR_AHEAD = 2**40

#: An id that Celery is to drop first is this many seconds older than the oldest.
_OLDER_S = 1e-6

#: With this overload no discard rebuilds the heap.
_NEVER = float("inf")


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


def is_replaced(revoked: Any) -> bool:
    """Whether the application has put another set in the place of this one since the start."""
    return state.revoked is not revoked


def successor() -> Any:
    """The set that Celery adds to now."""
    return state.revoked


def held_ids(revoked: Any) -> KeysView[str]:
    """A live view of the ids in the set. Relies on ``LimitedSet._data``, whose keys they are."""
    keys: KeysView[str] = revoked._data.keys()
    return keys


def drop_stale(revoked: Any) -> bool:
    """Drop heap entries that no id has any more from the top; returns whether there was one.

    Celery 5.6.3 and before take such an entry for an id that is old, and drop the next one. Celery
    5.7 tells by itself (``_is_current``). Relies on ``_heap`` and ``_data``, whose values are the
    heap's entries, and on the id being an entry's last item.
    """
    if hasattr(revoked, "_is_current"):
        return False
    heap, data = revoked._heap, revoked._data
    dropped = False
    while heap and data.get(heap[0][-1]) is not heap[0]:
        heappop(heap)
        dropped = True
    return dropped


def revoked_stamps() -> list[tuple[str, Any]]:
    """Each stamped header that is revoked here. Relies on ``state.revoked_stamps``."""
    return stamps_in(state.revoked_stamps)


def stamps_in(headers: Any) -> list[tuple[str, Any]]:
    """Each stamp of such a mapping that is a plain value, as stamps are."""
    return [
        (header, stamp)
        for header, stamps in (headers.items() if isinstance(headers, dict) else ())
        for stamp in maybe_list(stamps) or ()
        if isinstance(stamp, str | int | float)
    ]


def revoke_stamp(header: str, stamp: Any) -> None:
    """Revoke a stamped header here, as the remote command does."""
    stamps = state.revoked_stamps.get(header)
    if not isinstance(stamps, list):
        stamps = state.revoked_stamps[header] = list(maybe_list(stamps) or ())
    stamps.append(stamp)


def count_stamps() -> int:
    """How many stamped headers are revoked here, some of them perhaps twice."""
    return sum(len(maybe_list(stamps) or ()) for stamps in state.revoked_stamps.values())


class HeldRoom:
    """Room in the revoked set for ids that Celery has dropped, or never had, and that must stay.

    They are never the oldest of the set: their stamps lie far ahead of the clock. The set's limit
    grows by their number. So the set holds what it would hold without them, and them. Relies on
    ``LimitedSet.maxlen``, which ``purge`` reads before it drops each id, and on ``_heap``, which
    begins with the oldest stamp.
    """

    def __init__(self, revoked: Any) -> None:
        self._revoked = revoked
        self._maxlen = revoked.maxlen
        self._stamps = itertools.count(_FAR_AHEAD)
        self._ahead: dict[str, None] = {}

    def put(self, task_id: str) -> None:
        """Put an id into the set, or renew it, so that Celery does not drop it."""
        self._ahead[task_id] = None
        self._add(task_id, float(next(self._stamps)))

    def left(self, task_id: str) -> None:
        """This id has left the set, or Celery is about to give it a stamp of its own again."""
        if task_id in self._ahead:
            del self._ahead[task_id]
            self._resize()

    def __contains__(self, task_id: str) -> bool:
        """Whether this id is here, and would not be in the set without."""
        return task_id in self._ahead

    def release(self, task_id: str) -> None:
        """Leave this id to Celery, as the oldest, so that it pushes no other out."""
        was_ahead = task_id in self._ahead
        self.left(task_id)
        if was_ahead and task_id in self._revoked:
            oldest = self._revoked._heap[0][0]
            self._add(task_id, min(oldest - _OLDER_S, time.monotonic()))

    def remove(self, task_id: str) -> None:
        """Take this id out of the set."""
        self.left(task_id)
        type(self._revoked).discard(self._revoked, task_id)  # past the hook: nobody took it out

    def undo(self) -> None:
        """Leave all ids to Celery, and give the set its own limit again."""
        for task_id in reversed(list(self._ahead)):  # so that the first of them is the oldest
            self.release(task_id)
        self._revoked.maxlen = self._maxlen

    def _add(self, task_id: str, stamp: float) -> None:
        # Past the hooks, and past what a class of the application's makes of it.
        revoked = self._revoked
        LimitedSet.discard(revoked, task_id)
        revoked.maxlen = 0  # else ``add`` drops ids at once
        try:
            LimitedSet.add(revoked, task_id, stamp)
        finally:
            self._resize()

    def _resize(self) -> None:
        self._revoked.maxlen = self._maxlen + len(self._ahead) if self._maxlen else 0


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
        revoked = self._revoked
        discard = type(revoked).discard  # past the hook for what the application takes out
        for task_id in task_ids:
            discard(revoked, task_id)

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
