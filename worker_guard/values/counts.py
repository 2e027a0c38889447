"""Counts and lists for people."""

from __future__ import annotations

from collections.abc import Iterable


def count(number: int | None, noun: str, plural: str = "") -> str:
    """``1 id``, ``2 ids``; ``? ids`` if the number is not known."""
    return f"{'?' if number is None else number} {noun if number == 1 else plural or f'{noun}s'}"


def some(texts: Iterable[str], most: int = 10) -> str:
    """The first ``most`` of them, and how many more there are."""
    found = list(texts)
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more} more" if more > 0 else "")
