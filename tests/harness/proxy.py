"""A TCP proxy before a broker, whose connections can go dead without being closed.

To the other end a dead connection is alive: the kernel still acknowledges what it sends, and
nothing ever comes back. So it is after a failover, or behind a firewall that has lost its state.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

#: What a worker sends to wait for messages: to Redis, and to RabbitMQ (basic.consume).
BRPOP, CONSUME = b"BRPOP", b"\x00\x3c\x00\x14"


class Proxy:
    """Passes bytes on in both directions, in one thread of the test's process."""

    def __init__(self, port: int, waits: bytes = BRPOP) -> None:
        self._target, self._waits = port, waits
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        #: The workers' ends that have begun to wait for messages.
        self._consuming: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def url(self, database: int = 0) -> str:
        """The server's URL by this proxy."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def consuming(self) -> int:
        """How many connections wait for messages and are alive."""
        with self._lock:
            return len(self._consuming)

    def deaden_consuming(self) -> int:
        """The connections that wait for messages go dead; returns how many."""
        with self._lock:
            dead = [end for end in self._consuming if end in self._peers]
            for end in dead:
                self._deaden(end)
            self._consuming.clear()
            return len(dead)

    def deaden_all(self) -> None:
        """All connections go dead; new ones work."""
        with self._lock:
            for end in list(self._peers):
                self._deaden(end)
            self._consuming.clear()

    def _deaden(self, end: socket.socket) -> None:
        for each in (end, self._peers.get(end)):
            if each is not None and each in self._selector.get_map():
                self._selector.unregister(each)

    def _run(self) -> None:
        while not self._ends:
            for key, _ in self._selector.select(0.05):
                with self._lock, contextlib.suppress(OSError):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif self._is_alive(key.fileobj):
                        self._pass_on(key.fileobj)  # type: ignore[arg-type]

    def _is_alive(self, end: object) -> bool:
        """Not closed with its peer a moment ago, nor dead."""
        return end in self._peers and end in self._selector.get_map()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        for source, sink in ((client, server), (server, client)):
            self._peers[source] = sink
            self._selector.register(source, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        sink = self._peers[source]
        try:
            passed = source.recv(65536)
            if self._waits in passed:
                self._consuming.add(source)
            if passed:
                sink.sendall(passed)
                return
        except OSError:
            pass  # one of the two is gone: so is the other
        for end in (source, sink):
            self._selector.unregister(end)
            self._consuming.discard(end)
            self._peers.pop(end, None)
            end.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join(10)
        self._selector.close()
        for end in (self._listener, *self._peers):
            end.close()
