"""The job that marks, in the result backend, the ids that no guard may clear."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from worker_guard.events import Trigger
from worker_guard.revoked.batches import LOOKUP_BATCH, batch_size
from worker_guard.revoked.confirmation import Records

#: Seconds between two renewals of the marks of ids that are held.
RENEW_S = 86_400.0


@dataclass(kw_only=True)
class Marker:
    """Marks ids beside the results, so that the guards of other workers don't clear them.

    Others fill ``pending``: an id, and whether it is an operator's. An id leaves it when its mark
    is written. An operator's id is marked even if Celery has dropped it from the set: a full set
    can drop an id as it is added. ``kept`` returns all ids that need a mark, for renewal.
    """

    name: ClassVar[str] = "operator_marks"

    interval_s: float
    longest_pause_s: float
    pending: dict[str, bool]
    held: Container[str]
    kept: Callable[[], Mapping[str, bool]]
    store: Records
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self._renewed_mono = self.monotonic()

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write the pending marks."""
        if self.monotonic() - self._renewed_mono >= RENEW_S:
            self.pending.update(self.kept())
            self._renewed_mono = self.monotonic()
        size = batch_size(LOOKUP_BATCH, one_trip=self.store.one_trip)
        while batch := list(islice(self.pending.items(), size)):
            try:
                self.store.mark(
                    [task_id for task_id, is_op in batch if is_op],
                    [task_id for task_id, is_op in batch if not is_op and task_id in self.held],
                )
            except Exception:
                # An id that can't be a key there must not block the others: this batch goes last.
                for task_id, _ in batch:
                    self.pending[task_id] = self.pending.pop(task_id)
                raise
            for task_id, is_op in batch:
                # An id that became an operator's meanwhile still waits for that mark.
                if self.pending.get(task_id) == is_op:
                    del self.pending[task_id]
            yield
