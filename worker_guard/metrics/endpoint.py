"""The job that serves metrics and answers probes on a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import ClassVar

from worker_guard.events import Trigger
from worker_guard.metrics.collector import Page
from worker_guard.metrics.http import METRICS, Answer
from worker_guard.metrics.probes import probe_answer
from worker_guard.metrics.responder import Responder
from worker_guard.scheduler import run_to_end
from worker_guard.status_model import HealthStatus

#: Seconds between two looks for a scrape, and while a client is connected.
IDLE_S = 0.2
BUSY_S = 0.02

#: Seconds before a port that is taken is tried again, the first time.
RETRY_S = 5.0

#: Seconds for which scrapes get the same page.
FRESH_S = 1.0

#: Seconds that the thread gets to stop.
_STOP_S = 1.0


@dataclass(kw_only=True)
class Endpoint:
    """Looks for scrapes and probes now and then, and answers them.

    ``threaded``: on a thread of its own (with gevent, a greenlet); else in the scheduler's slices,
    also while the worker has no broker. ``write`` makes the page of metrics, in slices. If it
    raises, ``failed`` gets the exception, and the scrape is answered with 500. With
    ``why_no_metrics`` it is answered with 501 and that text. ``health`` is what the probes are
    answered by. ``opened`` is called when the port is open. Nothing happens until ``begun`` is
    True.
    """

    name: ClassVar[str] = "metrics_port"
    without_broker: ClassVar[bool] = True

    responder: Responder
    write: Callable[[], Generator[None, None, Page]]
    health: Callable[[], HealthStatus | None]
    failed: Callable[[Exception], None]
    opened: Callable[[], None]
    monotonic: Callable[[], float]
    threaded: bool = False
    why_no_metrics: str = ""
    begun: bool = False
    _page: Page | None = field(default=None, init=False)
    _written_mono: float = field(default=0.0, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    @property
    def interval_s(self) -> float:
        """Short while a client is connected."""
        if self.threaded or not self.responder.is_open:
            return RETRY_S
        return BUSY_S if self.responder.is_busy else IDLE_S

    def open(self) -> None:
        """Listen, and if ``threaded``, begin to serve.

        Raises:
            OSError: the address can't be bound.
        """
        self.begun = True
        self.responder.open()
        self.opened()
        if self.threaded:
            self._thread = threading.Thread(
                target=self._serve, name="worker-guard-metrics", daemon=True
            )
            self._thread.start()

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Open the port if it isn't open, and serve the clients that are there."""
        if self.begun and not self.responder.is_open:
            self.open()
        if not self.threaded:
            yield from self._turn()

    def stop(self) -> None:
        """Stop serving."""
        self.begun = False
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
        self.responder.close()

    def _turn(self) -> Iterator[None]:
        asked = self.responder.turn()
        # A probe does not wait until the metrics are written.
        for path in asked:
            if path != METRICS:
                self.responder.answer(path, self._probed(path))
        if METRICS in asked:
            self.responder.answer(METRICS, (yield from self._metrics()))
        if asked:
            self.responder.turn()

    def _probed(self, path: str) -> Answer:
        health = None
        try:
            health = self.health()
        except Exception as exc:  # noqa: BLE001 - reported; a probe must not fail by this
            self.failed(exc)
        return probe_answer(path, health)

    def _metrics(self) -> Generator[None, None, Answer]:
        if self.why_no_metrics:
            return Answer(HTTPStatus.NOT_IMPLEMENTED, f"{self.why_no_metrics}\n".encode())
        if self._page is None or self.monotonic() - self._written_mono > FRESH_S:
            self._page = None
            try:
                self._page = yield from self.write()
                self._written_mono = self.monotonic()
            except Exception as exc:  # noqa: BLE001 - reported; the scrape is answered with it
                self.failed(exc)
        if self._page is None:
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR)
        return Answer(HTTPStatus.OK, self._page.body, self._page.content_type)

    def _serve(self) -> None:
        while not self._stopping.wait(BUSY_S if self.responder.is_busy else IDLE_S):
            self._serve_once()

    def _serve_once(self) -> None:
        try:
            run_to_end(self._turn())
        except Exception as exc:  # noqa: BLE001 - reported; the next scrape is served
            self.failed(exc)
