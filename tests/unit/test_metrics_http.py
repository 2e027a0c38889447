"""The little of HTTP that a scrape needs."""

from __future__ import annotations

from http import HTTPStatus
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

import pytest

from worker_guard.metrics.http import (
    LONGEST_REQUEST_BYTES,
    Answer,
    encoded,
    is_head,
    path_of,
    status_of,
)

END = b"\r\n\r\n"


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: localhost" + END, 200),
        (b"GET /metrics HTTP/1.0" + END, 200),
        (b"HEAD /metrics HTTP/1.1" + END, 200),
        (b"GET /metrics?name[]=x HTTP/1.1" + END, 200),
        (b"GET /metrics HTTP/1.1\n\n", 200),
        (b"GET /livez HTTP/1.1" + END, 200),
        (b"HEAD /readyz?verbose HTTP/1.1" + END, 200),
        (b"POST /livez HTTP/1.1" + END, 405),
        (b"GET /livez/ HTTP/1.1" + END, 404),
        (b"GET / HTTP/1.1" + END, 404),
        (b"GET /metricsx HTTP/1.1" + END, 404),
        (b"GET /metrics/ HTTP/1.1" + END, 404),
        (b"POST /metrics HTTP/1.1" + END + b"body", 405),
        (b"DELETE /metrics HTTP/1.1" + END, 405),
        (b"GET /metrics" + END, 400),
        (b"GET /metrics HTTP/2" + END, 400),
        (b"get /metrics HTTP/1.1" + END, 400),
        (b"GET  /metrics HTTP/1.1" + END, 400),
        (b"\x16\x03\x01\x02\x00" + END, 400),
        (END, 400),
        # Not complete.
        (b"", None),
        (b"GET /metrics HTTP/1.1\r\n", None),
        (b"x" * LONGEST_REQUEST_BYTES, None),
        (b"x" * (LONGEST_REQUEST_BYTES + 1), 431),
    ],
)
def test_what_is_answered(received: bytes, status: int | None) -> None:
    """Only GET and HEAD of three paths; a request without an end has none at some length."""
    assert status_of(received) == (None if status is None else HTTPStatus(status))


def test_the_path_is_what_is_asked_for() -> None:
    """Without its query; bytes that are no text do no harm."""
    assert path_of(b"GET /livez?a=/b HTTP/1.1" + END) == "/livez"
    assert path_of(b"GET /\xff HTTP/1.1" + END) == "/\ufffd"


def parsed(raw: bytes, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """The answer as Python's own client reads it."""

    class Socket:
        def makefile(self, *_: Any) -> BytesIO:
            return BytesIO(raw)

    response = HTTPResponse(Socket(), method=method)  # type: ignore[arg-type]
    response.begin()
    return response, response.read()


def test_an_answer_is_read_by_a_client() -> None:
    """Its length, type and end are said."""
    response, body = parsed(encoded(Answer(HTTPStatus.OK, b"a 1\n", "text/plain; version=0.0.4")))
    assert (response.status, body) == (200, b"a 1\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4"
    assert response.headers["Content-Length"] == "4"
    assert response.headers["Connection"] == "close"


def test_the_answer_to_head_has_the_length_and_no_body() -> None:
    """As RFC 9110 has it."""
    assert is_head(b"HEAD /metrics HTTP/1.1" + END)
    assert not is_head(b"GET /metrics HTTP/1.1" + END)
    raw = encoded(Answer(HTTPStatus.OK, b"a 1\n"), head=True)
    assert raw.endswith(END)
    response, body = parsed(raw, "HEAD")
    assert (response.headers["Content-Length"], body) == ("4", b"")


def test_a_refusal_says_why() -> None:
    """In one line; a wrong method also what is allowed."""
    response, body = parsed(encoded(Answer(HTTPStatus.METHOD_NOT_ALLOWED)))
    assert (response.status, body) == (405, b"405 Method Not Allowed\n")
    assert response.headers["Allow"] == "GET, HEAD"
    assert parsed(encoded(Answer(HTTPStatus.NOT_FOUND)))[1] == b"404 Not Found\n"
