"""The responder, with real sockets on loopback: it never blocks."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest

from tests.harness.redis_server import free_port
from tests.harness.workers import wait_for
from worker_guard.metrics.http import METRICS, Answer
from worker_guard.metrics.responder import LONGEST_S, MOST_CONNECTIONS, SENDING_S, Responder

GET = b"GET /metrics HTTP/1.1\r\n\r\n"
PROBE = b"GET /livez HTTP/1.1\r\n\r\n"

PAGE, ALIVE = Answer(HTTPStatus.OK, b"a 1\n"), Answer(HTTPStatus.OK, b"alive\n")


class Site:
    """A responder with a clock that stands, and clients."""

    def __init__(self) -> None:
        self.now = 100.0
        self.port = free_port()
        self.responder = Responder("127.0.0.1", self.port, monotonic=lambda: self.now)
        self.clients: list[socket.socket] = []

    def connect(self, send: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.clients.append(client)
        client.sendall(send)
        return client

    def turn_until(self, condition: Callable[[], object]) -> None:
        """Take turns, whose waiting clients are answered, until it holds."""

        def turned() -> object:
            for path in self.responder.turn():
                self.responder.answer(path, PAGE if path == METRICS else ALIVE)
            return condition()

        wait_for(turned, "the responder")

    def answered(self, client: socket.socket) -> bytes:
        """All that this client is sent, until the responder ends the connection."""
        client.setblocking(False)
        received: list[bytes] = []

        def ended() -> bool:
            try:
                received.append(client.recv(1 << 20))
            except BlockingIOError:
                return False
            return not received[-1]

        self.turn_until(ended)
        return b"".join(received)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.responder.open()
    try:
        yield site
    finally:
        site.responder.close()
        for client in site.clients:
            client.close()


def test_a_scrape_is_answered(site: Site) -> None:
    """With what it is given, and the connection ends."""
    client = site.connect(GET)
    assert site.answered(client).endswith(b"\r\n\r\na 1\n")
    client.close()
    site.turn_until(lambda: not site.responder.is_busy)


def test_nobody_there_is_a_turn_at_once(site: Site) -> None:
    """And nobody waits."""
    assert site.responder.turn() == []
    assert not site.responder.is_busy


def test_all_that_wait_get_the_same_page(site: Site) -> None:
    """One answer serves them, whenever they came."""
    clients = [site.connect(GET) for _ in range(3)]
    assert [site.answered(client)[-4:] for client in clients] == [b"a 1\n"] * 3


def test_a_client_that_sends_nothing_holds_nobody_up(site: Site) -> None:
    """Others are answered meanwhile; it is dropped when its time is over."""
    silent = site.connect()
    drip = site.connect(b"GET /met")
    assert site.answered(site.connect(GET)).endswith(b"a 1\n")
    drip.sendall(b"rics")
    site.now += LONGEST_S + 0.1
    assert site.answered(silent) == site.answered(drip) == b""


def test_a_request_that_came_while_nobody_looked_is_answered(site: Site) -> None:
    """If the worker was held for longer than a client may take, the client is still answered."""
    client = site.connect()
    site.turn_until(lambda: site.responder.is_busy)
    client.sendall(GET)
    select.select([site.responder._connections[0].socket], [], [])
    site.now += LONGEST_S + 0.1
    assert site.answered(client).endswith(b"a 1\n")


def test_a_client_that_reads_nothing_holds_nobody_up(site: Site) -> None:
    """A large page is sent as far as it goes; the client is dropped when its time is over."""
    deaf = site.connect(GET)
    wait_for(site.responder.turn, "the request")
    site.responder.answer(METRICS, Answer(HTTPStatus.OK, b"x" * 50_000_000))
    for _ in range(20):
        site.responder.turn()
    assert site.answered(site.connect(GET)).endswith(b"a 1\n")
    site.now += LONGEST_S + 0.1
    site.turn_until(lambda: not site.responder.is_busy)
    deaf.close()


def test_a_large_page_arrives_whole(site: Site) -> None:
    """In as many turns as it takes."""
    client = site.connect(GET)
    wait_for(site.responder.turn, "the request")
    site.responder.answer(METRICS, Answer(HTTPStatus.OK, b"x" * 5_000_000))
    assert site.answered(client).endswith(b"x" * 5_000_000)


def test_a_probe_is_answered_beside_a_scrape_that_waits(site: Site) -> None:
    """Each path has its own answer; the one that waits goes on waiting."""
    scraping, probing = site.connect(GET), site.connect(PROBE)
    wait_for(lambda: len(site.responder.turn()) == 2, "both requests")
    assert site.responder.turn() == ["/livez", "/metrics"]
    site.responder.answer("/livez", ALIVE)
    assert site.responder.turn() == ["/metrics"]
    assert site.answered(probing).endswith(b"alive\n")
    assert site.answered(scraping).endswith(b"a 1\n")


def test_a_crowd_at_once_is_answered(site: Site) -> None:
    """None that waits for its answer is dropped for a later one."""
    crowd = [site.connect(PROBE) for _ in range(100)]
    assert all(site.answered(client).endswith(b"alive\n") for client in crowd)


def test_of_too_many_the_one_without_a_request_goes(site: Site) -> None:
    """However long the others wait already."""
    waiting = [site.connect(GET) for _ in range(MOST_CONNECTIONS - 1)]
    drip = site.connect(b"GET /liv")

    def all_wait() -> bool:
        site.responder.turn()
        return sum(each.waits for each in site.responder._connections) == len(waiting)

    wait_for(all_wait, "the scrapes")
    site.now += SENDING_S
    probing = site.connect(PROBE)
    assert site.answered(probing).endswith(b"alive\n")
    assert site.answered(drip) == b""
    assert all(site.answered(client).endswith(b"a 1\n") for client in waiting)


def test_there_are_never_too_many(site: Site) -> None:
    """The oldest goes, so that a crowd of silent clients locks nobody out for long."""
    crowd = [site.connect() for _ in range(MOST_CONNECTIONS)]
    site.turn_until(lambda: len(site.responder._connections) == MOST_CONNECTIONS)
    late = site.connect(GET)
    for _ in range(3):
        site.responder.turn()
        assert len(site.responder._connections) == MOST_CONNECTIONS
    site.now += SENDING_S
    assert site.answered(late).endswith(b"a 1\n")
    assert site.answered(crowd[0]) == b""
    assert len(site.responder._connections) <= MOST_CONNECTIONS


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"PUT /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n" + b"x" * 100_000, b"405 Method"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"x" * 100_000, b"431 Request Header"),
    ],
)
def test_a_bad_request_is_refused(site: Site, sent: bytes, status: bytes) -> None:
    """The refusal arrives, even if the client had more to send."""
    assert site.answered(site.connect(sent)).startswith(b"HTTP/1.1 " + status)


def test_a_client_that_sends_on_gets_its_answer_before_the_end(site: Site) -> None:
    """The connection ends when the client ends it, so that nothing sent to it is thrown away."""
    client = site.connect(b"POST /metrics HTTP/1.1\r\n\r\n")
    client.setblocking(False)
    site.turn_until(lambda: site.responder._connections[0].outgoing == memoryview(b""))
    for _ in range(3):
        client.sendall(b"x" * 1000)
        site.responder.turn()
        assert site.responder.is_busy
    assert site.answered(client).startswith(b"HTTP/1.1 405 ")
    client.close()
    site.turn_until(lambda: not site.responder.is_busy)


def test_a_client_that_leaves_is_its_own_affair(site: Site) -> None:
    """Before it has sent a request, and before it is answered."""
    site.connect(b"GET").close()
    site.turn_until(lambda: not site.responder.is_busy)
    leaving = site.connect(GET)
    wait_for(site.responder.turn, "the request")
    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    leaving.close()
    site.responder.answer(METRICS, Answer(HTTPStatus.OK, b"x" * 1_000_000))
    site.turn_until(lambda: not site.responder.is_busy)


@contextmanager
def taken(host: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_taken_is_named() -> None:
    """With its host; and it can be bound when the other is gone."""
    with taken("127.0.0.1") as port:
        responder = Responder("localhost", port, monotonic=lambda: 0.0)
        with pytest.raises(OSError, match=rf"127.0.0.1 port {port}: Address already in use"):
            responder.open()
        assert not responder.is_open
    responder.open()
    assert responder.is_open
    responder.close()
    assert not responder.is_open
    responder.close()


def test_the_address_can_be_one_of_version_6() -> None:
    """As the setting allows it."""
    try:
        with taken("::1") as port:
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    responder = Responder("::1", port, monotonic=lambda: 0.0)
    responder.open()
    socket.create_connection(("::1", port), timeout=10).close()
    responder.close()
