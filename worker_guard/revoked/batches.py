"""How many ids make one slice of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

#: Ids looked up or marked in one round trip, which is one slice.
LOOKUP_BATCH = 50


def batch_size(size: int, *, one_trip: bool) -> int:
    """How many ids make one slice: ``size``, or 1 if each id costs a round trip."""
    return size if one_trip else 1


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
