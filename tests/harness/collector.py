"""A collector of telemetry that counts the spans it is sent, or never answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector(ThreadingHTTPServer):
    """Takes what is sent to any path. A span is counted by the name that stands in the body."""

    daemon_threads = True

    def __init__(self, span: str, *, hangs: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.span, self.hangs = span.encode(), hangs
        self.spans = self.posts = 0
        self.released = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def took(self, body: bytes) -> None:
        """A client has sent this."""
        with self._lock:
            self.posts += 1
            self.spans += body.count(self.span)


class _Handler(BaseHTTPRequestHandler):
    server: Collector
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.took(self._body())
        if self.server.hangs:
            self.server.released.wait(300)
        self._answer(b"{}")

    do_PUT = do_POST  # noqa: N815 - the library's way to name it

    def do_GET(self) -> None:
        self._answer(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing of it is shown."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def collector(span: str, *, hangs: bool = False) -> Iterator[Collector]:
    """A collector on a port of its own, until the block ends."""
    with Collector(span, hangs=hangs) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join(10)
