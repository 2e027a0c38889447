"""Scrapes, as Prometheus makes them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.workers import ROOT, wait_for

DASHBOARD = ROOT / "docs/grafana/worker_guard.json"


class Answer(NamedTuple):
    """What a request got."""

    status: int
    body: str
    headers: dict[str, str]


def request(port: int, path: str = "/metrics", method: str = "GET") -> Answer:
    """One request; the timeout is Prometheus's own by default."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(asked, timeout=10) as got:
            return Answer(got.status, got.read().decode(), dict(got.headers))
    except urllib.error.HTTPError as refused:
        with refused:
            return Answer(refused.code, refused.read().decode(), dict(refused.headers))


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value of the one sample with this name (without the prefix) and these labels."""
        for sample in self.samples:
            if sample.name == f"worker_guard_{name}" and sample.labels.items() >= labels.items():
                return float(sample.value)
        return None

    def labels(self) -> dict[str, set[str]]:
        """The labels of each of the guard's metrics that has a sample."""
        return {
            sample.name: set(sample.labels)
            for sample in self.samples
            if sample.name.startswith("worker_guard_")
        }


def scrape(port: int) -> Scrape:
    """A scrape that must succeed."""
    answer = request(port)
    assert answer.status == 200, answer
    return Scrape(answer.body)


def until(port: int, name: str, value: float, **labels: str) -> Scrape:
    """The first scrape in which this sample has this value."""

    def there() -> list[Scrape]:
        found = scrape(port)
        return [found] if found(name, **labels) == value else []

    return wait_for(there, f"{name}{labels} to be {value}")[0]


def expressions(node: Any) -> Iterable[str]:
    """Each query of a dashboard: what its panels and its variables ask for."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for item in node:
            yield from expressions(item)


def rules(page: Path) -> Iterable[str]:
    """Each expression of the alert rules that a page shows."""
    return re.findall(r"^\s+expr: (.+)$", page.read_text(), re.MULTILINE)


def used(expression: str) -> dict[str, set[str]]:
    """The guard's metrics in an expression, each with the labels that it is selected by."""
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(worker_guard_\w+)(?:\{([^}]*)\})?", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selector))
        found.setdefault(name, set()).update(labels)
    return found


def dashboard() -> Any:
    """The dashboard as it is imported into Grafana."""
    return json.loads(DASHBOARD.read_text())
