"""The tests' app with metrics of its own on the registry of prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery.worker.control import control_command
from prometheus_client import REGISTRY, Counter

from tests.harness.app import app

__all__ = ["app"]

tasks = Counter("harness_commands", "Remote commands of this app.")


class Breaking:
    """A collector that raises when it is told to."""

    broken = False

    def describe(self) -> Iterable[Any]:
        return ()

    def collect(self) -> Iterable[Any]:
        if self.broken:
            raise RuntimeError("the application's collector is broken")
        return ()


collector = Breaking()
REGISTRY.register(collector)


@control_command(args=[("broken", bool)])
def break_collector(state: Any, broken: bool) -> dict[str, str]:
    """Have the application's collector raise, or not any more."""
    tasks.inc()
    collector.broken = broken
    return {"ok": "done"}
