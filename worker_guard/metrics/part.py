"""The metrics of one worker's guard, put together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, MutableMapping
from typing import Any

from celery import signals

from worker_guard.metrics.catalogue import Figures
from worker_guard.metrics.collector import GuardCollector, application_registry, written
from worker_guard.metrics.endpoint import Endpoint
from worker_guard.metrics.responder import Responder
from worker_guard.scheduler import Part
from worker_guard.settings import PREFIX, Settings
from worker_guard.values.masking import reason_of

#: The part that stands for the figures on the registry.
METRICS = "metrics"

_ON = "on"

#: Pools in whose main process a thread does no harm, and serves while a task holds the loop.
#: billiard forks from that of prefork, and of others nobody knows.
_POOLS_WITH_THREADS = ("solo", "threads", "gevent", "eventlet")


class Metrics:
    """The guard's figures on the application's registry, and on a port where one is asked for.

    :attr:`parts` are for the scheduler. ``states`` is told each part's name with ``"on"`` or the
    reason why it is off, which can change: a port that is taken is tried again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        figures: Callable[[], Figures],
        states: MutableMapping[str, str],
        failed: Callable[[Exception], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._states = states
        self._collector = GuardCollector(figures, failed)
        self._registry: Any = None
        self._endpoint: Endpoint | None = None
        self._pid = os.getpid()
        self.parts: list[Part] = []
        states[METRICS], states[Endpoint.name] = "not started", f"{PREFIX}metrics_port is None"
        if settings.metrics_port is None:
            return
        self._endpoint = Endpoint(
            responder=Responder(settings.metrics_host, settings.metrics_port, monotonic=monotonic),
            write=lambda: written(self._registry, monotonic),
            failed=failed,
            opened=self._opened,
            monotonic=monotonic,
        )
        self.parts.append(self._endpoint)

    def start(self, pool: str) -> None:
        """Register the figures, and open the port, in a worker with this pool."""
        try:
            registry = application_registry()
            self._collector.register(registry)
        except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
            self._states[METRICS] = reason_of(exc)
            if self._endpoint is not None:
                self._states[Endpoint.name] = self._states[METRICS]
            return
        self._registry = registry
        self._states[METRICS] = _ON
        if self._endpoint is not None:
            self._endpoint.threaded = pool in _POOLS_WITH_THREADS
            self._open(self._endpoint)

    def stop(self) -> None:
        """Close the port, and leave the registry as it was found."""
        signals.worker_process_init.disconnect(self._close_in_child)
        if self._endpoint is not None:
            self._endpoint.stop()
        registry, self._registry = self._registry, None
        if registry is not None:
            # An application can have emptied its registry meanwhile.
            with contextlib.suppress(KeyError):
                self._collector.unregister(registry)

    def _open(self, endpoint: Endpoint) -> None:
        # A forked child that kept the socket would keep the port from the worker's successor.
        signals.worker_process_init.connect(self._close_in_child, weak=False)
        try:
            endpoint.open()
        except OSError as exc:
            self._states[Endpoint.name] = f"{exc.strerror}; it is tried again"

    def _opened(self) -> None:
        self._states[Endpoint.name] = _ON

    def _close_in_child(self, **_: Any) -> None:
        if os.getpid() != self._pid and self._endpoint is not None:
            self._endpoint.responder.close()
