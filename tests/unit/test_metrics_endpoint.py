"""The job that serves the metrics: when it looks, what it answers, what it does on a failure."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.harness.redis_server import free_port
from tests.harness.workers import wait_for
from worker_guard.metrics.collector import Page
from worker_guard.metrics.endpoint import BUSY_S, FRESH_S, IDLE_S, RETRY_S, Endpoint
from worker_guard.metrics.responder import Responder
from worker_guard.scheduler import run_to_end
from worker_guard.status_model import HealthStatus


class Site:
    """An endpoint on a free port, with what it reported."""

    def __init__(self, port: int | None = None, *, threaded: bool = False) -> None:
        self.now = 100.0
        self.port = port or free_port()
        self.written = 0
        self.error: Exception | None = None
        self.health_error: Exception | None = None
        self.known: HealthStatus | None = HealthStatus(state="ready")
        self.failures: list[Exception] = []
        self.opened = 0
        self.endpoint = Endpoint(
            responder=Responder("127.0.0.1", self.port, monotonic=lambda: self.now),
            write=self.write,
            health=self.health,
            failed=self.failures.append,
            opened=self.count,
            monotonic=lambda: self.now,
            threaded=threaded,
        )

    def health(self) -> HealthStatus | None:
        if self.health_error:
            raise self.health_error
        return self.known

    def count(self) -> None:
        self.opened += 1

    def write(self) -> Generator[None, None, Page]:
        yield
        if self.error:
            raise self.error
        self.written += 1
        return Page("text/plain", f"page {self.written}\n".encode())

    def scrape(self, path: str = "/metrics") -> str:
        """What a request gets, while the job runs again and again."""
        got: list[str] = []

        def ask() -> None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
                    got.append(answer.read().decode())
            except urllib.error.HTTPError as refused:
                got.append(refused.read().decode())
                refused.close()

        client = threading.Thread(target=ask)
        client.start()

        def answered() -> list[str]:
            run_to_end(self.endpoint.run())
            return got

        wait_for(answered, "the answer")
        client.join()
        return got[0]


@contextmanager
def site(port: int | None = None, *, threaded: bool = False) -> Iterator[Site]:
    made = Site(port, threaded=threaded)
    try:
        yield made
    finally:
        made.endpoint.stop()


@pytest.mark.parametrize("threaded", [False, True])
def test_a_scrape(threaded: bool) -> None:
    """One page for all scrapes of a second, then a new one."""
    with site(threaded=threaded) as served:
        served.endpoint.open()
        assert served.opened == 1
        assert [served.scrape(), served.scrape()] == ["page 1\n", "page 1\n"]
        served.now += FRESH_S + 0.1
        assert served.scrape() == "page 2\n"
    assert not served.endpoint.responder.is_open


@pytest.mark.parametrize("threaded", [False, True])
def test_a_page_that_cannot_be_written(threaded: bool) -> None:
    """The scrape gets a 500, the failure is reported, and no old page is served."""
    with site(threaded=threaded) as served:
        served.endpoint.open()
        assert served.scrape() == "page 1\n"
        served.error = ValueError("broken")
        served.now += FRESH_S + 0.1
        assert served.scrape() == "500 Internal Server Error\n"
        assert [str(error) for error in served.failures] == ["broken"]
        served.error = None
        assert served.scrape() == "page 2\n"


@pytest.mark.parametrize("threaded", [False, True])
def test_a_probe(threaded: bool) -> None:
    """It is answered by what is known at that moment, without the metrics being written."""
    with site(threaded=threaded) as served:
        served.endpoint.open()
        assert served.scrape("/livez") == '{"alive": true, "state": "ready", "why_not": null}\n'
        served.known = HealthStatus(state="stopping", ready=False, why_not="it is shutting down")
        assert json.loads(served.scrape("/readyz")) == {
            "ready": False,
            "state": "stopping",
            "why_not": "it is shutting down",
        }
        assert served.written == 0


def test_a_failure_of_the_guard_kills_no_worker() -> None:
    """If its health can't be read, the probe says yes, and the failure is reported."""
    with site() as served:
        served.endpoint.open()
        served.health_error = ValueError("broken")
        assert '"alive": true, "state": "unknown"' in served.scrape("/livez")
        assert [str(error) for error in served.failures] == ["broken"]


def test_without_the_library_probes_are_answered() -> None:
    """And a scrape says what is missing."""
    with site() as served:
        served.endpoint.why_no_metrics = "prometheus_client is not installed"
        served.endpoint.open()
        assert '"alive": true' in served.scrape("/livez")
        assert served.scrape() == "prometheus_client is not installed\n"
        assert served.written == 0


def test_how_often_it_looks() -> None:
    """Seldom while the port is taken, often while a client is connected."""
    with site() as served:
        assert served.endpoint.interval_s == RETRY_S
        served.endpoint.open()
        assert served.endpoint.interval_s == IDLE_S
        with socket.create_connection(("127.0.0.1", served.port)):
            run_to_end(served.endpoint.run())
            assert served.endpoint.interval_s == BUSY_S

        def gone() -> bool:
            run_to_end(served.endpoint.run())
            return not served.endpoint.responder.is_busy

        wait_for(gone, "the client to be gone")
        assert served.endpoint.interval_s == IDLE_S


def test_a_port_that_is_taken_is_had_when_it_is_free() -> None:
    """Each run tries; the scheduler handles the failure."""
    with site() as first, site(first.port) as second:
        first.endpoint.open()
        with pytest.raises(OSError, match="in use"):
            second.endpoint.open()
        with pytest.raises(OSError, match="in use"):
            run_to_end(second.endpoint.run())
        assert second.opened == 0
        first.endpoint.stop()
        run_to_end(second.endpoint.run())
        assert second.opened == 1
        assert second.scrape() == "page 1\n"


def test_before_it_is_begun_it_does_nothing() -> None:
    """If there are no metrics, no port is opened."""
    with site() as served:
        run_to_end(served.endpoint.run())
        assert not served.endpoint.responder.is_open


def test_a_silent_client_does_not_hold_a_run() -> None:
    """A run with nothing to read is over at once, and is a single slice."""
    with site() as served:
        served.endpoint.open()
        with socket.create_connection(("127.0.0.1", served.port)):
            for _ in range(5):
                assert list(served.endpoint.run()) == []
            assert served.scrape() == "page 1\n"
