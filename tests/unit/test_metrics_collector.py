"""The guard's metrics on a registry of prometheus_client."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.test_metrics_catalogue import figures
from worker_guard.metrics.catalogue import FAMILIES, Figures
from worker_guard.metrics.collector import GuardCollector, MetricsTakenError, Page, written


def names(text: bytes) -> set[str]:
    """The metrics of a page."""
    return {family.name for family in text_string_to_metric_families(text.decode())}


def ended(slices: Generator[None, None, Page]) -> tuple[Page, int]:
    """The page, and in how many slices it was written."""
    count = 1
    while True:
        try:
            next(slices)
        except StopIteration as stop:
            return stop.value, count
        count += 1


def collector(errors: list[Exception] | None = None) -> GuardCollector:
    return GuardCollector(figures, ([] if errors is None else errors).append)


def test_all_metrics_are_there_with_their_types() -> None:
    """As the catalogue has them, each sample with its labels."""
    registry = CollectorRegistry(auto_describe=True)
    collector().register(registry)
    page = generate_latest(registry).decode()
    found = {family.name: family for family in text_string_to_metric_families(page)}
    assert {name: family.type for name, family in found.items()} == {
        family.name.removesuffix("_total"): family.kind for family in FAMILIES
    }
    assert 'worker_guard_revoked_ids{origin="operator"} 1.0' in page
    assert "worker_guard_revoked_tasks_cleared_total 1.0" in page


def test_a_second_guard_is_refused_and_a_later_one_is_not() -> None:
    """Not twice at a time; after the first was stopped, again."""
    registry = CollectorRegistry(auto_describe=True)
    first = collector()
    first.register(registry)
    with pytest.raises(MetricsTakenError, match="already"):
        collector().register(registry)
    first.unregister(registry)
    collector().register(registry)


def test_an_applications_metric_of_the_same_name_is_left_alone() -> None:
    """It was there first."""
    registry = CollectorRegistry(auto_describe=True)
    Gauge("worker_guard_children", "Another's.", registry=registry).set(42)
    with pytest.raises(MetricsTakenError, match="worker_guard_children"):
        collector().register(registry)
    assert names(generate_latest(registry)) == {"worker_guard_children"}


def test_a_failure_does_not_spoil_the_applications_metrics() -> None:
    """It is reported; the guard's metrics are missing."""

    def broken() -> Figures:
        raise RuntimeError("broken")

    errors: list[Exception] = []
    registry = CollectorRegistry(auto_describe=True)
    Gauge("own", "The application's.", registry=registry)
    GuardCollector(broken, errors.append).register(registry)
    assert names(generate_latest(registry)) == {"own"}
    assert [str(error) for error in errors] == ["broken"]


def test_a_forked_child_has_no_figures() -> None:
    """They would be those of the moment of its fork."""
    registry = CollectorRegistry(auto_describe=True)
    collector().register(registry)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, str(len(generate_latest(registry))).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"0"
    os.close(reading)
    os.close(writing)
    assert generate_latest(registry)


def test_a_page_is_what_the_library_writes() -> None:
    """Written in slices it is the same."""
    registry = CollectorRegistry(auto_describe=True)
    Counter("own", "The application's.", ["name"], registry=registry).labels("x").inc()
    collector().register(registry)
    page, _ = ended(written(registry, lambda: 0.0))
    assert page.body == generate_latest(registry)
    assert page.content_type.startswith("text/plain; version=0.0.4")


def test_a_large_registry_is_written_in_slices() -> None:
    """The event loop has its turn after each metric that took a slice's time."""
    now = [0.0]

    class Slow:
        def collect(self) -> Iterable[Any]:
            for number in range(10):
                now[0] += 0.0011
                gauge = Gauge(f"slow_{number}", "Slow.", registry=None)
                yield from gauge.collect()

    registry = CollectorRegistry()
    registry.register(Slow())
    page, slices = ended(written(registry, lambda: now[0]))
    assert len(names(page.body)) == 10
    assert slices == 6


def test_an_applications_collector_that_raises_is_its_own_error() -> None:
    """The scrape fails, as it does with the library's own server."""

    class Broken:
        def collect(self) -> Iterable[Any]:
            raise RuntimeError("broken")

    registry = CollectorRegistry()
    registry.register(Broken())
    with pytest.raises(RuntimeError, match="broken"):
        ended(written(registry, lambda: 0.0))
