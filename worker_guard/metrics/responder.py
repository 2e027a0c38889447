"""Answers scrapes over HTTP, and never blocks."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from worker_guard.metrics import http

#: The most connections; beyond them the oldest is dropped.
MOST_CONNECTIONS = 16

#: Seconds for a client to send its request, and to read the answer; else it is dropped.
LONGEST_S = 5.0

_READ_BYTES = 4096


@dataclass
class _Connection:
    socket: socket.socket
    since_mono: float
    received: bytes = b""
    status: HTTPStatus | None = None
    outgoing: memoryview | None = None
    done: bool = False

    @property
    def waits(self) -> bool:
        """Whether it asked for the metrics, and has no answer yet."""
        return self.status is HTTPStatus.OK and self.outgoing is None


class Responder:
    """A listening socket and its connections, none of which blocks.

    Nothing happens by itself: each :meth:`turn` does what can be done now.
    """

    def __init__(self, host: str, port: int, *, monotonic: Callable[[], float]) -> None:
        self._address = ("127.0.0.1" if host == "localhost" else host, port)
        self._monotonic = monotonic
        self._listening: socket.socket | None = None
        self._connections: list[_Connection] = []

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._listening is not None

    @property
    def is_busy(self) -> bool:
        """Whether a client is connected."""
        return bool(self._connections)

    def open(self) -> None:
        """Listen.

        Raises:
            OSError: the address can't be bound; the text says which one, and why.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server(self._address, family=family, backlog=MOST_CONNECTIONS)
        except OSError as exc:
            why = os.strerror(exc.errno) if exc.errno else str(exc)
            raise OSError(exc.errno, f"{host} port {port}: {why}") from exc
        listening.setblocking(False)
        self._listening = listening

    def turn(self) -> bool:
        """Read requests and send answers, as far as possible now; True: a client waits for one."""
        self._accept()
        now = self._monotonic()
        for connection in list(self._connections):
            overdue = now - connection.since_mono > LONGEST_S
            try:
                if connection.outgoing is None:
                    self._receive(connection)
                if connection.outgoing is not None:
                    self._send(connection)
            except BlockingIOError:
                pass
            except OSError:
                connection.done = True  # the client is gone
            # A request that came while a task held the loop came in time.
            if connection.done or (overdue and not connection.waits):
                self._drop(connection)
        return bool(self._waiting())

    def answer(self, status: HTTPStatus, body: bytes | None, content_type: str) -> None:
        """Answer all that wait for the metrics; the next turns send it."""
        for connection in self._waiting():
            connection.since_mono = self._monotonic()
            connection.outgoing = memoryview(
                http.answer(
                    status,
                    body,
                    content_type=content_type,
                    head=http.is_head(connection.received),
                )
            )

    def close(self) -> None:
        """Close all sockets; in a forked child the parent's stay open."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        for connection in list(self._connections):
            self._drop(connection)

    def _waiting(self) -> list[_Connection]:
        return [connection for connection in self._connections if connection.waits]

    def _accept(self) -> None:
        for _ in range(MOST_CONNECTIONS):
            if self._listening is None:
                return
            try:
                accepted, _address = self._listening.accept()
            except OSError:  # no client, or it is gone already
                return
            accepted.setblocking(False)
            if len(self._connections) >= MOST_CONNECTIONS:
                self._drop(self._connections[0])
            self._connections.append(_Connection(accepted, self._monotonic()))

    def _receive(self, connection: _Connection) -> None:
        if connection.status is not None:
            return
        piece = connection.socket.recv(_READ_BYTES)
        connection.received += piece
        connection.status = http.status_of(connection.received)
        if connection.status is None:
            connection.done = not piece
        elif connection.status is not HTTPStatus.OK:
            refusal = http.answer(connection.status, head=http.is_head(connection.received))
            connection.outgoing = memoryview(refusal)

    def _send(self, connection: _Connection) -> None:
        if connection.outgoing:
            sent = connection.socket.send(connection.outgoing)
            connection.outgoing = connection.outgoing[sent:]
            if not connection.outgoing:
                connection.socket.shutdown(socket.SHUT_WR)
        # Closing on a client that is still sending would discard what it has not read yet.
        elif not connection.socket.recv(_READ_BYTES):
            connection.done = True

    def _drop(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        with contextlib.suppress(OSError):
            connection.socket.close()
