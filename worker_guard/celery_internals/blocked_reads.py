"""In which read of a socket a thread is, and for how long nothing has come on it.

Relies on where redis-py and py-amqp keep a socket while they use it: in a local variable ``sock``,
or as ``_sock`` or ``sock`` of ``self``; read in redis-py 5.0 to 8.1 and amqp 5.4. And on Linux's
``TCP_INFO``.
"""

from __future__ import annotations

import socket
import struct
import sys
from types import FrameType
from typing import Any

from worker_guard.celery_internals.hooks import MissingInternalError
from worker_guard.celery_internals.sockets import broker_sockets, shut

#: ``ssl`` puts frames of its own around a read.
_INNERMOST = 3

#: ``tcpi_last_data_recv`` in Linux's ``struct tcp_info``: 8 bytes, then the 12th number of 32 bits.
_LAST_DATA_AT = 8 + 4 * 11


def check_platform() -> None:
    """Check that this platform says for how long nothing has come on a connection.

    Raises:
        MissingInternalError: it doesn't.
    """
    if not sys.platform.startswith("linux"):
        raise MissingInternalError("only on Linux")
    with socket.socket() as probe:
        try:
            silent_s(probe)
        except (OSError, struct.error) as exc:
            raise MissingInternalError(f"this kernel has no TCP_INFO: {exc}") from exc


def silent_s(connection: socket.socket) -> float:
    """Seconds since a byte came on this connection, by the kernel."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_AT + 4)
    return float(struct.unpack_from("=I", info, _LAST_DATA_AT)[0]) / 1000


def sample_read(frame: FrameType | None) -> tuple[int | None, float]:
    """The connection that this code reads now, as a number, and how long it has been silent."""
    used = socket_in_use(frame)
    return (None, 0.0) if used is None else (used.fileno(), silent_s(used))


def end_read(worker: Any, frame: FrameType | None) -> None:
    """End the read of this code. If it is one of the broker's connections, shut them all.

    It is called in a signal handler, so it does nothing that could block.
    """
    used = socket_in_use(frame)
    if used is not None:
        of_broker = broker_sockets(worker)
        shut(of_broker | {used} if used in of_broker else {used})


def socket_in_use(frame: FrameType | None) -> socket.socket | None:
    """The TCP socket that the innermost code reads or writes now, without a time limit."""
    for _ in range(_INNERMOST):
        if frame is None:
            return None
        for found in _values(frame):
            if isinstance(found, socket.socket) and found.fileno() >= 0:
                waits = found.gettimeout() is None and found.family != socket.AF_UNIX
                return found if waits else None
        frame = frame.f_back
    return None


def _values(frame: FrameType) -> list[object]:
    variables = frame.f_locals
    owner = variables.get("self")
    try:
        # Not getattr: it could run code of the application's, in a signal handler.
        attributes = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        attributes = {}
    return [owner, variables.get("sock"), attributes.get("_sock"), attributes.get("sock")]
