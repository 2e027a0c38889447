"""What the broker itself says of the queues that this worker takes messages from."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty
from typing import Any
from weakref import WeakKeyDictionary

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace


class EmptyQueues:
    """When the queues of this worker were last empty, by the broker's own answer.

    Only a Redis broker (or Valkey, or Sentinel) tells: a BRPOP that comes back without a message,
    or a queue's length as it is declared. That no message came is no such answer: the broker, the
    connection or the event loop may have hung.

    Relies on ``kombu.transport.redis.Channel``: ``_brpop_start`` asks for a message of all
    ``active_queues``, ``_brpop_read`` raises ``Empty`` where none of these had one, and
    ``_size(queue)`` is the number of messages; and on ``app.amqp.queues.consume_from``. Read in
    kombu 5.3 to 5.7.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._empty_mono: dict[str, float] = {}
        self._hooks: list[Hook] = []
        #: The queues that each channel has asked of: others are added while it waits.
        self._asked: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()

    def start(self) -> None:
        """Begin to listen; where this broker does not tell, nothing is ever known."""
        with self._app.connection_for_read() as connection:
            if connection.transport.driver_type != "redis":
                return
        from kombu.transport.redis import Channel

        try:
            self._hooks.append(Hook(Namespace(Channel), "_brpop_start", self._note_asked))
            self._hooks.append(Hook(Namespace(Channel), "_brpop_read", self._note_empty))
            self._hooks.append(Hook(Namespace(Channel), "_size", self._note_size))
        except MissingInternalError:
            self.stop()

    def stop(self) -> None:
        """Undo every hook."""
        while self._hooks:
            self._hooks.pop().undo()

    def empty_for_s(self) -> float | None:
        """For how long at most a message can have waited that comes now; None: not known.

        That is the time since each of the queues was empty.
        """
        times = [self._empty_mono.get(queue) for queue in self._consumed()]
        known = [at for at in times if at is not None]
        if not known or len(known) < len(times):
            return None
        return time.monotonic() - min(known)

    def _consumed(self) -> set[str]:
        return {queue.name for queue in self._app.amqp.queues.consume_from.values()}

    def _note_asked(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def note_and_start(channel: Any, *args: Any, **kwargs: Any) -> Any:
            self._asked[channel] = list(channel.active_queues)
            return start(channel, *args, **kwargs)

        return note_and_start

    def _note_empty(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def read_and_note(channel: Any, **options: Any) -> Any:
            try:
                return read(channel, **options)
            except Empty:
                self._note(self._asked.get(channel, ()))
                raise

        return read_and_note

    def _note_size(self, size: Callable[..., Any]) -> Callable[..., Any]:
        def size_and_note(channel: Any, queue: str) -> Any:
            messages = size(channel, queue)
            if messages == 0:
                self._note([queue])
            return messages

        return size_and_note

    def _note(self, queues: Any) -> None:
        consumed = self._consumed()
        now = time.monotonic()
        self._empty_mono = {
            **{name: at for name, at in self._empty_mono.items() if name in consumed},
            **{name: now for name in queues if name in consumed},
        }
