"""Fronts to a Redis server: they act in mid-cleanup, or lose an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any


class Front:
    """Passes everything on; :meth:`passes` sees each call of a script before the server does."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def passes(self) -> None:
        """A script is called."""

    def loses(self, command: bytes) -> bool:
        """Whether the connection ends before this command, which was run, is answered."""
        return False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        """One command after the other, each with its one answer (no push)."""
        # Either end can be gone; the other one is to see that it is.
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._target)) as server,
            client.makefile("rb") as requests,
            server.makefile("rb") as answers,
        ):
            while raw := _read(requests):
                parts = raw.split(b"\r\n")
                if parts[2].upper() in (b"EVAL", b"EVALSHA"):
                    self.passes()
                server.sendall(raw)
                answer = _read(answers)
                if not answer or self.loses(parts[2].upper()):
                    return
                client.sendall(answer)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Cable:
    """Passes bytes on in both directions, and can be cut: then it also refuses to connect."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._is_cut = False
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, database: int = 0) -> str:
        """The server's URL by this cable."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._is_cut = True
        for end in self._ends:
            _shut(end)

    def mend(self) -> None:
        """Let them connect again."""
        self._is_cut = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while passed := source.recv(65536):
                sink.sendall(passed)
        _shut(sink)

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._listener.close()
        for end in self._ends:
            _shut(end)
            end.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class AnswerLost(Front):
    """Ends the connection once, when the server has run the second of these commands."""

    def __init__(self, port: int, *commands: bytes) -> None:
        self._commands = commands
        self._run = 0
        super().__init__(port)

    def loses(self, command: bytes) -> bool:
        """The second time."""
        self._run += command in self._commands
        return command in self._commands and self._run == 2


class InMidCleanup(Front):
    """Does something once while a cleanup waits for an answer, some calls after its first.

    However long the test is held up: the cleanup gets no further before that was done.
    """

    CALLS = 6

    def __init__(self, port: int, act: Callable[[], object]) -> None:
        self._act = act
        self._calls = 0
        self.acted = False
        super().__init__(port)

    def passes(self) -> None:
        """Act once."""
        self._calls += 1
        if self._calls == self.CALLS:
            self._act()
            self.acted = True

    def url(self, database: int = 0) -> str:
        """The server's URL by this front."""
        return f"redis://127.0.0.1:{self.port}/{database}"


def _read(stream: object) -> bytes:
    """One whole message of the protocol, as it came."""
    line: bytes = stream.readline()  # type: ignore[attr-defined]
    if line[:1] in (b"$", b"=", b"!") and int(line[1:]) >= 0:
        return line + stream.read(int(line[1:]) + 2)  # type: ignore[attr-defined, no-any-return]
    if line[:1] in (b"*", b"~", b">") and int(line[1:]) >= 0:
        return line + b"".join(_read(stream) for _ in range(int(line[1:])))
    if line[:1] == b"%":
        return line + b"".join(_read(stream) for _ in range(2 * int(line[1:])))
    return line
