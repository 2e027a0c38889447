"""The queues that this worker consumes from, as the broker reports them.

Relies on: ``kombu.transport.redis.Channel``, in which ``_brpop_start`` asks for a message of all
``active_queues``, ``_brpop_read`` raises ``Empty`` if none of them has one, and ``_size(queue)`` is
the number of messages; and ``app.amqp.queues.consume_from``, to which other threads may add; read
in Celery 5.3.6 to 5.7 and kombu 5.3 to 5.7.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty
from typing import Any
from weakref import WeakKeyDictionary

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace

#: The most names of queues that are kept.
_MOST_QUEUES = 1000


class EmptyQueues:
    """When the queues of this worker were last empty, as the broker answered.

    Only a Redis broker (Valkey and Sentinel included) tells, by a BRPOP that returns without a
    message or by a queue's length when it is declared. Silence is no such answer: the broker, the
    connection or the event loop may hang. Only answers on a channel that consumes count, because
    tasks may publish to a queue of the same name on another server.

    Each message passes through the hooks, also in the children and in threads that publish. So no
    hook lets an error out; it calls ``on_error`` instead.
    """

    def __init__(self, app: Any, *, on_error: Callable[[Exception], None]) -> None:
        self._app = app
        self._on_error = on_error
        self._pid = os.getpid()
        self._hooks: list[Hook] = []
        self._empty_mono: dict[str, float] = {}
        #: The queues that each channel waits for; others may be added while it waits.
        self._asked: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()
        #: The queues that were empty when each channel declared them, and the time.
        self._declared: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()

    def start(self) -> None:
        """Begin to listen. With a broker that does not tell, nothing is ever known."""
        with self._app.connection_for_read() as connection:
            if connection.transport.driver_type != "redis":
                return
        from kombu.transport.redis import Channel

        channel = Namespace(Channel)
        try:
            self._hooks.append(Hook(channel, "_brpop_start", self._hear_asked))
            self._hooks.append(Hook(channel, "_brpop_read", self._hear_empty))
            self._hooks.append(Hook(channel, "_size", self._hear_size))
        except MissingInternalError:
            self.stop()

    def stop(self) -> None:
        """Undo every hook."""
        hooks, self._hooks = self._hooks, []
        with ExitStack() as undoing:  # each, from the last one on, though another raises
            for hook in hooks:
                undoing.callback(hook.undo)

    def empty_for_s(self) -> float | None:
        """The longest time that a message received now can have waited; None: not known.

        That is the time since each of the queues was empty.
        """
        consumed = {queue.name for queue in list(self._app.amqp.queues.consume_from.values())}
        times = [self._empty_mono.get(queue) for queue in consumed]
        known = [at for at in times if at is not None]
        if not known or len(known) < len(times):
            return None
        return time.monotonic() - min(known)

    def _hear_asked(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def ask(channel: Any, *args: Any, **kwargs: Any) -> Any:
            self._contained(self._note_asked, channel)
            return start(channel, *args, **kwargs)

        return ask

    def _hear_empty(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def read_or_hear(channel: Any, **options: Any) -> Any:
            try:
                return read(channel, **options)
            except Empty:
                self._contained(self._note_empty, channel)
                raise

        return read_or_hear

    def _hear_size(self, size: Callable[..., Any]) -> Callable[..., Any]:
        def size_and_hear(channel: Any, queue: str) -> Any:
            messages = size(channel, queue)
            if messages == 0:
                self._contained(self._note_declared, channel, queue)
            return messages

        return size_and_hear

    def _note_asked(self, channel: Any) -> None:
        queues = list(channel.active_queues)
        self._asked[channel] = queues
        declared = self._declared.pop(channel, {})
        self._empty_mono.update({q: at for q, at in declared.items() if q in queues})

    def _note_empty(self, channel: Any) -> None:
        self._empty_mono.update(dict.fromkeys(self._asked.get(channel, ()), time.monotonic()))
        if len(self._empty_mono) > _MOST_QUEUES:
            # Each mingle uses a new queue for its replies.
            self._empty_mono = dict.fromkeys(self._asked.get(channel, ()), time.monotonic())

    def _note_declared(self, channel: Any, queue: str) -> None:
        self._declared.setdefault(channel, {})[queue] = time.monotonic()

    def _contained(self, note: Callable[..., None], *args: Any) -> None:
        if os.getpid() != self._pid:
            return
        try:
            note(*args)
        except Exception as exc:  # noqa: BLE001 - reported; it must not stop a message
            self._on_error(exc)
