"""A broker in Redis: a client of its own for it, and the names of its keys.

Relies on: kombu's Redis ``Channel`` (``from_transport_options``, ``_get_pool``,
``global_keyprefix``, ``unacked_key``, ``unacked_index_key``) and ``Mailbox.reply_exchange``; read
in Celery 5.3.6 to 5.7, kombu 5.3 to 5.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker_guard.celery_internals.hooks import MissingInternalError
from worker_guard.celery_internals.servers import bound_sentinels

_NEEDED = (
    "from_transport_options",
    "_get_pool",
    "global_keyprefix",
    "unacked_key",
    "unacked_index_key",
)


@dataclass(frozen=True, kw_only=True)
class RedisBroker:
    """A broker in Redis. The names have the ``global_keyprefix``; the client adds none.

    A list of control replies is named ``prefix``, the asker's id, ``reply_suffix``.
    """

    client: Any
    prefix: str
    reply_suffix: str
    unacked: str
    unacked_index: str


def redis_broker(app: Any, timeout_s: float) -> RedisBroker:
    """The broker that this app publishes to. Connects to nothing yet.

    The client waits at most ``timeout_s`` for a connection, and for an answer. It handles
    Sentinel, TLS and sockets as the broker is configured.

    Raises:
        MissingInternalError: the broker is not Redis, or something is missing.
        ValueError: its URL or an option is wrong.
    """
    with app.connection_for_write() as connection:
        channel = _unconnected_channel(connection)
        return RedisBroker(
            client=_client(channel._get_pool(), timeout_s),
            prefix=channel.global_keyprefix,
            reply_suffix=f".{app.control.mailbox.reply_exchange.name}",
            unacked=channel.global_keyprefix + channel.unacked_key,
            unacked_index=channel.global_keyprefix + channel.unacked_index_key,
        )


def _unconnected_channel(connection: Any) -> Any:
    """A channel as kombu makes it, but for its ``__init__``, which connects."""
    transport = connection.transport
    if transport.driver_type != "redis":
        raise MissingInternalError(f"no Redis broker: it is {transport.driver_type}")
    kind, options = transport.Channel, connection.transport_options or {}
    if missing := [name for name in _NEEDED if not hasattr(kind, name)]:
        raise MissingInternalError(f"this kombu release has no {', '.join(missing)}")
    channel = kind.__new__(kind)
    channel.connection = transport
    for name in kind.from_transport_options:
        if name in options:
            setattr(channel, name, options[name])
    return channel


def _client(pool: Any, timeout_s: float) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.retry import Retry

    options = pool.connection_kwargs
    options["socket_timeout"] = timeout_s
    if "path" not in options:
        options["socket_connect_timeout"] = timeout_s
    options.pop("retry_on_timeout", None)
    options.update(decode_responses=False, health_check_interval=0)
    # Retry once, at once: after a restart of the server the pooled connection is stale.
    options["retry"] = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    client = redis.Redis(connection_pool=pool)
    bound_sentinels(client, timeout_s)
    return client
