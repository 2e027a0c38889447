"""The consumer of a worker: whether it takes messages, what it holds, how it connects anew.

Relies on: the names that each function lists; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from celery.bootsteps import RUN
from celery.worker import state

from worker_guard.celery_internals.hooks import Hook, MissingInternalError, Namespace
from worker_guard.celery_internals.loop import has_room
from worker_guard.celery_internals.sockets import broker_sockets, shut


class TaskConsumer(ABC):
    """The consumer of a worker; each kind of broker has a class of its own.

    Relies on ``Consumer.blueprint``, ``connection``, ``task_consumer``, ``qos`` and
    ``create_task_handler``; and for gevent and eventlet on ``TaskPool._pool.free_count`` or
    ``free``.

    Raises:
        MissingInternalError: something that this relies on is missing.
    """

    _NEEDED: ClassVar[tuple[str, ...]] = ("blueprint", "create_task_handler", "call_soon", "timer")

    #: Of so many queues :meth:`waiting` is asked at once.
    queues_at_once: ClassVar[int]

    #: Whether Celery makes a lost connection anew; otherwise it ends the worker.
    can_reconnect: bool

    #: Whether a warm shutdown ends if the connection is dead.
    can_shut_down: bool = True

    def __init__(self, worker: Any) -> None:
        self._worker, self._consumer = worker, worker.consumer
        missing = [name for name in self._NEEDED if not hasattr(self._consumer, name)]
        missing += self._missing()
        if missing:
            raise MissingInternalError(f"this release's consumer has no {', '.join(missing)}")
        self._has_polled = True

    def watch_messages(self, on_message: Callable[[], None]) -> Hook:
        """Call ``on_message()`` before and after each message, from the next connection on.

        Not by ``on_message`` of the task consumer: both kinds of loop set that themselves.
        """

        def wrap(create: Callable[..., Any]) -> Callable[..., Any]:
            def create_watched(*args: Any, **kwargs: Any) -> Any:
                on_task_received = create(*args, **kwargs)

                def watched(message: Any) -> Any:
                    on_message()
                    try:
                        return on_task_received(message)
                    finally:
                        on_message()  # with the solo pool the task has run meanwhile

                return watched

            return create_watched

        return Hook(Namespace(self._consumer), "create_task_handler", wrap)

    def is_consuming(self) -> bool:
        """Whether it is connected and runs. False during a shutdown, from its request on.

        ``state.should_stop`` is None or False as long as nobody asked for one; 0 is an exit code.
        """
        stopping = (state.should_stop, getattr(state, "should_terminate", None))
        return (
            self._consumer.blueprint.state == RUN
            and all(each is None or each is False for each in stopping)
            and bool(self._consumer.connection)
            and self._channel() is not None
        )

    def has_polled(self) -> bool:
        """Whether the event loop has read its connections since this was last asked.

        One turn of the loop runs up to ten timers first, and again those that come due meanwhile.
        Without an event loop this can't be told, and is True.
        """
        if self._consumer.hub is None:
            return True
        has_polled, self._has_polled = self._has_polled, False
        self._consumer.call_soon(self._next_turn)
        return has_polled

    def _next_turn(self) -> None:
        self._has_polled = True

    def is_free(self) -> bool:
        """Whether it would take a message now."""
        qos = self._consumer.qos
        return (
            bool(self.queues())
            and qos is not None
            and qos.prev == qos.value
            and self._has_room()
            and self._pool_has_room()
        )

    def held(self) -> int:
        """How many tasks the pool has whose messages are not acknowledged.

        If the connection is lost, the broker delivers these messages again, and those tasks run
        again. Relies on ``state.reserved_requests``, which has those in the pool, running or not;
        and on ``Request.acknowledged``.
        """
        return sum(not request.acknowledged for request in list(state.reserved_requests))

    def healing_s(self) -> float:
        """Seconds in which Celery notices by itself that this connection is dead; 0: unknown."""
        return 0.0

    @abstractmethod
    def queues(self) -> Sequence[str]:
        """The queues that it consumes from."""

    @abstractmethod
    def waiting(self, queues: Sequence[str]) -> Mapping[str, int]:
        """How many messages wait in each of these queues; one that is not known is left out.

        It asks on a connection of the guard's own, with short time limits. Raises what the client
        raises if there is no answer.
        """

    def reconnect(self) -> None:
        """Have Celery connect to the broker anew, as after a lost connection.

        All sockets to the broker are shut first. Otherwise Celery reads from them when it closes
        them, and blocks. This never blocks, and raises nothing here: with an event loop the error
        comes from a timer callback, without one from the next read for messages.
        """
        connection = self._consumer.connection

        def lose(*_: Any, **__: Any) -> None:
            if connection is self._consumer.connection:
                raise ConnectionResetError("worker_guard: the consumer has stalled")

        if self._consumer.hub is None:
            # ``synloop`` catches what a call_soon raises, but not what this does.
            connection.drain_events = lose
        else:
            self._consumer.timer.call_after(0.0, lose)
        shut(broker_sockets(self._worker))

    @abstractmethod
    def close(self) -> None:
        """Close the guard's own connection to the broker."""

    @abstractmethod
    def _missing(self) -> Sequence[str]:
        """What this kind relies on, and this release lacks."""

    @abstractmethod
    def _has_room(self) -> bool:
        """Whether the prefetch limit leaves room for a message."""

    def _channel(self) -> Any:
        return getattr(self._consumer.task_consumer, "channel", None)

    def _pool_has_room(self) -> bool:
        """In gevent and eventlet, a pool without a free greenlet blocks the consumer."""
        return not getattr(self._worker.pool, "is_green", False) or has_room(self._worker.pool)
