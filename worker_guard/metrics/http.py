"""The little of HTTP that a scrape and a probe need. Pure: bytes in, bytes out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

#: A scrape is a few hundred bytes; a request that has not ended by then is refused.
LONGEST_REQUEST_BYTES = 8192

#: What can be asked for.
METRICS, LIVEZ, READYZ = "/metrics", "/livez", "/readyz"
PATHS = (LIVEZ, READYZ, METRICS)

_REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.\d\r?\n")
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Answer:
    """What answers a request; without a body it says its status in one line."""

    status: HTTPStatus
    body: bytes | None = None
    content_type: str = "text/plain; charset=utf-8"


def status_of(received: bytes) -> HTTPStatus | None:
    """The status that answers a request; None: the request is not complete."""
    if not _END.search(received):
        too_long = len(received) > LONGEST_REQUEST_BYTES
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long else None
    line = _REQUEST_LINE.match(received)
    if line is None:
        return HTTPStatus.BAD_REQUEST
    if path_of(received) not in PATHS:
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.OK if line[1] in (b"GET", b"HEAD") else HTTPStatus.METHOD_NOT_ALLOWED


def path_of(received: bytes) -> str:
    """The path that a complete request asks for, without its query."""
    line = _REQUEST_LINE.match(received)
    return "" if line is None else line[2].partition(b"?")[0].decode("ascii", "replace")


def is_head(received: bytes) -> bool:
    """Whether the answer is wanted without its body."""
    return received.startswith(b"HEAD ")


def encoded(answer: Answer, *, head: bool = False) -> bytes:
    """An answer that ends the connection."""
    status, body = answer.status, answer.body
    if body is None:
        body = f"{status.value} {status.phrase}\n".encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)
