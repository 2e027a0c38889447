"""The examples that the documentation includes, on real workers whose children are replaced."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.collector import collector
from tests.harness.example_app import EXAMPLE, EXAMPLES, LEAVING_S, SPAN, WITHOUT_LEAVING
from tests.harness.memory import Site, assert_unharmed, happened
from tests.harness.workers import ROOT, Worker, wait_for

TASKS = 80

#: Where ``make`` puts ddtrace, which would be a plugin of each run of pytest.
DDTRACE = Path(sys.prefix) / "ddtrace"

#: So long a client waits for a collector that hangs, if the example lets it.
HANGS_S = 60


def there(module: str, *paths: str) -> bool:
    """Whether a worker can import this module."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None or any(
            (Path(path) / module).is_dir() for path in paths
        )
    return False


opentelemetry = pytest.param(
    "opentelemetry_flush",
    marks=pytest.mark.skipif(
        not there("opentelemetry.exporter.otlp.proto.http"),
        reason="opentelemetry-exporter-otlp-proto-http is not installed",
    ),
)
ddtrace = pytest.param(
    "ddtrace_flush",
    marks=pytest.mark.skipif(
        not there("ddtrace", str(DDTRACE)), reason="ddtrace is not installed; `make test` does that"
    ),
)


def slowly(example: Any) -> Any:
    """The same, in the slow tests only."""
    return pytest.param(*example.values, marks=[*example.marks, pytest.mark.slow])


def start(
    site: Site, example: str, *, leaving: bool = True, environ: Mapping[str, str] | None = None
) -> Worker:
    """A worker with two children, whose app has loaded the example."""
    environment = {
        EXAMPLE: example,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{DDTRACE}",
        **(environ or {}),
    }
    environment |= {} if leaving else {WITHOUT_LEAVING: "1"}
    return site.start(
        "--concurrency=2", app_module="tests.harness.example_app", environ=environment
    )


def sends_to(url: str) -> dict[str, str]:
    """Where both clients send spans, and that they do so by themselves only after a minute."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(HANGS_S),
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "DD_TRACE_AGENT_URL": url,
        "DD_TRACE_API_VERSION": "v0.4",
        "DD_TRACE_AGENT_TIMEOUT_SECONDS": str(HANGS_S),
        "DD_TRACE_WRITER_INTERVAL_SECONDS": "60",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_TRACE_STARTUP_LOGS": "false",
    }


def run_tasks(site: Site, worker: Worker, recycles: int = 3) -> None:
    """Tasks that leak, until all have run and some children were replaced."""
    for sent in [site.send("observed", 5, 0.05) for _ in range(TASKS)]:
        sent.get()
    happened(worker, "child_recycled", recycles)


@contextlib.contextmanager
def helper(site: Site) -> Iterator[tuple[int, int]]:
    """A child and the process that its task started."""
    child_pid, helper_pid = site.run("helper", 60)
    try:
        yield child_pid, helper_pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper_pid, signal.SIGKILL)


@pytest.mark.parametrize("leaving", [True, False])
def test_own_processes_end_with_their_child(site: Site, leaving: bool) -> None:
    """Without the example they live on."""
    worker = start(site, "own_processes", leaving=leaving)
    with helper(site) as (child_pid, helper_pid):
        recycled = happened(worker, "child_recycled")[0]
        assert recycled["child_pid"] == child_pid
        assert recycled["left_pids"] == ([] if leaving else [helper_pid])
        assert psutil.pid_exists(helper_pid) != leaving
        assert worker.stop() == 0
        assert_unharmed(worker)


@pytest.mark.parametrize("example", [opentelemetry, ddtrace])
def test_all_spans_arrive_although_children_leave(site: Site, example: str) -> None:
    """80 of 80."""
    with collector(SPAN) as spans:
        worker = start(site, example, environ=sends_to(spans.url))
        run_tasks(site, worker)
        assert worker.stop() == 0
        assert spans.spans == TASKS
        assert_unharmed(worker)


@pytest.mark.slow
@pytest.mark.parametrize("example", [opentelemetry, ddtrace])
def test_without_the_example_spans_are_lost(site: Site, example: str) -> None:
    """So what arrives with it arrives because of it."""
    with collector(SPAN) as spans:
        worker = start(site, example, leaving=False, environ=sends_to(spans.url))
        run_tasks(site, worker)
        assert worker.stop() == 0
        assert spans.spans < TASKS


@pytest.mark.parametrize("example", [opentelemetry, slowly(ddtrace)])
def test_a_collector_that_hangs_holds_no_child(site: Site, example: str) -> None:
    """A child waits for the example's bound, and not for the client's timeout."""
    with collector(SPAN, hangs=True) as spans:
        worker = start(site, example, environ=sends_to(spans.url))
        run_tasks(site, worker, recycles=1)
        assert worker.stop() == 0
        assert spans.posts
        took = [float(seconds) for seconds in site.redis.lrange(LEAVING_S, 0, -1)]
        assert max(took) > 1
        assert max(took) < HANGS_S / 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def exporter(directory: Path) -> Iterator[str]:
    """The example run as a program; its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "prometheus_multiprocess.py"), str(port)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
    )
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        process.terminate()
        process.wait(30)


def scraped(url: str) -> dict[str, float]:
    """The samples of a page; empty while nothing answers."""
    with contextlib.suppress(OSError):
        page = urllib.request.urlopen(url, timeout=10).read().decode()
        return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", page, re.M)}
    return {}


@pytest.mark.parametrize("leaving", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_prometheus_counts_what_all_children_did(site: Site, tmp_path: Path, leaving: bool) -> None:
    """80 of 80; and of those that ended none counts as one that is up, but without the example."""
    pytest.importorskip("prometheus_client")
    directory = tmp_path / "metrics"
    directory.mkdir()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    worker = start(site, "prometheus_multiprocess", leaving=leaving, environ=environ)
    run_tasks(site, worker)
    with exporter(directory) as url:
        wait_for(lambda: scraped(url).get("app_mails_total") == TASKS, "all tasks to be counted")
        if leaving:
            wait_for(lambda: scraped(url)["app_children"] == 2, "the two children")
        else:
            assert scraped(url)["app_children"] > 2
    assert worker.stop() == 0
