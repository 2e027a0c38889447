"""The metrics of one worker put together, on the library's own registry."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from celery import signals
from celery.concurrency import ALIASES
from prometheus_client import REGISTRY

from tests.harness.context import make_context
from tests.harness.redis_server import free_port
from tests.unit.test_metrics_catalogue import figures
from worker_guard.metrics.collector import MetricsTakenError
from worker_guard.metrics.part import MetricsPart
from worker_guard.settings import Settings


@contextmanager
def composed(
    pool: str = "solo", **settings: object
) -> Iterator[tuple[MetricsPart, dict[str, str]]]:
    # A pool is known by its class's path.
    module, _, qualname = ALIASES.get(pool, pool).partition(":")
    made = type(qualname, (), {"__module__": module})
    worker = SimpleNamespace(pool_cls=made)
    part = MetricsPart(
        make_context(
            worker,
            Settings(**settings),  # type: ignore[arg-type]
            status=lambda: figures().status,
            monotonic=lambda: 0.0,
        )
    )
    part.start()
    try:
        yield part, part.states
    finally:
        part.stop(cold=False)


def served() -> bool:
    return REGISTRY.get_sample_value("worker_guard_revoked_set_ids") is not None


def test_a_worker_can_be_started_again_in_its_process() -> None:
    """What a guard registered it takes away, and the next one has it."""
    for _ in range(2):
        with composed() as (_metrics, states):
            assert states == {"metrics": "on", "metrics_port": "worker_guard_metrics_port is None"}
            assert served()
        assert not served()


def test_of_two_guards_in_a_process_one_has_the_metrics() -> None:
    """The other can't start, and opens no port, on which it would serve the first one's figures."""
    port = free_port()
    with composed():
        with pytest.raises(MetricsTakenError, match="already"), composed(metrics_port=port):
            pass
        assert served()
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


def test_an_application_may_empty_its_registry() -> None:
    """The stop goes on."""
    with composed() as (metrics, _states):
        REGISTRY.unregister(metrics._collector)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part says so; the port is open for probes."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with composed(metrics_port=free_port()) as (_metrics, states):
        assert "worker-guard[prometheus]" in states["metrics"]
        assert states["metrics_port"] == "on"
    assert not served()


@pytest.mark.parametrize(
    ("pool", "threaded"),
    [
        ("prefork", False),
        ("proj.pools:Own", False),
        ("solo", True),
        ("threads", True),
        ("gevent", True),
    ],
)
def test_where_a_thread_is_allowed(pool: str, threaded: bool) -> None:
    """Not in prefork, whose main process forks, and not in a pool of the user's own."""
    with composed(pool, metrics_port=free_port()) as (metrics, states):
        assert states["metrics_port"] == "on"
        assert metrics._endpoint is not None
        assert (metrics._endpoint._thread is not None) == threaded


def test_no_signal_is_left_connected() -> None:
    """The hook by which children close the port goes with the guard."""
    before = len(signals.worker_process_init.receivers or ())
    with composed(metrics_port=free_port()):
        assert len(signals.worker_process_init.receivers or ()) == before + 1
    assert len(signals.worker_process_init.receivers or ()) == before
