"""The time that worker_guard adds to every ``celery`` command."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from tests.bench.figure import Figure

ROUNDS = 15

#: Celery's own command, with its entry points or without the guard's.
_COMMAND = """
import importlib.metadata, sys
found = importlib.metadata.entry_points
def without(**which):
    return [e for e in found(**which) if not e.value.startswith({skip!r})]
importlib.metadata.entry_points = without
from celery.bin.celery import main
sys.argv = ["celery", "--version"]
main()
"""


def run() -> list[Figure]:
    """Run ``celery --version`` with the entry point and without, in pairs."""
    _seconds("nothing"), _seconds("worker_guard")
    with_guard, without = [], []
    for number in range(ROUNDS):
        if number % 2:
            with_guard.append(_seconds("nothing"))
        without.append(_seconds("worker_guard"))
        if not number % 2:
            with_guard.append(_seconds("nothing"))
    added = [a - b for a, b in zip(with_guard, without, strict=True)]
    return [
        Figure(
            "processor time added to celery --version",
            statistics.median(added) * 1000,
            "ms",
            aim=60.0,
            note=f"median of {ROUNDS} pairs; "
            f"{statistics.median(without) * 1000:.0f} ms without it here",
        )
    ]


def _seconds(skip: str) -> float:
    """The processor's time, which other work on this machine disturbs less than the clock's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", _COMMAND.format(skip=skip)], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
