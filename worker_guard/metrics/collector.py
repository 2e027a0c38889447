"""The guard's metrics on a registry of prometheus_client; the one module that uses the library.

The library is optional: it is imported when a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from worker_guard.errors import WorkerGuardError
from worker_guard.metrics.catalogue import FAMILIES, Family, Figures
from worker_guard.scheduler import SLICE_S


class NoPrometheusError(WorkerGuardError):
    """The library prometheus_client is not installed, so there are no metrics.

    ``pip install "worker-guard[prometheus]"``.
    """

    def __init__(self) -> None:
        super().__init__("prometheus_client is not installed: worker-guard[prometheus]")


class MetricsTakenError(WorkerGuardError):
    """The registry has metrics of these names already: another guard runs in this process."""


def application_registry() -> Any:
    """The library's default registry, which holds the application's metrics.

    Raises:
        NoPrometheusError: there is none.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError as exc:
        raise NoPrometheusError from exc
    return REGISTRY


class GuardCollector:
    """Reads the guard's figures when the registry is collected, on whichever thread that is.

    If it fails, that is reported, and only the guard's figures are missing from the scrape.
    """

    def __init__(self, figures: Callable[[], Figures], failed: Callable[[Exception], None]) -> None:
        self._figures = figures
        self._failed = failed
        # A forked child inherits the registry, with the figures of the moment of the fork.
        self._pid = os.getpid()

    def register(self, registry: Any) -> None:
        """Put the guard's metrics on this registry.

        Raises:
            MetricsTakenError: they are there already.
        """
        try:
            registry.register(self)
        except ValueError as exc:
            raise MetricsTakenError(f"the registry has the guard's metrics already: {exc}") from exc

    def unregister(self, registry: Any) -> None:
        """Take them off again."""
        registry.unregister(self)

    def describe(self) -> list[Any]:
        """The metrics without samples; the registry refuses names that it has already."""
        return [_metric(family) for family in FAMILIES]

    def collect(self) -> list[Any]:
        """The metrics with their samples."""
        if os.getpid() != self._pid:
            return []
        try:
            figures = self._figures()
            return [_metric(family, figures) for family in FAMILIES]
        except Exception as exc:  # noqa: BLE001 - reported; the application's metrics are served
            self._failed(exc)
            return []


def _metric(family: Family, figures: Figures | None = None) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.labels)
    for labels, value in () if figures is None else family.samples(figures):
        metric.add_metric([labels[label] for label in family.labels], value)
    return metric


@dataclass(frozen=True)
class Page:
    """The answer to a scrape."""

    content_type: str
    body: bytes


@dataclass(frozen=True)
class _Only:
    """One metric, in the form that the library encodes."""

    metric: Any

    def collect(self) -> Iterable[Any]:
        return (self.metric,)


def written(registry: Any, monotonic: Callable[[], float]) -> Generator[None, None, Page]:
    """Collect and encode a registry, metric by metric; yields when a slice's time is over.

    Raises whatever one of the application's collectors raises.
    """
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder("")
    pieces: list[bytes] = []
    slice_started = monotonic()
    for metric in registry.collect():
        pieces.append(encode(_Only(metric)))
        if monotonic() - slice_started >= SLICE_S:
            yield
            slice_started = monotonic()
    return Page(content_type, b"".join(pieces))
