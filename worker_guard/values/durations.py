"""Durations for people."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """A duration in its two largest units, rounded down: ``2 h 30 min``; below 10 s: ``7.5 s``."""
    if seconds < 10 or not isfinite(seconds):
        return f"{max(seconds, 0.0):.2g} s"
    whole = int(seconds)
    for (name, size), (next_name, next_size) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{whole} s"
