"""How ids enter Celery's revoked set and leave it, and how a task is looked up there.

Relies on: the names that :func:`watch_revoked_set` lists; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from celery.app.control import Inspect
from celery.utils.collections import LimitedSet
from celery.worker import control, request, state

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace, Wrap
from worker_guard.celery_internals.revoked_set import (
    drop_stale,
    held_ids,
    revoked_stamps,
    stamps_in,
)
from worker_guard.values.source import Source, Way

_Place = tuple[MutableMapping[Any, Any], str, Wrap]

_source: contextvars.ContextVar[Source] = contextvars.ContextVar(
    "worker_guard_source", default=Source.OPERATOR
)

_way: contextvars.ContextVar[Way] = contextvars.ContextVar(
    "worker_guard_way", default=Way.APPLICATION
)

#: The message whose expiry Celery checks now, and whether this worker sees it for the first time.
_arrival: contextvars.ContextVar[tuple[str, bool] | None] = contextvars.ContextVar(
    "worker_guard_arrival", default=None
)


def _coming_from(source: Source) -> Wrap:
    """A wrapper during which each id that is added to the set has the source ``source``."""
    return _during(_source, source)


def _by_way(way: Way) -> Wrap:
    """A wrapper during which an operator revokes each id that is added, by the way ``way``."""
    return _during(_way, way)


def _during(variable: contextvars.ContextVar[Any], value: Any) -> Wrap:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # A context variable, not a flag: with gevent, another greenlet can run an operator's
            # revoke while this call waits for the network or for a log handler's lock.
            token = variable.set(value)
            try:
                return function(*args, **kwargs)
            finally:
                variable.reset(token)

        return wrapper

    return wrap


def has_just_arrived(context: Any) -> bool:
    """Whether this is the first time that any worker sees this expired message.

    Call it while ``task_revoked`` is sent. Relies on the transport, which sets ``redelivered`` if a
    worker returned the message or was lost with it.
    """
    redelivered = (context.delivery_info or {}).get("redelivered")
    return _arrival.get() == (context.id, True) and not redelivered


class SetListener(Protocol):
    """Called for what happens to the revoked set. Only :meth:`changing` may raise."""

    def changing(self) -> AbstractContextManager[object]:
        """Held while the set changes: Celery removes an id before it renews it."""

    def renewing(self, task_id: str) -> None:
        """An id, which may be in the set already, is about to be added."""

    def added(self, task_id: str, source: Source, way: Way) -> None:
        """An id was added. If the set dropped it again at once, :meth:`dropped` came before."""

    def dropped(self, task_id: str, *, full: bool) -> None:
        """Celery dropped an id, because the set was ``full`` or the id was old."""

    def discarded(self, task_id: str) -> None:
        """The application took an id out of the set."""

    def looked_at(self, task_id: str) -> None:
        """Celery is about to look whether this task is revoked."""

    def emptied(self) -> None:
        """The application emptied the set."""

    def stamped(self, stamps: Sequence[tuple[str, Any]]) -> None:
        """An operator revoked these stamped headers."""

    def hands_on(self, task_id: str) -> bool:
        """Whether peers are given this id by ``hello``."""

    def hello(self) -> None:
        """A starting peer has taken over the ids of this worker."""


def watch_revoked_set(worker: Any, revoked: Any, listener: SetListener) -> list[Hook]:
    """Tell ``listener`` of everything that happens to the revoked set.

    Relies on ``state.revoked`` being a ``LimitedSet`` whose ``update`` calls ``self.add``, except
    for another ``LimitedSet``, and whose ``purge`` calls ``self.pop``; on ``Request.revoked``,
    which Celery calls before it runs a task, and ``Request.maybe_expire``, which adds the expired
    id; on the remote commands ``revoke``, ``terminate``, ``revoke_by_stamped_headers`` and
    ``hello``, and the consumer step Mingle, which add the ids of peers. An id that is added by
    anything else counts as revoked by the application. So the guard stays on the safe side if a
    later release adds another way into the set.
    """
    places = [
        *_set_hooks(revoked, listener),
        *_request_hooks(listener),
        *_command_hooks(listener),
    ]
    mingle = _consumer_step(worker, "celery.worker.consumer.mingle.Mingle")
    if mingle is not None:
        places.append((Namespace(mingle), "sync", _coming_from(Source.INHERITED)))
    hooks: list[Hook] = []
    try:
        for place, name, wrap in places:
            hooks.append(Hook(place, name, wrap))
    except MissingInternalError:
        for hook in reversed(hooks):
            hook.undo()
        raise
    return hooks


def _set_hooks(revoked: Any, listener: SetListener) -> list[_Place]:
    changing = listener.changing
    adding = False

    def wrap_add(add: Callable[..., Any]) -> Callable[..., Any]:
        def watched_add(item: str, *args: Any, **kwargs: Any) -> Any:
            nonlocal adding
            with changing():
                listener.renewing(item)
                outer, adding = adding, True
                try:
                    added = add(item, *args, **kwargs)
                finally:
                    adding = outer
                listener.added(item, _source.get(), _way.get())
            return added

        return watched_add

    def wrap_update(update: Callable[..., Any]) -> Callable[..., Any]:
        def watched_update(other: Any) -> Any:
            if not isinstance(other, LimitedSet):
                return update(other)  # by ``add``; nothing is held meanwhile: ``other`` may wait
            # Celery merges these without ``add``. The other set may change, so copy its ids first.
            merged = list(held_ids(other))
            with changing():
                for task_id in merged:
                    listener.renewing(task_id)
                updated = update(other)
                for task_id in merged:
                    listener.added(task_id, _source.get(), _way.get())
            return updated

        return watched_update

    def wrap_pop(pop: Callable[..., Any]) -> Callable[..., Any]:
        def watched_pop(*default: Any) -> Any:
            with changing():
                full = bool(revoked.maxlen) and len(revoked) > revoked.maxlen
                if drop_stale(revoked) and not full:
                    return None  # it was too old, and no id has it any more
                task_id = pop(*default)
                if task_id not in (None, *default):
                    listener.dropped(task_id, full=full)
            return task_id

        return watched_pop

    def wrap_discard(discard: Callable[..., Any]) -> Callable[..., Any]:
        def watched_discard(item: str) -> Any:
            with changing():
                discarded = discard(item)
                if not adding:  # else ``add`` renews it
                    listener.discarded(item)
            return discarded

        return watched_discard

    def wrap_clear(clear: Callable[..., Any]) -> Callable[..., Any]:
        def watched_clear() -> Any:
            with changing():
                cleared = clear()
                listener.emptied()
            return cleared

        return watched_clear

    place = Namespace(revoked)
    return [
        (place, "add", wrap_add),
        (place, "update", wrap_update),
        (place, "pop", wrap_pop),
        (place, "discard", wrap_discard),
        (place, "clear", wrap_clear),
    ]


def _request_hooks(listener: SetListener) -> list[_Place]:
    def wrap_revoked(is_revoked: Callable[..., Any]) -> Callable[..., Any]:
        def watched_revoked(message: Any) -> Any:
            listener.looked_at(message.id)
            return is_revoked(message)

        return watched_revoked

    def wrap_maybe_expire(maybe_expire: Callable[..., Any]) -> Callable[..., Any]:
        expire = _coming_from(Source.EXPIRY)(maybe_expire)

        def watched_maybe_expire(message: Any) -> Any:
            # Checked here: when task_revoked is sent, Celery has forgotten the message.
            _arrival.set((message.id, message.id not in state.requests))
            return expire(message)

        return watched_maybe_expire

    place = Namespace(request.Request)
    return [(place, "revoked", wrap_revoked), (place, "maybe_expire", wrap_maybe_expire)]


def _command_hooks(listener: SetListener) -> list[_Place]:
    def wrap_revoke(revoke: Callable[..., Any]) -> Callable[..., Any]:
        def watched_revoke(panel: Any, *args: Any, **kwargs: Any) -> Any:
            way = Way.TERMINATE if kwargs.get("terminate") else Way.REVOKE
            return _by_way(way)(revoke)(panel, *args, **kwargs)

        return watched_revoke

    def wrap_stamps(revoke: Callable[..., Any]) -> Callable[..., Any]:
        def watched_stamps(panel: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
            before = set(revoked_stamps())
            reply = revoke(panel, headers, *args, **kwargs)
            listener.stamped(list((set(revoked_stamps()) - before).union(stamps_in(headers))))
            return reply

        return watched_stamps

    def wrap_hello(hello: Callable[..., Any]) -> Callable[..., Any]:
        inherited_hello = _coming_from(Source.INHERITED)(hello)

        def watched_hello(*args: Any, **kwargs: Any) -> Any:
            reply = inherited_hello(*args, **kwargs)
            if isinstance(reply, dict) and reply.get("revoked"):
                reply = {**reply, "revoked": handed_on(reply["revoked"], listener.hands_on)}
            listener.hello()
            return reply

        return watched_hello

    def wrap_say_hello(hello: Callable[..., Any]) -> Callable[..., Any]:
        def watched_say_hello(asking: Any, from_node: str, revoked: Any = None) -> Any:
            if revoked and _source.get() is Source.INHERITED:  # Mingle asks, not the application
                revoked = handed_on(revoked, listener.hands_on)
            return hello(asking, from_node, revoked)

        return watched_say_hello

    commands = control.Panel.data
    return [
        (commands, "hello", wrap_hello),
        (commands, "revoke", wrap_revoke),
        (commands, "terminate", _by_way(Way.TERMINATE)),
        (commands, "revoke_by_stamped_headers", wrap_stamps),
        (Namespace(Inspect), "hello", wrap_say_hello),
    ]


def handed_on(revoked: Any, hands_on: Callable[[str], bool]) -> Any:
    """The ids that a peer is given, in the form in which this release sends them.

    Celery 5.7 sends a list. Celery 5.6.3 and before send a mapping of ids to their stamps; a stamp
    that lies ahead of this clock stays here, since it would keep its id there for ever.
    """
    if not isinstance(revoked, dict):
        return [task_id for task_id in revoked if hands_on(task_id)]
    now = time.monotonic()
    stamps = {i: float(s[0] if isinstance(s, tuple | list) else s) for i, s in revoked.items()}
    return {i: min(stamp, now) for i, stamp in stamps.items() if hands_on(i)}


def _consumer_step(worker: Any, name: str) -> Any:
    """A step of the consumer's blueprint, or None if it is not included."""
    step = worker.consumer.blueprint.steps.get(name)
    return step if step in worker.consumer.steps else None
