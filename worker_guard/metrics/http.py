"""The little of HTTP that a scrape needs. Pure: bytes in, bytes out."""

from __future__ import annotations

import re
from http import HTTPStatus

#: A scrape is a few hundred bytes; a request that has not ended by then is refused.
LONGEST_REQUEST_BYTES = 8192

_REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.\d\r?\n")
_END = re.compile(rb"\r?\n\r?\n")

_PATH = b"/metrics"


def status_of(received: bytes) -> HTTPStatus | None:
    """The status that answers a request; None: the request is not complete."""
    if not _END.search(received):
        too_long = len(received) > LONGEST_REQUEST_BYTES
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long else None
    line = _REQUEST_LINE.match(received)
    if line is None:
        return HTTPStatus.BAD_REQUEST
    method, target = line.groups()
    if target.partition(b"?")[0] != _PATH:
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.OK if method in (b"GET", b"HEAD") else HTTPStatus.METHOD_NOT_ALLOWED


def is_head(received: bytes) -> bool:
    """Whether the answer is wanted without its body."""
    return received.startswith(b"HEAD ")


def answer(
    status: HTTPStatus,
    body: bytes | None = None,
    *,
    content_type: str = "text/plain; charset=utf-8",
    head: bool = False,
) -> bytes:
    """An answer that ends the connection; without a body it says its status in one line."""
    if body is None:
        body = f"{status.value} {status.phrase}\n".encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)
