"""The one module that touches what Celery, kombu and billiard do not document.

Read and run against Celery 5.3.6, 5.4.0, 5.5.3, 5.6.3 and 5.7.0. Each function says what it
relies on. Where something is missing on another release the function raises
:exc:`MissingInternalError`, and the part that needs it stays off and says so.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from datetime import datetime, timezone
from typing import Any, Protocol

from celery import concurrency
from celery.backends.base import BaseKeyValueStoreBackend
from celery.worker import control, request, state
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from worker_guard.errors import WorkerGuardError
from worker_guard.revoked.ledger import Source

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

_source: contextvars.ContextVar[Source] = contextvars.ContextVar(
    "worker_guard_source", default=Source.OPERATOR
)

#: The key under which operators' ids stand in the statedb, beside Celery's own keys.
STATEDB_KEY = "worker_guard"

#: No heap has this overload, so that no discard rebuilds it.
_NEVER = float("inf")


class MissingInternalError(WorkerGuardError):
    """This Celery release lacks an attribute that a part of the guard builds on.

    That part is off; the others work. Report the release to the project.
    """


class RevokedSet(Protocol):
    """What the guard uses of ``celery.worker.state.revoked``, a ``LimitedSet``."""

    expires: float

    def __contains__(self, task_id: object) -> bool: ...
    def __len__(self) -> int: ...
    def add(self, item: str, now: float | None = None) -> None: ...
    def discard(self, item: str) -> None: ...
    def as_dict(self) -> dict[str, float]: ...


class _Namespace(MutableMapping[str, Any]):
    """The attributes that stand on an object or class itself, as a mapping."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return vars(self._owner)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self._owner))

    def __len__(self) -> int:
        return len(vars(self._owner))


class Hook:
    """A function wrapped where it stands, and put back by :meth:`undo`.

    Where somebody wrapped it again meanwhile, the hook stays in their chain and only passes on.
    """

    def __init__(self, place: MutableMapping[str, Any], name: str, wrap: Wrap) -> None:
        self._place, self._name = place, name
        self._owned = name in place
        before = place.get(name)
        if before is None and isinstance(place, _Namespace):
            before = getattr(place._owner, name, None)
        if before is None:
            raise MissingInternalError(f"this Celery release has no {name!r} to hook into")
        self._before = before
        self._active = True
        wrapped = wrap(before)

        @functools.wraps(before)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            return (wrapped if self._active else before)(*args, **kwargs)

        self._hooked = hooked
        place[name] = hooked

    def undo(self) -> None:
        """Put back what was there before."""
        self._active = False
        if self._place.get(self._name) is not self._hooked:
            return
        if self._owned:
            self._place[self._name] = self._before
        else:
            del self._place[self._name]


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
    worker: Any, on_added: Callable[[str, Source], None], on_hello: Callable[[], None]
) -> list[Hook]:
    """Have ``on_added(task_id, source)`` called for each id added to the revoked set.

    ``on_hello()`` is called when a peer that starts has taken over the ids of this worker.

    Relies on: ``state.revoked`` being a ``LimitedSet`` whose ``update`` calls ``self.add``;
    ``Request.maybe_expire`` adding the expired id; the remote command ``hello`` and the consumer
    step Mingle adding what peers sent. An id added while none of these three runs counts as an
    operator's, which is the safe side when a release adds a way in.
    """

    def wrap_add(add: Callable[..., Any]) -> Callable[..., Any]:
        def watched_add(item: str, now: float | None = None) -> Any:
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
        hooks.append(Hook(_Namespace(state.revoked), "add", wrap_add))
        expiry = _coming_from(Source.EXPIRY)
        hooks.append(Hook(_Namespace(request.Request), "maybe_expire", expiry))
        hooks.append(Hook(control.Panel.data, "hello", wrap_hello))
        mingle = _consumer_step(worker, "celery.worker.consumer.mingle.Mingle")
        if mingle is not None:
            hooks.append(Hook(_Namespace(mingle), "sync", _coming_from(Source.FOREIGN)))
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


def pool_name(worker: Any) -> str:
    """The pool as ``-P`` names it: prefork, solo, threads, gevent …

    Relies on ``celery.concurrency.ALIASES``; a pool of the user's own gets its class's path.
    """
    path = f"{worker.pool_cls.__module__}:{worker.pool_cls.__qualname__}"
    aliases = getattr(concurrency, "ALIASES", {})
    names = [alias for alias, target in aliases.items() if target == path]
    return str(names[0]) if names else path


def statedb(worker: Any) -> MutableMapping[str, Any] | None:
    """The open statedb, or None where the worker has none.

    Relies on ``worker._persistence.db``, a shelf that Celery writes at exit and from which it
    takes only the keys that it knows.
    """
    persistence = getattr(worker, "_persistence", None)
    return None if persistence is None else persistence.db


def redis_client(backend: Any, timeout_s: float) -> Any:
    """A Redis client of the guard's own for the server of this result backend.

    Relies on ``RedisBackend.connparams`` and ``_create_client``, which serve Sentinel, TLS and
    sockets as the backend is configured. The backend's own client waits for minutes.
    """
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.retry import Retry

    params = dict(backend.connparams, socket_timeout=timeout_s)
    if "path" not in params:
        params["socket_connect_timeout"] = timeout_s
    params.pop("retry_on_timeout", None)
    # Once more, at once: the pooled connection is stale after the server was restarted.
    params["retry"] = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    return backend._create_client(**params)


def key_prefix(backend: Any) -> str:
    """The ``global_keyprefix`` of a key-value result backend, ``""`` where there is none.

    Relies on ``task_keyprefix``: the class's value, behind the global prefix on an instance.
    """
    to_str: Callable[[Any], str] = bytes_to_str
    return to_str(backend.task_keyprefix).removesuffix(to_str(type(backend).task_keyprefix))


def is_key_value(backend: Any) -> bool:
    """Whether the result backend stores values under keys that the guard can read and write."""
    return isinstance(backend, BaseKeyValueStoreBackend)


def is_redis(backend: Any) -> bool:
    """Whether the result backend is Redis (Sentinel included)."""
    return (
        is_key_value(backend)
        and hasattr(backend, "connparams")
        and hasattr(backend, "_create_client")
    )


def result_key_prefixes(backend: Any) -> tuple[bytes, ...]:
    """The prefixes of a key-value result backend's keys: of tasks, of groups, of chords.

    Relies on ``task_keyprefix``, ``group_keyprefix`` and ``chord_keyprefix``, which hold the
    ``global_keyprefix`` on an instance.
    """
    prefixes = (backend.task_keyprefix, backend.group_keyprefix, backend.chord_keyprefix)
    return tuple(ensure_bytes(prefix) for prefix in prefixes)


def result_lifetime_s(backend: Any) -> float | None:
    """``result_expires`` in seconds, 0 or None for ever.

    Relies on ``Backend.expires``, which is None where ``result_expires`` is.
    """
    expires = backend.expires
    return None if expires is None else float(expires)


def results_client(backend: Any, timeout_s: float) -> Any:
    """A client for the server of this result backend that returns bytes, whatever its URL says.

    Relies on what :func:`redis_client` relies on, and on ``ConnectionPool.connection_kwargs``.
    """
    client = redis_client(backend, timeout_s)
    client.connection_pool.connection_kwargs["decode_responses"] = False
    return client


def naive_date_ahead_s(app: Any) -> int:
    """By how much (s) a ``date_done`` without an offset can be later than it says, read as UTC.

    Celery 5.3.6 writes naive UTC (``Backend._get_result_meta``: ``datetime.utcnow()``) and later
    releases an offset, whatever the time zone is. So it matters only to what others wrote under
    ``enable_utc = False``: there, a local time west of Greenwich looks older than it is.
    """
    if app.conf.enable_utc:
        return 0
    days = [datetime(datetime.now(timezone.utc).year, month, 1) for month in range(1, 13)]  # noqa: DTZ001 - a local time
    offsets = [app.timezone.utcoffset(day) for day in days]
    return max(0, *(-int(offset.total_seconds()) for offset in offsets if offset is not None))


def waiting_messages(app: Any) -> int:
    """The messages that wait in the queues of this app; a queue that isn't there has none.

    Relies on ``channel.queue_declare(passive=True)``, as ``celery amqp`` and kombu do.
    """
    waiting = 0
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.consume_from.values():
            with connection.channel() as channel:
                try:
                    waiting += channel.queue_declare(queue.name, passive=True).message_count
                except connection.channel_errors:
                    continue
    return waiting
