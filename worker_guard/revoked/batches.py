"""How many ids make one slice of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

#: Ids looked up or marked in one round trip, which is one slice.
LOOKUP_BATCH = 50


def batch_size(size: int, *, one_trip: bool) -> int:
    """How many ids make one slice: ``size``, or 1 if each id costs a round trip."""
    return size if one_trip else 1


def batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    """The ids, so many at a time."""
    rest = iter(ids)
    while batch := list(islice(rest, size)):
        yield batch
