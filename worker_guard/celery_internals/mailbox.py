"""Questions to the workers by remote control, and what these leave in the broker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from kombu.messaging import Consumer
from kombu.utils.uuid import uuid

#: How soon a question that is under way notices that it is to end.
_LOOK_S = 0.1

#: A worker that looked the reply queue up before it was deleted has put its reply there by then.
_LATE_S = 0.2


class QuestionEndedError(Exception):
    """The question was ended by :meth:`Mailbox.end_question` before all answers were there."""


class Mailbox:
    """Asks workers over a connection that is handed in, and leaves nothing in the broker.

    To be used from one thread, but for :meth:`end_question`.

    Relies on ``Control.mailbox``, and on kombu's ``Mailbox._broadcast``: it declares
    ``reply_queue``, publishes, waits by ``connection.drain_events`` and deletes the queue, but only
    if it comes to its end: not if its process ends or its connection is lost meanwhile. Kombu stops
    waiting after so many messages as there are to be answers, and counts late answers to an earlier
    question; so the answers are counted here. (Celery 5.3.6 to 5.7, kombu 5.3 to 5.7)
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        # One name for all questions, so that the next one, or the last look, takes away what a
        # broken connection left.
        self._mailbox: Any = None
        self._events_of = uuid()
        self._farewells: Any = None
        self._gone: list[str] = []
        self._queues: dict[str, Any] = {}
        self._ending = threading.Event()
        self._late_answers = False

    def ask(
        self,
        connection: Any,
        command: str,
        *,
        to: Sequence[str],
        limit: int | None,
        timeout_s: float,
        arguments: Mapping[str, object] | None = None,
    ) -> list[Mapping[str, Any]]:
        """The replies of these workers (all, if none is named), as soon as there are ``limit``.

        ``timeout_s`` is the time to wait for one more.

        Raises:
            QuestionEndedError: it was ended.
        """
        if self._mailbox is None:
            self._mailbox = self._app.control.mailbox(connection)
        replies: list[Mapping[str, Any]] = []
        mailbox = self._mailbox
        mailbox.connection = _Sliced(
            connection, self._ending, enough=lambda: limit is not None and len(replies) >= limit
        )
        mailbox.unclaimed = defaultdict(deque)
        self._queues[mailbox.reply_queue.name] = mailbox.reply_queue
        self._late_answers = True
        try:
            mailbox._broadcast(
                command,
                dict(arguments or {}),
                list(to) or None,
                True,
                timeout=timeout_s,
                limit=_ENDLESS,
                callback=replies.append,
                channel=connection.default_channel,
            )
        except QuestionEndedError:
            # Raised by the wait for a message, so that kombu has deleted the queue.
            del self._queues[mailbox.reply_queue.name]
            raise
        del self._queues[mailbox.reply_queue.name]
        self._late_answers = limit is None or len(replies) < limit
        return replies

    def end_question(self) -> None:
        """End the question that is under way, and all later ones. From any thread."""
        self._ending.set()

    # -- workers that say that they leave ----------------------------------------------------

    def listen(self, connection: Any) -> None:
        """Hear from now on, while questions are asked, of workers that shut down.

        A worker says so by the event ``worker-offline``, if it sends heartbeats. What the broker
        keeps for this asker is its queue alone, on Redis a subscription.
        """
        channel = connection.channel()
        receiver = self._app.events.Receiver(
            channel,
            handlers={"worker-offline": lambda event: self._gone.append(str(event["hostname"]))},
            routing_key="worker.offline",
            node_id=self._events_of,
        )
        self._queues[receiver.queue.name] = receiver.queue
        (self._farewells,) = receiver.get_consumers(partial(Consumer, channel), channel)
        self._farewells.consume()

    def gone(self) -> list[str]:
        """The workers that said so since this was last asked."""
        gone, self._gone = self._gone, []
        return gone

    # -- the end -----------------------------------------------------------------------------

    @property
    def leaves_something(self) -> bool:
        """Whether something of this asker may be in the broker."""
        return bool(self._queues) or self._late_answers

    def clear(self, connection: Any, rest: Callable[[float], None] = time.sleep) -> None:
        """Take away what is left of all questions.

        Raises:
            Exception: what the transport raises; call it again with another connection.
        """
        if self._farewells is not None:
            farewells, self._farewells = self._farewells, None
            with contextlib.suppress(Exception):  # it may be on a connection that was lost
                farewells.cancel()
        for name, queue in list(self._queues.items()):
            channel = connection.channel()
            declared = queue(channel)
            # Kombu's own transports delete only those bindings that this process has made.
            declared.declare()
            declared.delete()
            channel.close()
            del self._queues[name]
        if self._late_answers and self._mailbox is not None:
            rest(_LATE_S)
            # A server of AMQP lets nobody write to a queue that is gone.
            if connection.transport.driver_type != "amqp":
                connection.default_channel.queue_purge(self._mailbox.reply_queue.name)
        self._late_answers = False


#: More messages than any question is answered by.
_ENDLESS = 1 << 62


class _Sliced:
    """A connection whose wait for messages is cut into slices, with a look at who ends it."""

    def __init__(
        self, connection: Any, ending: threading.Event, *, enough: Callable[[], bool]
    ) -> None:
        self._connection, self._ending, self._enough = connection, ending, enough

    @property
    def default_channel(self) -> Any:
        return self._connection.default_channel

    def drain_events(self, timeout: float) -> None:
        """Wait for one message; raises ``socket.timeout`` where none came."""
        if self._enough():
            raise TimeoutError
        until = time.monotonic() + timeout
        while True:
            if self._ending.is_set():
                raise QuestionEndedError
            left_s = until - time.monotonic()
            try:
                self._connection.drain_events(timeout=max(0.001, min(_LOOK_S, left_s)))
            except TimeoutError:
                if left_s <= _LOOK_S:
                    raise
            else:
                return
