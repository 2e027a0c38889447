"""The job that sweeps the revoked set."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar, Protocol

from worker_guard.backoff import Backoff
from worker_guard.events import CleanupCompleted, Event, RevokedKept, Trigger
from worker_guard.revoked.backfill import BackfillCounter
from worker_guard.revoked.batches import LOOKUP_BATCH, batch_size, batches
from worker_guard.revoked.confirmation import Records
from worker_guard.revoked.ledger import Confirmation, Ledger, Origin
from worker_guard.scheduler import SLICE_S

#: Ids to decide on between two looks at the clock.
_CHUNK = 100

#: Ids whose marks are read in one round trip, without their records.
MARKS_BATCH = 250


#: The origins that the field ``unproven`` counts.
UNCONFIRMED = (Origin.INHERITED, Origin.UNCONFIRMED, Origin.EXPIRING)


class RevokedActor(Protocol):
    """Takes ids out of the set, or in a dry run does not."""

    def clear(self, task_ids: Iterable[str]) -> None:
        """Take these ids out."""

    def finish(self) -> None:
        """This sweep takes no more ids out."""


class RevokedDryRun:
    """Takes nothing out."""

    def clear(self, task_ids: Iterable[str]) -> None:
        """Leave these ids where they are."""

    def finish(self) -> None:
        """Nothing was taken out, so there is nothing to finish."""


@dataclass(frozen=True, kw_only=True)
class Sweeper:
    """Takes the ids out of the revoked set that only expiry put there.

    ``grace_s`` is for ids that expired here, ``confirmed_grace_s`` for inherited ones: a peer that
    brings an id needs that time to mark it. ``compare`` brings the ledger in line with the set, or
    raises. If ``marks`` is None, no marks can be read, and ids that expired here are cleared
    without a look. If ``records`` is None, inherited ids can't be looked up, and stay.
    ``on_kept(task_id, operators)`` is called for each id that the result backend does not confirm,
    with whether it is an operator's.
    """

    name: ClassVar[str] = "revoked"

    interval_s: float
    grace_s: float
    confirmed_grace_s: float
    compare: Callable[[], None]
    ledger: Ledger
    revoked: Container[str]
    actor: RevokedActor
    marks: Records | None
    records: Records | None
    lookups: Backoff
    backfill: BackfillCounter
    on_kept: Callable[[str, bool], None]
    report: Callable[[Event], None]
    monotonic: Callable[[], float]

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:
        """Sweep the set once."""
        started = self.monotonic()
        cleared = 0
        self.compare()
        yield
        ended = False
        try:
            for count in self._sweep():
                cleared += count
                yield
            ended = True
        finally:
            self.actor.finish()
            # Also if the sweep is cut short or fails, since what it did until then is done.
            if ended or cleared:
                self._report(trigger, cleared, self.monotonic() - started)

    def preview(self, report: Callable[[Event], None]) -> Sweeper:
        """A sweeper that changes nothing, and reports what this one would do to ``report``."""
        self.compare()  # the copy's ``compare`` would not reach the copied ledger
        return replace(
            self,
            ledger=self.ledger.copy(),
            actor=RevokedDryRun(),
            backfill=BackfillCounter(),
            lookups=Backoff(self.name, first_pause_s=self.interval_s, report=report),
            on_kept=lambda _task_id, _operators: None,
            report=report,
        )

    def _sweep(self) -> Iterator[int]:
        """Clear what may leave; yields how many, after each slice."""
        expired: list[str] = []
        inherited: list[str] = []
        yield from self._select(expired, inherited)
        for batch in batches(expired, _slice(self.marks, MARKS_BATCH)):
            if not self._may_ask(self.marks):
                break
            yield self._clear_expired(batch)
        for batch in batches(inherited, _slice(self.records, LOOKUP_BATCH)):
            if self.records is None or not self._may_ask(self.records):
                break
            yield self._look_up(self.records, batch)

    def _select(self, expired: list[str], inherited: list[str]) -> Iterator[int]:
        """Collect the ids that are due; yields after each slice."""
        slice_started = self.monotonic()
        for chunk in batches(self.ledger.ids(), _CHUNK):
            now = self.monotonic()
            if now - slice_started >= SLICE_S:
                yield 0
                slice_started = now = self.monotonic()
            selection = self.ledger.select(
                chunk,
                now,
                held=self.revoked,
                grace_s=self.grace_s,
                confirmed_grace_s=self.confirmed_grace_s,
            )
            expired.extend(selection.clear)
            inherited.extend(selection.look_up)
        yield 0

    def _may_ask(self, records: Records | None) -> bool:
        """Whether the result backend may be asked now; True if there is no need to."""
        return records is None or self.lookups.ready(self.monotonic())

    def _clear_expired(self, task_ids: Sequence[str]) -> int:
        """Clear those of these ids that expired here and bear no operator's mark."""
        marked: set[str] = set()
        if self.marks is not None:
            try:
                marked = self.marks.marked(task_ids)
            except Exception as exc:  # noqa: BLE001 - reported, and tried again later
                self.lookups.failed(exc, self.monotonic())
                return 0
            self.lookups.succeeded()
        record = self.ledger.record_mark
        # The ledger decides again: an operator can have revoked one during the look-up.
        return self._clear([i for i in task_ids if record(i, operators=i in marked)])

    def _look_up(self, records: Records, task_ids: Sequence[str]) -> int:
        """Clear the ids that the result backend confirms as expired."""
        try:
            confirmations = records.confirmations(task_ids)
        except Exception as exc:  # noqa: BLE001 - reported, and tried again later
            self.lookups.failed(exc, self.monotonic())
            return 0
        self.lookups.succeeded()
        now = self.monotonic()
        confirmed = [
            task_id
            for task_id in task_ids
            if self.ledger.record_confirmation(
                task_id,
                confirmations.get(task_id, Confirmation.UNCONFIRMED),
                now,
                self.confirmed_grace_s,
            )
        ]
        for task_id in task_ids:
            origin = self.ledger.origin(task_id)
            if origin in (Origin.OPERATOR, Origin.UNCONFIRMED):
                self.on_kept(task_id, origin is Origin.OPERATOR)
        return self._clear(confirmed)

    def _clear(self, task_ids: Sequence[str]) -> int:
        if task_ids:
            with self.ledger.changing():
                self.actor.clear(task_ids)
                self.ledger.cleared(task_ids, self.revoked)
        return len(task_ids)

    def _report(self, trigger: Trigger, cleared: int, duration_s: float) -> None:
        count = self.ledger.count
        self.report(
            CleanupCompleted(
                revoked_tasks_cleared=cleared,
                revoked_tasks_kept=RevokedKept(
                    operator=count(Origin.OPERATOR) + count(Origin.ENDED),
                    unproven=sum(map(count, UNCONFIRMED)),
                    grace=count(Origin.EXPIRED) + count(Origin.CONFIRMED),
                ),
                trigger=trigger,
                duration_s=round(duration_s, 6),
            )
        )
        backfill = self.backfill.drain(self.monotonic())
        if backfill is not None:
            self.report(backfill)


def clear_in_s(ready_in_s: float, *, due_in_s: float, interval_s: float) -> float:
    """Seconds until a sweep clears an id whose grace is over in ``ready_in_s``."""
    sweeps_before = max(0, ceil((ready_in_s - due_in_s) / interval_s))
    return max(0.0, due_in_s) + sweeps_before * interval_s


def _slice(records: Records | None, size: int) -> int:
    return batch_size(size, one_trip=records is None or records.one_trip)
