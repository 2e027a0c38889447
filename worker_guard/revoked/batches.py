"""How many ids make one slice of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

#: Ids looked up or marked in one round trip, which is one slice.
LOOKUP_BATCH = 50


class Store(Protocol):
    """A store of ids. ``one_trip``: many ids cost one round trip; else each id costs one."""

    one_trip: bool


def batch_size(store: Store | None, size: int) -> int:
    """How many ids make one slice: ``size``, or 1 if each id costs a round trip."""
    return size if store is None or store.one_trip else 1


def batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(ids)
    while batch := list(islice(rest, size)):
        yield batch
