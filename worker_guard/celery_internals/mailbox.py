"""Remote control: questions to the workers, and what they leave in the broker.

Relies on: ``Control.mailbox`` and kombu's ``Mailbox._broadcast``, which declares ``reply_queue``,
publishes, waits by ``connection.drain_events`` and deletes the queue at its end, but not if its
process ends or its connection is lost before that; read in Celery 5.3.6 to 5.7, kombu 5.3 to 5.7.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from kombu.messaging import Consumer
from kombu.utils.uuid import uuid

#: Seconds after which a running question notices that it should end.
_LOOK_S = 0.1

#: Seconds within which a worker that found the reply queue before its deletion has replied.
_LATE_S = 0.2


class QuestionEndedError(Exception):
    """:meth:`Mailbox.end_question` ended the question before all replies arrived."""


class Mailbox:
    """Asks workers over the caller's connection, and leaves nothing in the broker.

    Use it from one thread, except :meth:`end_question`. It counts the replies itself, because
    kombu's own count includes late replies to an earlier question.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        # One mailbox for all questions, so that the next one, or ``clear``, removes what a broken
        # connection left.
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
        awaited: Collection[str] = (),
    ) -> list[Mapping[str, Any]]:
        """The replies of these workers (all, if none is named), once there are ``limit`` of them.

        Those that are ``awaited`` have to be among them. ``timeout_s`` is the time to wait for each
        further reply.

        Raises:
            QuestionEndedError: :meth:`end_question` was called.
        """
        if self._mailbox is None:
            self._mailbox = self._app.control.mailbox(connection)
        replies: list[Mapping[str, Any]] = []
        mailbox = self._mailbox
        mailbox.connection = _Sliced(
            connection,
            self._ending,
            enough=lambda: (
                limit is not None
                and len(replies) >= limit
                and set(awaited) <= {name for reply in replies for name in reply}
            ),
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
            # The wait for a message raised this, and then kombu deleted the queue.
            del self._queues[mailbox.reply_queue.name]
            raise
        del self._queues[mailbox.reply_queue.name]
        self._late_answers = limit is None or len(replies) < limit
        return replies

    def end_question(self) -> None:
        """End the running question and all later ones. Any thread may call this."""
        self._ending.set()

    # -- workers that shut down --------------------------------------------------------------

    def listen(self, connection: Any) -> None:
        """Note, while questions are asked, which workers shut down from now on.

        A worker sends the event ``worker-offline`` then, if it sends heartbeats. The broker keeps
        one queue for this mailbox, on Redis a subscription.
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
        """The workers that have shut down since the last call."""
        gone, self._gone = self._gone, []
        return gone

    # -- the end -----------------------------------------------------------------------------

    @property
    def leaves_something(self) -> bool:
        """Whether something of this mailbox may be in the broker."""
        return bool(self._queues) or self._late_answers

    def clear(self, connection: Any, rest: Callable[[float], None] = time.sleep) -> None:
        """Remove what the questions left in the broker.

        Raises:
            Exception: what the transport raises; call it again with another connection.
        """
        if self._farewells is not None:
            farewells, self._farewells = self._farewells, None
            with contextlib.suppress(Exception):  # its connection may be lost
                farewells.cancel()
        for name, queue in list(self._queues.items()):
            channel = connection.channel()
            declared = queue(channel)
            # Kombu's own transports delete only the bindings that this process has made.
            declared.declare()
            declared.delete()
            channel.close()
            del self._queues[name]
        if self._late_answers and self._mailbox is not None:
            rest(_LATE_S)
            # An AMQP broker accepts no message for a queue that is gone.
            if connection.transport.driver_type != "amqp":
                connection.default_channel.queue_purge(self._mailbox.reply_queue.name)
        self._late_answers = False


#: More replies than any question gets.
_ENDLESS = 1 << 62


class _Sliced:
    """A connection that waits in short slices, so that a question can be ended."""

    def __init__(
        self, connection: Any, ending: threading.Event, *, enough: Callable[[], bool]
    ) -> None:
        self._connection, self._ending, self._enough = connection, ending, enough

    @property
    def default_channel(self) -> Any:
        return self._connection.default_channel

    def drain_events(self, timeout: float) -> None:
        """Wait for one message. Raises ``socket.timeout`` if none comes."""
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
