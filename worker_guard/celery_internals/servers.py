"""The result backend, its clients and its key names, and the queues of the broker.

Relies on: the names that each function lists; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from celery.backends.base import BaseKeyValueStoreBackend
from kombu.utils.encoding import bytes_to_str, ensure_bytes

#: Seconds for a connect, and for an answer, in a worker. A Redis that hangs costs both.
REDIS_TIMEOUT_S = 0.4


def redis_client(backend: Any, timeout_s: float) -> Any:
    """A Redis client of the guard's own for the server of this result backend.

    The backend's own client waits for minutes. Relies on ``RedisBackend.connparams`` and
    ``_create_client``, which handle Sentinel, TLS and sockets as the backend is configured.
    """
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.retry import Retry

    params = dict(backend.connparams, socket_timeout=timeout_s)
    if "path" not in params:
        params["socket_connect_timeout"] = timeout_s
    params.pop("retry_on_timeout", None)
    # Retry once, at once: after a restart of the server the pooled connection is stale.
    params["retry"] = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    client = backend._create_client(**params)
    bound_sentinels(client, timeout_s)
    return client


def bound_sentinels(client: Any, timeout_s: float) -> None:
    """Let this client wait at most ``timeout_s`` for all Sentinels together, if it has any.

    Each Sentinel has a client of its own, which waits for minutes too. Relies on redis-py's
    ``SentinelConnectionPool.sentinel_manager``.
    """
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    manager = getattr(client.connection_pool, "sentinel_manager", None)
    sentinels = manager.sentinels if manager is not None else ()
    if sentinels:
        # "No master" is a connection error too: a retry would wait for all Sentinels again.
        client.connection_pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
    for sentinel in sentinels:
        share_s = timeout_s / len(sentinels)
        sentinel.connection_pool.connection_kwargs.update(
            socket_timeout=share_s,
            socket_connect_timeout=share_s,
            retry=Retry(NoBackoff(), 0),
        )


def results_client(backend: Any, timeout_s: float, *, again: bool = True) -> Any:
    """A client for the server of this result backend that returns bytes, whatever its URL says.

    Without ``again`` it does not resend a command if the connection ends before the answer.

    Relies on the names that :func:`redis_client` lists, and on
    ``ConnectionPool.connection_kwargs`` and ``max_connections``.
    """
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = redis_client(backend, timeout_s)
    pool = client.connection_pool
    pool.connection_kwargs["decode_responses"] = False
    if not again:
        pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
    # ``redis_max_connections`` is meant for the backend's pool. In this pool a second connection
    # reads the keys that the first one watches.
    pool.max_connections = max(pool.max_connections, 2)
    return client


def key_prefix(backend: Any) -> str:
    """The ``global_keyprefix`` of a key-value result backend; ``""`` if there is none.

    Relies on ``task_keyprefix``: on an instance it is the global prefix, then the class's value.
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
    """The key prefixes of a key-value result backend, for tasks, groups and chords.

    Relies on ``task_keyprefix``, ``group_keyprefix`` and ``chord_keyprefix``; on an instance they
    begin with the ``global_keyprefix``.
    """
    prefixes = (backend.task_keyprefix, backend.group_keyprefix, backend.chord_keyprefix)
    return tuple(ensure_bytes(prefix) for prefix in prefixes)


def result_ttl_s(backend: Any) -> float | None:
    """The longest TTL in seconds that this backend gives its keys; None: they never expire.

    None and 0 both mean "never". If one of the TTLs is None or 0, this is None: the keys that
    should stay can't be told from the rest. Relies on ``Backend.expires`` (``result_expires``)
    and, from Celery 5.7 on, ``failure_expires`` and ``chord_expires``, which can each be longer.
    """
    ttls = _ttls(backend)
    return float(max(ttls)) if all(ttls) and min(ttls) > 0 else None


def result_ttls_s(backend: Any) -> tuple[float, ...]:
    """Each TTL in seconds that this backend gives its keys.

    Relies on the names that :func:`result_ttl_s` lists.
    """
    return tuple(sorted({float(ttl) for ttl in _ttls(backend) if ttl}))


def _ttls(backend: Any) -> list[Any]:
    names = ("expires", "failure_expires", "chord_expires")
    return [getattr(backend, name, backend.expires) for name in names]


def naive_date_ahead_s(app: Any) -> int:
    """How many seconds later a ``date_done`` without an offset can be than it reads as UTC.

    Celery 5.3.6 writes naive UTC (``Backend._get_result_meta``: ``datetime.utcnow()``), and later
    releases write an offset, in any time zone. So this concerns only dates that other code wrote
    under ``enable_utc = False``: a local time west of Greenwich looks older than it is.
    """
    if app.conf.enable_utc:
        return 0
    days = [datetime(datetime.now(timezone.utc).year, month, 1) for month in range(1, 13)]  # noqa: DTZ001 - a local time
    offsets = [app.timezone.utcoffset(day) for day in days]
    return max(0, *(-int(offset.total_seconds()) for offset in offsets if offset is not None))


def waiting_messages(app: Any) -> int:
    """The number of messages that wait in the queues of this app; a missing queue has none.

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
