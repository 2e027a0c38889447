"""The memory tests' app with one of the examples that the documentation includes."""

from __future__ import annotations

import importlib.util
import os
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from celery.signals import worker_process_shutdown

from tests.harness.memory_app import app, hold, ledger

__all__ = ["app"]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

#: The example's name without ``.py``.
EXAMPLE = "WORKER_GUARD_TEST_EXAMPLE"
#: Leave out what the example does when a child leaves.
WITHOUT_LEAVING = "WORKER_GUARD_TEST_WITHOUT_LEAVING"

#: The name of each span, as it stands in what is sent.
SPAN = "harness-span"

#: Seconds that each child took for what the example does when it leaves.
LEAVING_S = "ledger:leaving_s"

began_mono = 0.0


def begin_to_leave(**_: Any) -> None:
    global began_mono  # noqa: PLW0603 - one for each child
    began_mono = time.monotonic()


def left(**_: Any) -> None:
    ledger().rpush(LEAVING_S, time.monotonic() - began_mono)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def span() -> Any:
    if name == "opentelemetry_flush":
        from opentelemetry import trace

        return trace.get_tracer("harness").start_as_current_span(SPAN)
    if name == "ddtrace_flush":
        from ddtrace.trace import tracer

        return tracer.trace(SPAN, resource="its resource is its name by default")
    return nullcontext()


@app.task(name="harness.observed")
def observed(megabytes: int, seconds: float) -> int:
    """Leak so much in a span, and count that."""
    with span():
        hold(megabytes)
        time.sleep(seconds)
    if name == "prometheus_multiprocess":
        example.MAILS.inc()
    return os.getpid()


def load_example() -> ModuleType:
    """Between two receivers: signals call theirs in the order in which these were connected."""
    worker_process_shutdown.connect(begin_to_leave, weak=False)
    before = list(worker_process_shutdown.receivers)
    module = load(name)
    if WITHOUT_LEAVING in os.environ:
        worker_process_shutdown.receivers = before
    worker_process_shutdown.connect(left, weak=False)
    return module


name = os.environ.get(EXAMPLE, "")
example: Any = load_example() if name else None
