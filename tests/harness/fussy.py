"""A front to a Redis server that refuses what some servers refuse."""

from __future__ import annotations

import contextlib
import socket
import threading


class UndeclaredKeysRefused:
    """Passes everything on but a script that is called without keys.

    That is what servers do that need to know a script's keys before they run it.
    """

    REFUSAL = b"-ERR script tried accessing undeclared key\r\n"

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.refused = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        """One command after the other, each with its one answer (no pipeline, no push)."""
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            requests, answers = client.makefile("rb"), server.makefile("rb")
            while True:
                raw = _read(requests)
                if not raw:
                    return
                parts = raw.split(b"\r\n")
                if parts[2].upper() in (b"EVAL", b"EVALSHA") and parts[6] == b"0":
                    self.refused += 1
                    client.sendall(self.REFUSAL)
                    continue
                server.sendall(raw)
                client.sendall(_read(answers))

    def __enter__(self) -> UndeclaredKeysRefused:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _read(stream: object) -> bytes:
    """One whole message of the protocol, as it came."""
    line: bytes = stream.readline()  # type: ignore[attr-defined]
    if line[:1] == b"$" and int(line[1:]) >= 0:
        return line + stream.read(int(line[1:]) + 2)  # type: ignore[attr-defined, no-any-return]
    if line[:1] in (b"*", b"~", b">") and int(line[1:]) >= 0:
        return line + b"".join(_read(stream) for _ in range(int(line[1:])))
    if line[:1] == b"%":
        return line + b"".join(_read(stream) for _ in range(2 * int(line[1:])))
    return line
