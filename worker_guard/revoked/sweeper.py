"""The part that sweeps the revoked set, and the part that marks operators' revocations."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import ClassVar, Protocol

from worker_guard.containment import Containment
from worker_guard.events import CleanupCompleted, Event, RevokedKept, Trigger
from worker_guard.revoked.backfill import Backfill
from worker_guard.revoked.ledger import Ledger, Origin, Verdict
from worker_guard.scheduler import SLICE_S

#: Ids decided on between two looks at the clock.
_CHUNK = 100

#: Ids looked up or marked in one round trip, which is one slice.
LOOKUP_BATCH = 50


#: The origins that the figure "unproven" counts.
UNPROVEN = (Origin.FOREIGN, Origin.UNPROVEN, Origin.EXPIRING)


class HeldIds(Protocol):
    """The revoked set, to look at."""

    expires: float

    def __contains__(self, task_id: object) -> bool: ...


class Actor(Protocol):
    """What takes ids out of the set, or only says so."""

    def clear(self, task_ids: Iterable[str]) -> None:
        """Take these ids out."""

    def finish(self) -> None:
        """The last clear of this round is over."""


class DryRun:
    """Takes nothing out."""

    def clear(self, task_ids: Iterable[str]) -> None:
        """Leave these ids where they are."""

    def finish(self) -> None:
        """Nothing was taken out, so nothing is to be finished."""


class RecordLookup(Protocol):
    """Where ids from elsewhere are looked up."""

    def verdicts(self, task_ids: Sequence[str]) -> dict[str, Verdict]:
        """One round trip for all."""


class MarkStore(Protocol):
    """Where ids are marked that are not to be cleared."""

    def mark(self, operators: Sequence[str], unproven: Sequence[str]) -> None:
        """One round trip for all."""


@dataclass
class Totals:
    """What was done since the start of the guard."""

    revoked_tasks_cleared: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    children_recycled: int = 0
    revoked_aged_out: int = 0
    sweeps: int = 0


@dataclass(frozen=True, kw_only=True)
class Sweeper:
    """Takes out of the revoked set what only expiry put there.

    ``records`` is None where ids from elsewhere can't be looked up: they are left to their age.
    ``on_kept(task_id, operators)`` is called for each id that the result backend does not prove,
    with whether it is an operator's.
    """

    name: ClassVar[str] = "revoked"

    interval_s: float
    grace_s: float
    ledger: Ledger
    revoked: HeldIds
    actor: Actor
    records: RecordLookup | None
    lookups: Containment
    backfill: Backfill
    totals: Totals
    on_kept: Callable[[str, bool], None]
    report: Callable[[Event], None]
    monotonic: Callable[[], float]

    def round(self, trigger: Trigger = "timer") -> Iterator[None]:
        """Sweep the set once."""
        started = self.monotonic()
        cleared = 0
        unsure: list[str] = []
        slices = self._decide(unsure)
        try:
            for count in slices:
                cleared += count
                yield
            for batch in _batches(unsure, LOOKUP_BATCH):
                if self.records is None or not self.lookups.ready(self.monotonic()):
                    break
                cleared += self._look_up(self.records, batch)
                yield
        except GeneratorExit:
            # The worker stops: what was done until then was done.
            self._report(trigger, cleared, self.monotonic() - started)
            raise
        finally:
            self.actor.finish()
            self.totals.sweeps += 1
            self.totals.revoked_tasks_cleared += cleared
        self._report(trigger, cleared, self.monotonic() - started)

    def preview(self, report: Callable[[Event], None]) -> Sweeper:
        """A sweeper that does the same without leaving a trace, and says so by ``report``."""
        return replace(
            self,
            ledger=self.ledger.copy(),
            actor=DryRun(),
            backfill=Backfill(),
            totals=Totals(),
            on_kept=lambda _task_id, _operators: None,
            report=report,
        )

    def _decide(self, unsure: list[str]) -> Iterator[int]:
        """Clear what the ledger proves; yields how many, after at most a slice's time each."""
        slice_started = self.monotonic()
        cleared = 0
        for chunk in _batches(self.ledger.ids(), _CHUNK):
            now = self.monotonic()
            if now - slice_started >= SLICE_S:
                yield cleared
                cleared = 0
                slice_started = now = self.monotonic()
            selection = self.ledger.select(
                chunk,
                now,
                held=self.revoked,
                grace_s=self.grace_s,
                max_age_s=self.revoked.expires,
            )
            for leaving in (selection.clear, selection.age_out):
                if leaving:
                    self.actor.clear(leaving)
                    self.ledger.forget(leaving)
            self.ledger.forget(selection.gone)
            unsure.extend(selection.look_up)
            cleared += len(selection.clear)
            self.totals.revoked_aged_out += len(selection.age_out)
        yield cleared

    def _look_up(self, records: RecordLookup, task_ids: Sequence[str]) -> int:
        """Clear those that the result backend proves; a backend that fails is left alone."""
        try:
            verdicts = records.verdicts(task_ids)
        except Exception as exc:  # noqa: BLE001 - contained: reported, and tried again later
            self.lookups.failed(exc, self.monotonic())
            return 0
        self.lookups.succeeded()
        now = self.monotonic()
        proven = [
            task_id
            for task_id in task_ids
            if self.ledger.record_verdict(
                task_id, verdicts.get(task_id, Verdict.UNPROVEN), now, self.grace_s
            )
        ]
        for task_id in task_ids:
            origin = self.ledger.origin(task_id)
            if origin in (Origin.OPERATOR, Origin.UNPROVEN):
                self.on_kept(task_id, origin is Origin.OPERATOR)
        if proven:
            self.actor.clear(proven)
            self.ledger.forget(proven)
        return len(proven)

    def _report(self, trigger: Trigger, cleared: int, duration_s: float) -> None:
        count = self.ledger.count
        self.report(
            CleanupCompleted(
                revoked_tasks_cleared=cleared,
                revoked_tasks_kept=RevokedKept(
                    operator=count(Origin.OPERATOR),
                    unproven=sum(map(count, UNPROVEN)),
                    grace=count(Origin.EXPIRED) + count(Origin.PROVEN),
                ),
                trigger=trigger,
                duration_s=round(duration_s, 6),
            )
        )
        backfill = self.backfill.drain()
        if backfill is not None:
            self.report(backfill)


@dataclass(frozen=True, kw_only=True)
class Marker:
    """Marks ids beside the results that the guards of other workers are not to clear.

    ``pending`` is filled from outside: an id, and whether it is an operator's. An id leaves it when
    its mark is written, or when it is no longer in the set.
    """

    name: ClassVar[str] = "operator_marks"

    interval_s: float
    pending: dict[str, bool]
    held: Container[str]
    store: MarkStore

    def round(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write the marks that are still to be written."""
        while batch := list(islice(self.pending.items(), LOOKUP_BATCH)):
            wanted = [(task_id, is_op) for task_id, is_op in batch if task_id in self.held]
            self.store.mark(
                [task_id for task_id, is_op in wanted if is_op],
                [task_id for task_id, is_op in wanted if not is_op],
            )
            for task_id, is_op in batch:
                # One that became an operator's meanwhile waits for its other mark.
                if self.pending.get(task_id) == is_op:
                    del self.pending[task_id]
            yield


def clear_in_s(ready_in_s: float, *, due_in_s: float, interval_s: float) -> float:
    """In how many seconds an id is cleared whose grace is over in ``ready_in_s``: by a sweep."""
    sweeps_before = max(0, ceil((ready_in_s - due_in_s) / interval_s))
    return max(0.0, due_in_s) + sweeps_before * interval_s


def _batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(ids)
    while batch := list(islice(rest, size)):
        yield batch
