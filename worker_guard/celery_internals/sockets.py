"""The broker's sockets in a worker: which they are, and how reads of them end.

Relies on: ``Connection._transport`` and ``_connection``, ``Transport.channels`` and
``_avail_channels``; on a Redis channel's ``client``, ``subclient``, ``_pool`` and ``_async_pool``
with redis-py's ``_available_connections``, ``_in_use_connections`` and ``_sock``; on py-amqp's
``_transport.sock``; on ``App._pool`` and ``AMQP._producer_pool`` with ``_resource.queue`` and
``_dirty``; and on ``consumer.event_dispatcher`` and ``Control.box.node.channel``. What a
release or a transport lacks is left out. Read in Celery 5.3.6 to 5.7 and kombu 5.5 to 5.7.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from kombu.connection import Connection


def broker_sockets(worker: Any) -> set[socket.socket]:
    """All open sockets of this worker's main process to the broker."""
    consumer = worker.consumer
    found = _other_sockets(worker)
    found.update(_of_connection(getattr(consumer, "connection", None)))
    app = worker.app
    for pool in (getattr(app, "_pool", None), getattr(app.amqp, "_producer_pool", None)):
        for resource in _resources(pool):
            found.update(_of_connection(getattr(resource, "connection", resource)))
    return found


def _other_sockets(worker: Any) -> set[socket.socket]:
    """The sockets of events and remote control: nothing is acknowledged on them."""
    consumer = worker.consumer
    found: set[socket.socket] = set()
    dispatcher = getattr(consumer, "event_dispatcher", None)
    found.update(_of_connection(getattr(dispatcher, "connection", None)))
    for step in getattr(consumer, "steps", ()):
        node = getattr(getattr(step, "box", None), "node", None)
        found.update(_of_channel(getattr(node, "channel", None)))
    return found


def shut(sockets: set[socket.socket]) -> None:
    """Shut these sockets down, so that each read of them ends with an error. It never blocks."""
    for each in sockets:
        with contextlib.suppress(OSError):  # it is not connected any more
            each.shutdown(socket.SHUT_RDWR)


def bound_other_reads(worker: Any, timeout_s: float) -> None:
    """Let no read take longer than this on which no acknowledgement depends.

    Those on a connection for events or remote control; with AMQP, where an acknowledgement is only
    written, all on the consumer's connection, too.
    """
    _bound(_other_sockets(worker), timeout_s)
    _bound(set(_of_amqp(getattr(worker.consumer, "connection", None))), timeout_s)


def bound_all_reads(worker: Any, timeout_s: float) -> None:
    """Let no read on a connection to the broker take longer than this."""
    _bound(broker_sockets(worker), timeout_s)


def _bound(sockets: set[socket.socket], timeout_s: float) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.settimeout(timeout_s)


def _resources(pool: Any) -> list[Any]:
    """What this pool has made, free or lent; what it would only make on demand is left out."""
    free = list(getattr(getattr(pool, "_resource", None), "queue", ()))
    return [each for each in (*free, *getattr(pool, "_dirty", ())) if not callable(each)]


def _of_connection(connection: Any) -> Iterator[socket.socket]:
    if not isinstance(connection, Connection):
        return
    transport = getattr(connection, "_transport", None)
    for name in ("channels", "_avail_channels"):
        for channel in list(getattr(transport, name, None) or ()):
            yield from _of_channel(channel)
    yield from _of_amqp(connection)


def _of_amqp(connection: Any) -> Iterator[socket.socket]:
    transport = getattr(getattr(connection, "_connection", None), "_transport", None)
    yield from _open(getattr(transport, "sock", None))


def _of_channel(channel: Any) -> Iterator[socket.socket]:
    made = getattr(channel, "__dict__", {})  # only what is made: a property would connect
    for name in ("client", "subclient"):
        yield from _of_redis(getattr(made.get(name), "connection", None))
    for name in ("_pool", "_async_pool"):
        for which in ("_available_connections", "_in_use_connections"):
            for each in list(getattr(made.get(name), which, ())):
                yield from _of_redis(each)
    amqp = getattr(made.get("connection"), "_transport", None)
    yield from _open(getattr(amqp, "sock", None))


def _of_redis(connection: Any) -> Iterator[socket.socket]:
    yield from _open(getattr(connection, "_sock", None))


def _open(found: Any) -> Iterator[socket.socket]:
    if isinstance(found, socket.socket) and found.fileno() >= 0:
        yield found
