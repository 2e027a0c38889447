"""Answers scrapes and probes over HTTP, and never blocks."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from worker_guard.metrics import http

#: The most connections. Beyond them the oldest that has its answer is dropped, else the oldest that
#: has not sent its request, else the oldest that does not read its answer.
MOST_CONNECTIONS = 128

#: The most connections that are accepted in one turn, and that wait to be accepted.
MOST_ACCEPTED = 64
_BACKLOG = 512

#: Seconds for which a client that has not sent its request is not dropped for another one. So slow
#: clients, however many, keep nobody out for long.
SENDING_S = 0.5

#: Seconds for a client to send its request, and to read the answer; else it is dropped.
LONGEST_S = 5.0

_READ_BYTES = 4096


@dataclass
class _Connection:
    socket: socket.socket
    since_mono: float
    received: bytes = b""
    status: HTTPStatus | None = None
    path: str = ""
    outgoing: memoryview | None = None
    done: bool = False

    @property
    def waits(self) -> bool:
        """Whether it asked for something, and has no answer yet."""
        return self.status is HTTPStatus.OK and self.outgoing is None

    @property
    def rank(self) -> int:
        """Who is dropped first, if there are too many."""
        if self.outgoing is None:
            return 1
        return 2 if self.outgoing else 0


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
            listening = socket.create_server(self._address, family=family, backlog=_BACKLOG)
        except OSError as exc:
            why = os.strerror(exc.errno) if exc.errno else str(exc)
            raise OSError(exc.errno, f"{host} port {port}: {why}") from exc
        listening.setblocking(False)
        self._listening = listening

    def turn(self) -> list[str]:
        """Read requests and send answers, as far as possible now; the paths that clients wait for.

        They are in the order of :data:`~worker_guard.metrics.http.PATHS`.
        """
        self._accept()
        now = self._monotonic()
        for connection in list(self._connections):
            overdue = now - connection.since_mono > LONGEST_S
            self._step(connection)
            # A request that came while a task held the loop came in time.
            if connection.done or (overdue and not connection.waits):
                self._drop(connection)
        waiting = {connection.path for connection in self._connections if connection.waits}
        return [path for path in http.PATHS if path in waiting]

    def answer(self, path: str, answer: http.Answer) -> None:
        """Answer all that wait for this path, as far as they read now; the next turns go on."""
        for connection in self._connections:
            if connection.waits and connection.path == path:
                connection.since_mono = self._monotonic()
                head = http.is_head(connection.received)
                connection.outgoing = memoryview(http.encoded(answer, head=head))
                self._step(connection)

    def close(self) -> None:
        """Close all sockets; in a forked child the parent's stay open."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        for connection in list(self._connections):
            self._drop(connection)

    def _step(self, connection: _Connection) -> None:
        try:
            if connection.outgoing is None:
                self._receive(connection)
            if connection.outgoing is not None:
                self._send(connection)
        except BlockingIOError:
            pass
        except OSError:
            connection.done = True  # the client is gone

    def _accept(self) -> None:
        for _ in range(MOST_ACCEPTED):
            if self._listening is None or not self._has_room():
                return
            try:
                accepted, _address = self._listening.accept()
            except OSError:  # no client, or it is gone already
                return
            accepted.setblocking(False)
            connection = _Connection(accepted, self._monotonic())
            self._connections.append(connection)
            # Read now, so that one whose request is here is not dropped as one that is slow.
            self._step(connection)
            if len(self._connections) > MOST_CONNECTIONS:
                self._drop(min(self._droppable(), key=lambda each: each.rank))

    def _has_room(self) -> bool:
        """Whether one more can be accepted. None that waits for its answer is dropped for it."""
        return len(self._connections) < MOST_CONNECTIONS or bool(self._droppable())

    def _droppable(self) -> list[_Connection]:
        before = self._monotonic() - SENDING_S
        return [
            each
            for each in self._connections
            if not each.waits and (each.outgoing is not None or each.since_mono <= before)
        ]

    def _receive(self, connection: _Connection) -> None:
        if connection.status is not None:
            return
        piece = connection.socket.recv(_READ_BYTES)
        connection.received += piece
        connection.status = http.status_of(connection.received)
        if connection.status is None:
            connection.done = not piece
        elif connection.status is HTTPStatus.OK:
            connection.path = http.path_of(connection.received)
        else:
            refusal = http.Answer(connection.status)
            head = http.is_head(connection.received)
            connection.outgoing = memoryview(http.encoded(refusal, head=head))

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
