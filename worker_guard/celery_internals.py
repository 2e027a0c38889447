"""The one module that touches what Celery, kombu and billiard do not document.

Read and run against Celery 5.3.6, 5.4.0, 5.5.3, 5.6.3 and 5.7.0. Each function says what it
relies on. Where something is missing on another release the function raises
:exc:`MissingInternalError`, and the part that needs it stays off and says so.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from billiard.pool import EX_OK, EX_RECYCLE
from billiard.util import set_pdeathsig
from celery import concurrency, signals
from celery.backends.base import BaseKeyValueStoreBackend
from celery.utils.functional import noop
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

#: A woken child answers within milliseconds; one that does not in this time is stopped or stuck.
ANSWER_S = 5.0

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

    def __init__(self, place: MutableMapping[Any, Any], name: Any, wrap: Wrap) -> None:
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
    client = backend._create_client(**params)
    # Sentinels are asked by clients of their own, which wait for minutes too.
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    sentinels = manager.sentinels if manager is not None else ()
    for sentinel in sentinels:
        share_s = timeout_s / len(sentinels)
        sentinel.connection_pool.connection_kwargs.update(
            socket_timeout=share_s,
            socket_connect_timeout=share_s,
            retry=Retry(NoBackoff(), 0),
        )
    return client


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
    """The longest lifetime in seconds that this backend gives to what it stores; None: for ever.

    Relies on ``Backend.expires`` (``result_expires``) and, from Celery 5.7 on, ``failure_expires``
    and ``chord_expires``, which can each be longer. None and 0 both mean "for ever", for one of
    them as for all: what is meant to stay is not told from the rest.
    """
    names = ("expires", "failure_expires", "chord_expires")
    lifetimes = [getattr(backend, name, backend.expires) for name in names]
    return float(max(lifetimes)) if all(lifetimes) and min(lifetimes) > 0 else None


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


# -- the children of a prefork pool ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PoolChild:
    """A process of the pool. ``slot`` is its place, which its replacement takes over.

    ``up`` is False until it has said that it takes tasks.
    """

    pid: int
    slot: int
    up: bool


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """A task that a child has accepted and not finished."""

    task_id: str
    task_name: str


class PoolChildren:
    """The children of a prefork pool, and how one of them leaves without losing its work.

    A child leaves by its sentinel: an event that it looks at before it waits for its next job.
    An idle child is past that look already, so it is given an empty job, as Celery's own
    ``TaskPool.restart`` does, and looks again after it. No signal is sent at any time: whatever
    the pool has written to the child is run by it, or was never begun and is put back by the pool.

    Relies on ``TaskPool._pool`` (None after stop), ``Pool._pool``, ``_cache``, ``_poolctrl``,
    ``_processes``, ``_putlock`` and the processes' ``index`` and ``exitcode``; with an event loop
    also on ``AsynPool._all_inqueues``, ``_busy_workers``, ``_active_writes``,
    ``_waiting_to_start``, ``outbound_buffer``, ``handle_result_event``, ``inqW_fd``, ``outq``,
    ``outqR_fd`` and the ``consolidate_callback`` of ``worker.hub``. Run on billiard 4.2.0 and
    4.3.2.

    Raises:
        MissingInternalError: the pool has no children, or lacks one of these.
    """

    _NEEDED = ("_pool", "_cache", "_processes", "_poolctrl", "_putlock", "apply_async")
    _NEEDED_BY_LOOP = (
        "_all_inqueues",
        "_busy_workers",
        "_active_writes",
        "_waiting_to_start",
        "_result_handler",
        "outbound_buffer",
    )

    def __init__(self, worker: Any) -> None:
        from celery.concurrency.prefork import TaskPool

        if not isinstance(worker.pool, TaskPool):
            raise MissingInternalError(f"the {pool_name(worker)} pool has no children")
        self._worker = worker
        self._task_pool = worker.pool
        pool = worker.pool._pool
        #: Whether the pool is driven by the event loop; else by threads of its own.
        self.has_event_loop = not getattr(pool, "threads", True)
        needed = self._NEEDED + (self._NEEDED_BY_LOOP if self.has_event_loop else ())
        missing = [name for name in needed if not hasattr(pool, name)]
        if missing:
            raise MissingInternalError(f"this release's pool has no {', '.join(missing)}")
        self._asked: dict[int, Any] = {}
        self._wakes: list[Any] = []

    def why_not_to_recycle(self) -> str:
        """Why the children can't be asked to leave; empty: they can."""
        if not getattr(self._task_pool._pool, "allow_restart", False):
            return "the pool was made without a sentinel for each child"
        if not self.has_event_loop and not getattr(self._task_pool, "forking_enable", True):
            return "a pool with threads that spawns its children loses them when its thread ends"
        return ""

    def listed(self) -> list[PoolChild]:
        """The children that the pool has now, in the order of their slots."""
        pool = self._task_pool._pool
        if pool is None:
            return []
        waiting = getattr(pool, "_waiting_to_start", ())
        children = [
            PoolChild(pid=process.pid, slot=process.index, up=process not in waiting)
            for process in list(pool._pool)
            if process.pid is not None
        ]
        return sorted(children, key=lambda child: child.slot)

    def size(self) -> int:
        """How many children the pool is to have."""
        pool = self._task_pool._pool
        return 0 if pool is None else int(pool._processes)

    def running(self) -> dict[int, RunningTask]:
        """The task that each busy child has accepted and not finished."""
        pool = self._task_pool._pool
        found: dict[int, RunningTask] = {}
        for job in () if pool is None else list(pool._cache.values()):
            if job.correlation_id and job.accepted() and not job.ready():
                known = state.requests.get(job.correlation_id)
                name = str(getattr(known, "name", ""))
                for pid in job.worker_pids():
                    found[pid] = RunningTask(task_id=job.correlation_id, task_name=name)
        return found

    def is_busy(self, pid: int) -> bool:
        """Whether a job was given to this child and isn't known to be finished."""
        process = self._process(pid)
        return process is not None and self._has_job(self._task_pool._pool, process)

    def ask_to_leave(self, pid: int) -> bool:
        """Set the child's sentinel; False: not now, try again.

        The event's lock is only tried: a child that was killed while it held it holds it for ever.
        """
        process = self._process(pid)
        pool = self._task_pool._pool
        sentinel = None if process is None else pool._poolctrl.get(pid)
        if sentinel is None or not sentinel._cond.acquire(False):
            return False
        try:
            # What Event.set does, less the notifying: nobody waits for it.
            sentinel._flag.acquire(False)
            sentinel._flag.release()
        finally:
            sentinel._cond.release()
        self._asked[pid] = process
        return True

    def wake(self, pid: int) -> None:
        """Give the child an empty job where it is idle, so that it looks at its sentinel."""
        process = self._process(pid)
        pool = self._task_pool._pool
        if process is None or self._has_job(pool, process):
            return
        if self.has_event_loop:
            self._wake_by_loop(pool, process)
        else:
            self._wake_by_queue(pool)

    def _wake_by_loop(self, pool: Any, process: Any) -> None:
        fd = process.inqW_fd
        free = (
            fd in pool._all_inqueues
            and fd not in pool._busy_workers
            and fd not in pool._active_writes
        )
        # A waiting task wakes the child as well; and a slot is taken as a task would take it,
        # since the pool gives one back when the empty job is done.
        if not free or pool.outbound_buffer or pool._putlock.value <= 0:
            return
        hub = self._worker.hub  # kombu's own get_event_loop() can be None after a reconnect
        if hub is None or hub.consolidate_callback is None:
            return
        self._wakes = [wake for wake in self._wakes if self._unanswered(pool, wake)]
        pool._putlock.acquire(self._put_empty_job, pool)
        # The job is the only one that waits, so that it is written to this child.
        hub.consolidate_callback([fd])

    def _put_empty_job(self, pool: Any) -> None:
        wake = pool.apply_async(noop)
        if wake is not None:
            self._wakes.append(wake)

    def hear_woken(self) -> None:
        """Read what the children that were just woken answer; for a warm shutdown.

        To be called after the consumer has closed and before the pool does. ``AsynPool.flush``
        has by then dropped the empty jobs that were not accepted yet, so that the pool would read
        no answer to them, and billiard's child waits 30 s for its answer to be read. An empty job
        is put back into the books only while this reads: left there it could outlast its child.
        With threads the pool reads by itself.
        """
        pool = self._task_pool._pool
        if pool is None or not self.has_event_loop:
            return
        until = time.monotonic() + ANSWER_S
        for wake in self._wakes:
            if wake._job in pool._cache:
                continue  # accepted, or a release that drops none: the pool reads it
            pool._cache[wake._job] = wake
            try:
                while self._unanswered(pool, wake) and time.monotonic() < until:
                    process = wake._write_to
                    # Its messages are small enough to be written whole, so to be read whole.
                    if process.outq._reader.poll(0.05):
                        pool.handle_result_event(process.outqR_fd)
            finally:
                wake.discard()

    @staticmethod
    def _unanswered(pool: Any, wake: Any) -> bool:
        """Whether the child that this empty job was written to lives and has not answered it."""
        process = wake._write_to
        return not wake.ready() and process in pool._pool and bool(process._is_alive())

    def _wake_by_queue(self, pool: Any) -> None:
        # All children read one queue, in turns: each idle one has to get an empty job for this
        # one to get its own.
        self._wakes = [wake for wake in self._wakes if not wake.ready()]
        if self._wakes:
            return
        for _ in range(len(pool._pool)):
            if not pool._putlock.acquire(False):
                return
            wake = pool.apply_async(noop, waitforslot=False)
            if wake is None:
                return
            self._wakes.append(wake)

    def has_left(self, pid: int) -> bool:
        """Whether a child that was asked to leave is no more in the pool."""
        return self._process(pid) is not self._asked.get(pid)

    def left_by_itself(self, pid: int) -> bool:
        """Whether a child that has left did so between two tasks, and not by a signal.

        Forgets the child.
        """
        process = self._asked.pop(pid, None)
        return process is not None and process.exitcode in (EX_OK, EX_RECYCLE)

    def maintain(self) -> None:
        """Reap who has left, and replace it, now instead of at the pool's next look.

        Only with an event loop: otherwise a thread does that, and two must not.
        """
        if self.has_event_loop and self._task_pool._pool is not None:
            self._task_pool.maintain_pool()

    def watch_births(self, on_born: Callable[[int], None]) -> Hook | None:
        """Have ``on_born(pid)`` called when a child is up, before it gets a task.

        None: with threads nobody is told. Relies on ``ResultHandler.state_handlers``.
        """
        if not self.has_event_loop:
            return None
        from celery.concurrency.asynpool import WORKER_UP

        handlers = getattr(self._task_pool._pool._result_handler, "state_handlers", None)
        if handlers is None or WORKER_UP not in handlers:
            raise MissingInternalError("this release's pool does not tell when a child is up")

        def wrap(on_process_alive: Callable[..., Any]) -> Callable[..., Any]:
            def told(pid: int) -> Any:
                told_pool = on_process_alive(pid)
                on_born(pid)
                return told_pool

            return told

        return Hook(handlers, WORKER_UP, wrap)

    def _process(self, pid: int) -> Any:
        pool = self._task_pool._pool
        processes = () if pool is None else list(pool._pool)
        return next((process for process in processes if process.pid == pid), None)

    @staticmethod
    def _has_job(pool: Any, process: Any) -> bool:
        return any(
            process.pid in job.worker_pids()
            or job._write_to is process
            or job._scheduled_for is process
            for job in list(pool._cache.values())
            if not job.ready()
        )


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


def allow_recycling(worker: Any) -> None:
    """Have the pool made with a sentinel for each child; to be called before it is made.

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

    return Hook(_Namespace(request.Request), "on_accepted", wrap)


def shut_down_warmly() -> None:
    """Let the worker finish its running tasks and exit with code 0.

    Relies on ``celery.worker.state.should_stop``, which every kind of consumer loop looks at.
    """
    if not hasattr(state, "should_stop"):
        raise MissingInternalError("this Celery release has no worker.state.should_stop")
    state.should_stop = EX_OK
