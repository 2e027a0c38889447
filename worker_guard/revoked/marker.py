"""The job that marks ids in the result backend that no guard may clear."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Protocol

from worker_guard.events import Trigger
from worker_guard.revoked.batches import LOOKUP_BATCH, batch_size

#: Marks are renewed this often, for as long as their ids are held.
RENEW_S = 86_400.0


class MarkStore(Protocol):
    """Where ids are marked that are not to be cleared; see :class:`RecordLookup`."""

    one_trip: bool

    def mark(self, operators: Sequence[str], unproven: Sequence[str]) -> None:
        """One round trip for all."""


@dataclass(kw_only=True)
class Marker:
    """Marks ids beside the results that the guards of other workers are not to clear.

    ``pending`` is filled from outside: an id, and whether it is an operator's. An id leaves it when
    its mark is written. An operator's is marked though Celery has dropped it from the set, where it
    can be the oldest as it is added. ``kept`` returns all that is to be marked, for renewal.
    """

    name: ClassVar[str] = "operator_marks"

    interval_s: float
    longest_pause_s: float
    pending: dict[str, bool]
    held: Container[str]
    kept: Callable[[], Mapping[str, bool]]
    store: MarkStore
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self._renewed_mono = self.monotonic()

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write the marks that are still to be written."""
        if self.monotonic() - self._renewed_mono >= RENEW_S:
            self.pending.update(self.kept())
            self._renewed_mono = self.monotonic()
        size = batch_size(self.store, LOOKUP_BATCH)
        while batch := list(islice(self.pending.items(), size)):
            try:
                self.store.mark(
                    [task_id for task_id, is_op in batch if is_op],
                    [task_id for task_id, is_op in batch if not is_op and task_id in self.held],
                )
            except Exception:
                # One that can be no key there is not to keep the others back.
                for task_id, _ in batch:
                    self.pending[task_id] = self.pending.pop(task_id)
                raise
            for task_id, is_op in batch:
                # One that became an operator's meanwhile waits for its other mark.
                if self.pending.get(task_id) == is_op:
                    del self.pending[task_id]
            yield
