"""Time spans, sizes and counts in the words that people use. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

_TIME = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))

_DECIMAL = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1))
_BINARY = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def duration(seconds: float) -> str:
    """A time span for people, in its two largest units."""
    whole = max(0, int(seconds))
    for (name, size), (next_name, next_size) in pairwise(_TIME):
        if whole >= size:
            rest = whole % size // next_size
            more = f" {rest} {next_name}" if rest and name != "min" else ""
            return f"{whole // size} {name}{more}"
    return f"{whole} s"


def size(number_of_bytes: int, like: int | None = None) -> str:
    """A size in the unit that the limit ``like`` was given in: 400MiB is told from 400MB by value.

    What is less than one of that unit is told in the next smaller one.
    """
    units = _DECIMAL
    first = 0
    if like:
        units = _BINARY if like % 2**20 == 0 and like % 10**6 else _DECIMAL
        whole = (place for place, (_, one) in enumerate(units) if like % one == 0)
        first = next(whole)
        if units[first][1] < 10**6:
            # A share of the machine's memory is no whole number of anything.
            first = 0
    name, one = next((u for u in units[first:] if number_of_bytes >= u[1]), units[-1])
    if one == 1:
        return f"{number_of_bytes} {name}"
    amount = number_of_bytes / one
    if amount == int(amount):
        return f"{int(amount)} {name}"
    return f"{amount:.1f} {name}"


def count(number: int | None, noun: str) -> str:
    """``1 id``, ``2 ids``; ``? ids`` where the number is not known."""
    return f"{'?' if number is None else number} {noun}{'' if number == 1 else 's'}"


def some(texts: Iterable[str], most: int) -> str:
    """The first of them, and how many more there are."""
    found = list(texts)
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more} more" if more > 0 else "")
