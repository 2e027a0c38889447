"""The consumer with Redis, and with RabbitMQ: its room, and how many messages wait.

Relies on: the names that each class lists; read in Celery 5.3.6 to 5.7, kombu 5.3 to 5.7 and amqp
5.1 to 5.4.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from amqp.exceptions import NotFound, ResourceLocked
from kombu.transport import pyamqp
from kombu.transport.virtual import Channel as VirtualChannel

from worker_guard.celery_internals.consumer import TaskConsumer
from worker_guard.celery_internals.hooks import MissingInternalError
from worker_guard.celery_internals.host import held_requests

#: Seconds for the guard's own connection to the broker, and for an answer on it.
BROKER_TIMEOUT_S = 0.4

#: Seconds for the answers of RabbitMQ about several queues.
_ANSWERS_S = 0.6


def task_consumer(worker: Any) -> TaskConsumer:
    """The consumer of this worker.

    Raises:
        MissingInternalError: the broker is neither Redis nor RabbitMQ, or something is missing.
    """
    with worker.app.connection_for_read() as connection:
        transport = connection.transport
        if transport.driver_type == "redis":
            return RedisConsumer(worker, transport.Channel)
        if isinstance(transport, pyamqp.Transport):
            return AmqpConsumer(worker)
        raise MissingInternalError(f"not with a broker of type {transport.driver_type}")


class RedisConsumer(TaskConsumer):
    """The consumer of a worker with a Redis broker.

    Relies on the Redis channel's ``active_queues``, ``qos.can_consume``, ``priority_steps``,
    ``_q_for_pri``, ``global_keyprefix`` and ``pool``.
    """

    _NEEDED_OF_CHANNEL = ("active_queues", "_q_for_pri", "priority_steps", "pool")

    queues_at_once = 50  # in one round trip

    def __init__(self, worker: Any, channel_type: Any) -> None:
        self._channel_type = channel_type
        super().__init__(worker)
        self.can_reconnect = bool(worker.app.conf.broker_connection_retry)
        self._client: Any = None
        self._client_of: Any = None

    def queues(self) -> Sequence[str]:
        """The queues that it consumes from."""
        return list(self._channel().active_queues)

    def waiting(self, queues: Sequence[str]) -> Mapping[str, int]:
        """How many messages wait in each of these queues, of each priority."""
        channel = self._channel()
        keys = [
            (queue, channel.global_keyprefix + channel._q_for_pri(queue, priority))
            for queue in queues
            for priority in channel.priority_steps
        ]
        with self._client_for(channel).pipeline(transaction=False) as pipe:
            for _, key in keys:
                pipe.llen(key)
            sizes = pipe.execute()
        waiting = dict.fromkeys(queues, 0)
        for (queue, _), size in zip(keys, sizes, strict=True):
            waiting[queue] += int(size)
        return waiting

    def close(self) -> None:
        """Close the guard's own connection to the broker."""
        client, self._client, self._client_of = self._client, None, None
        if client is not None:
            with contextlib.suppress(OSError):
                client.connection_pool.disconnect()

    def _missing(self) -> Sequence[str]:
        kind = self._channel_type
        missing = [name for name in self._NEEDED_OF_CHANNEL if not hasattr(kind, name)]
        if not issubclass(kind, VirtualChannel) or not hasattr(kind.QoS, "can_consume"):
            missing.append("qos.can_consume")
        return missing

    def _has_room(self) -> bool:
        return bool(self._channel().qos.can_consume())

    def _client_for(self, channel: Any) -> Any:
        if self._client_of is not channel:
            self.close()
            self._client, self._client_of = _own_client(channel.pool), channel
        return self._client


class AmqpConsumer(TaskConsumer):
    """The consumer of a worker with RabbitMQ.

    Nothing is asked on the worker's own connection. Relies on ``Consumer.initial_prefetch_count``,
    and on py-amqp's ``Connection.sock`` and ``collect``.
    """

    _NEEDED = (*TaskConsumer._NEEDED, "initial_prefetch_count")

    queues_at_once = 15  # one round trip each, of 0.2 ms

    #: A reconnect ends a worker of Celery 5.7: its mailbox is still locked by the old connection.
    can_reconnect = False

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        # With greenlets it was seen to stop consuming, and not to end.
        self.can_shut_down = not getattr(worker.pool, "is_green", False)
        self._own: Any = None
        self._own_channel: Any = None
        self._own_of: Any = None

    def is_consuming(self) -> bool:
        """Whether it is connected and runs. False during a shutdown, from its request on."""
        return super().is_consuming() and self._consumer.connection.connected

    def healing_s(self) -> float:
        """Celery makes a connection anew on which nothing came for two heartbeats."""
        connection = self._consumer.connection
        heartbeat_s = connection.get_heartbeat_interval() if connection.connected else 0
        return 2.0 * heartbeat_s + 1.0 if heartbeat_s else 0.0

    def queues(self) -> Sequence[str]:
        """The queues that it consumes from.

        Without those in which messages wait though it is free: of a queue with a single active
        consumer another worker may have them, a stream keeps them, and consumers with a higher
        priority come first.
        """
        consumer = self._consumer.task_consumer
        return [
            queue.name
            for queue in consumer.queues
            if consumer.consuming_from(queue.name) and not _may_wait(queue)
        ]

    def waiting(self, queues: Sequence[str]) -> Mapping[str, int]:
        """How many messages wait in each of these queues.

        Each is declared passively. One that is gone, or that another connection has for itself, is
        left out; RabbitMQ then closes the channel, which is the guard's own.
        """
        reused = self._own is not None and self._own_of is self._consumer.connection
        try:
            return self._ask(queues)
        except (OSError, *pyamqp.Transport.connection_errors):
            if not reused:
                raise
            return self._ask(queues)  # once, at once: the connection may have been stale

    def close(self) -> None:
        """Close the guard's own connection to the broker."""
        if self._own is not None:
            with contextlib.suppress(Exception):
                self._own.close()
        self._forget()

    def _missing(self) -> Sequence[str]:
        return ()

    def _has_room(self) -> bool:
        """RabbitMQ counts what is not acknowledged; here all counts that the worker holds.

        With quorum queues the limit of a consumer stays what it was in the beginning.
        """
        limit = int(self._consumer.qos.value)
        if limit and self._has_static_prefetch():
            limit = min(limit, self._consumer.initial_prefetch_count)
        return not limit or len(held_requests(self._worker)) < limit

    def _has_static_prefetch(self) -> bool:
        queues = self._worker.app.amqp.queues
        return bool(self._consumer.connection.qos_semantics_matches_spec) or any(
            (queue.queue_arguments or {}).get("x-queue-type") == "quorum"
            for queue in list(queues.values())
        )

    def _ask(self, queues: Sequence[str]) -> Mapping[str, int]:
        waiting: dict[str, int] = {}
        try:
            self._connect()
            until = time.monotonic() + _ANSWERS_S
            for queue in queues:
                _check_time(until)
                try:
                    declared = self._own_channel.queue_declare(queue, passive=True)
                except (NotFound, ResourceLocked):
                    self._own_channel = self._own.channel()
                else:
                    waiting[queue] = int(declared.message_count)
        except Exception:
            self._forget()  # without a farewell, whose answer would be waited for
            raise
        return waiting

    def _connect(self) -> None:
        connection = self._consumer.connection
        if self._own is not None and self._own_of is connection:
            return
        self.close()
        limits = dict.fromkeys(
            ("connect_timeout", "read_timeout", "write_timeout"), BROKER_TIMEOUT_S
        )
        clone = connection.clone(
            heartbeat=0,
            connect_timeout=BROKER_TIMEOUT_S,
            transport_options={**(connection.transport_options or {}), **limits},
        )
        self._own, self._own_of = clone.transport.establish_connection(), connection
        self._own.sock.settimeout(BROKER_TIMEOUT_S)
        self._own_channel = self._own.channel()

    def _forget(self) -> None:
        own, self._own, self._own_channel, self._own_of = self._own, None, None, None
        if own is not None:
            with contextlib.suppress(Exception):
                own.collect()


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError("RabbitMQ answers too slowly")


def _may_wait(queue: Any) -> bool:
    """Whether messages may wait in this queue of RabbitMQ though a consumer would take one."""
    arguments = queue.queue_arguments or {}
    return bool(
        arguments.get("x-single-active-consumer")
        or arguments.get("x-queue-type") == "stream"
        or "x-priority" in (queue.consumer_arguments or {})
    )


def _own_client(pool: Any) -> Any:
    """A client of its own for the server of this pool of kombu's.

    kombu's own waits for ever. Relies on ``ConnectionPool.connection_class`` and
    ``connection_kwargs``; with Sentinel on ``master_address``, which kombu has asked for.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.retry import Retry

    options, kind = dict(pool.connection_kwargs), pool.connection_class
    address = getattr(pool, "master_address", None)
    if hasattr(pool, "sentinel_manager"):
        if address is None:
            raise RedisConnectionError("Sentinel has named no master yet")
        options.pop("connection_pool", None)
        options["host"], options["port"] = address
        kind = redis.SSLConnection if issubclass(kind, redis.SSLConnection) else redis.Connection
    options["socket_timeout"] = BROKER_TIMEOUT_S
    if not issubclass(kind, redis.UnixDomainSocketConnection):
        options["socket_connect_timeout"] = BROKER_TIMEOUT_S
    options.pop("retry_on_timeout", None)
    # Once, at once: after a restart of the server the connection is stale.
    options["retry"] = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            connection_class=kind, **{**options, "max_connections": 1}
        )
    )
