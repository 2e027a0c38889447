"""The part that serves the guard's figures to Prometheus, and answers probes."""

from __future__ import annotations

import contextlib
import os
from typing import Any, ClassVar

from celery import signals

from worker_guard import celery_internals
from worker_guard.backoff import Backoff
from worker_guard.metrics.catalogue import Figures
from worker_guard.metrics.collector import (
    GuardCollector,
    NoPrometheusError,
    application_registry,
    written,
)
from worker_guard.metrics.endpoint import Endpoint
from worker_guard.metrics.responder import Responder
from worker_guard.part import ON, Context, Part
from worker_guard.settings import PREFIX

#: Pools whose main process can have a thread, which serves while a task holds the loop. Not
#: prefork, since billiard forks from its main process, and no pool that is unknown.
_POOLS_WITH_THREADS = ("solo", "threads", "gevent", "eventlet")


class MetricsPart(Part):
    """The guard's figures on the application's registry, and on a port if one is asked for.

    Without prometheus_client there are no figures, and the port answers only probes. The port's
    state can change: a port that is taken is tried again.
    """

    name: ClassVar[str] = "metrics"
    also: ClassVar[tuple[str, ...]] = (Endpoint.name,)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings, monotonic = context.settings, context.monotonic
        failures = Backoff(self.name, first_pause_s=settings.interval, report=context.report)

        def failed(error: Exception) -> None:
            failures.noticed(error, monotonic())

        self._collector = GuardCollector(
            lambda: Figures(context.status(), context.activity), failed
        )
        self._registry: Any = None
        self._endpoint: Endpoint | None = None
        self._pid = os.getpid()
        if settings.metrics_port is None:
            self.states[Endpoint.name] = f"{PREFIX}metrics_port is None"
            return
        self._endpoint = Endpoint(
            responder=Responder(settings.metrics_host, settings.metrics_port, monotonic=monotonic),
            write=lambda: written(self._registry, monotonic),
            health=lambda: context.status_of("health").get("health"),
            failed=failed,
            opened=self._opened,
            monotonic=monotonic,
        )
        self.jobs.append(self._endpoint)

    def start(self) -> None:
        """Register the figures, and open the port."""
        try:
            registry = application_registry()
            self._collector.register(registry)
            self._registry = registry
        except NoPrometheusError as exc:
            self.states[self.name] = str(exc)
            if self._endpoint is not None:
                self._endpoint.why_no_metrics = str(exc)
        if self._endpoint is not None:
            pool = celery_internals.pool_name(self.context.worker)
            self._endpoint.threaded = pool in _POOLS_WITH_THREADS
            self._open(self._endpoint)
            self.context.scheduler.run_soon(Endpoint.name)

    def stop(self, *, cold: bool) -> None:  # noqa: ARG002
        """Close the port, and leave the registry as it was found."""
        signals.worker_process_init.disconnect(self._close_in_child)
        if self._endpoint is not None:
            self._endpoint.stop()
        registry, self._registry = self._registry, None
        if registry is not None:
            # The application may have emptied its registry meanwhile.
            with contextlib.suppress(KeyError):
                self._collector.unregister(registry)

    def _open(self, endpoint: Endpoint) -> None:
        # A forked child that kept the socket would keep the port from the worker's successor.
        signals.worker_process_init.connect(self._close_in_child, weak=False)
        try:
            endpoint.open()
        except OSError as exc:
            self.states[Endpoint.name] = f"{exc.strerror}; it is tried again"

    def _opened(self) -> None:
        self.states[Endpoint.name] = ON

    def _close_in_child(self, **_: Any) -> None:
        if os.getpid() != self._pid and self._endpoint is not None:
            self._endpoint.responder.close()
