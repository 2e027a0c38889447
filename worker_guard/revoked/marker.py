"""The job that records operators' revocations, and marks ids that no guard may clear."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, cast

from worker_guard.events import Trigger
from worker_guard.revoked.batches import LOOKUP_BATCH, batch_size, batches
from worker_guard.revoked.confirmation import Records
from worker_guard.revoked.ledger import Held, Ledger, Origin
from worker_guard.revoked.record import Made
from worker_guard.values.source import Target

#: Seconds between two renewals of the marks of unconfirmed ids that are held.
RENEW_S = 86_400.0

#: Seconds within which an id that the application removed is taken off the record.
_AT_ONCE_S = 5.0

#: So many unconfirmed ids may wait for a result backend that is down; then those that are not
#: held any more are forgotten.
_MOST_PENDING = 100_000


@dataclass(kw_only=True)
class Marker:
    """Writes to the result backend what guards of other workers must know.

    An id leaves :attr:`pending` when it is written. An operator's id is recorded even if Celery has
    dropped it from the set: a full set can drop an id as it is added. ``on_taken_back(target)`` is
    called for a revocation that someone took back before it was recorded.
    """

    name: ClassVar[str] = "operator_marks"

    interval_s: float
    longest_pause_s: float
    ledger: Ledger
    held: Container[str]
    store: Records
    on_taken_back: Callable[[Target], object]
    monotonic: Callable[[], float]

    #: What is to be written, and whether it is an operator's; else it is an unconfirmed id.
    pending: dict[Target, bool] = field(default_factory=dict)

    #: The ids that the application took out of the set, and when, to be taken off the record.
    removed: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._renewed_mono = self.monotonic()

    def keep(self, targets: Iterable[Target], *, operators: bool) -> None:
        """Write these at the next run."""
        for target in targets:
            self.pending[target] = operators or self.pending.get(target, False)
            if isinstance(target, str):
                self.removed.pop(target, None)
        if len(self.pending) > _MOST_PENDING + len(self.ledger.operators):
            for target in [t for t, is_op in self.pending.items() if not (is_op or t in self.held)]:
                del self.pending[target]

    def ended(self, task_ids: Iterable[str]) -> None:
        """These are an operator's no more, but to be marked as unconfirmed."""
        self.pending.update(dict.fromkeys(task_ids, False))

    def remove(self, task_id: str) -> None:
        """Take this id off the record at the next run."""
        self.pending.pop(task_id, None)
        self.removed[task_id] = self.monotonic()

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write what is pending."""
        removed = self._fresh_removed()
        if self.monotonic() - self._renewed_mono >= RENEW_S:
            for origin in (Origin.UNCONFIRMED, Origin.ENDED):
                self.keep(self.ledger.ids(origin), operators=False)
            self._renewed_mono = self.monotonic()
        size = batch_size(LOOKUP_BATCH, one_trip=self.store.one_trip)
        while batch := dict(islice(self.pending.items(), size)):
            try:
                self._write(batch)
            except Exception:
                # An id that can't be a key there must not block the others: this batch goes last.
                for target in batch:
                    if target in self.pending:
                        self.pending[target] = self.pending.pop(target)
                raise
            yield
        for task_ids in batches(removed, size):
            self.store.unmark(task_ids)
            yield

    def _fresh_removed(self) -> list[str]:
        """What was removed just now. If it is not taken off at once, it stays on record.

        Later, another worker may have revoked the id again.
        """
        removed, self.removed = self.removed, {}
        now = self.monotonic()
        return [task_id for task_id, at_mono in removed.items() if now - at_mono <= _AT_ONCE_S]

    def _write(self, batch: dict[Target, bool]) -> None:
        now = self.monotonic()
        asked = {t: self.ledger.revocation(t) for t, operators in batch.items() if operators}
        made = {
            target: Made(held.way, max(0.0, now - held.since_mono))
            for target, held in asked.items()
            if held is not None  # it was taken back, or has ended, while it waited
        }
        unconfirmed = [
            cast(str, target)
            for target, operators in batch.items()
            if not operators and target in self.held
        ]
        taken_back = self.store.mark(made, unconfirmed)
        for target, operators in batch.items():
            # What an operator revoked meanwhile, for the first time or again, still waits.
            if self.pending.get(target) == operators and not self._changed(target, asked):
                del self.pending[target]
        for target in taken_back:
            if not self._changed(target, asked):
                self.on_taken_back(target)

    def _changed(self, target: Target, asked: dict[Target, Held | None]) -> bool:
        return target in asked and self.ledger.revocation(target) != asked[target]
