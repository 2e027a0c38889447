"""The part that sweeps the revoked set, and the part that marks operators' revocations."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
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

#: Ids whose marks alone are looked at in one round trip.
MARKS_BATCH = 250

#: Marks are renewed this often, for as long as their ids are held.
RENEW_S = 86_400.0


#: The origins that the figure "unproven" counts.
UNPROVEN = (Origin.FOREIGN, Origin.UNPROVEN, Origin.EXPIRING)


class HeldIds(Protocol):
    """The revoked set, to look at."""

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
    """Where ids are looked up: many at once where that is ``one_trip`` to the server and back."""

    one_trip: bool

    def marked(self, task_ids: Sequence[str]) -> set[str]:
        """Which of these bear an operator's mark."""

    def verdicts(self, task_ids: Sequence[str]) -> dict[str, Verdict]:
        """One round trip for all."""


class MarkStore(Protocol):
    """Where ids are marked that are not to be cleared; see :class:`RecordLookup`."""

    one_trip: bool

    def mark(self, operators: Sequence[str], unproven: Sequence[str]) -> None:
        """One round trip for all."""


@dataclass
class Totals:
    """What was done since the start of the guard."""

    revoked_tasks_cleared: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    children_recycled: int = 0
    sweeps: int = 0


@dataclass(frozen=True, kw_only=True)
class Sweeper:
    """Takes out of the revoked set what only expiry put there.

    ``grace_s`` is for what expired here, ``proof_grace_s`` for what came from elsewhere: a peer
    that brings an id needs that time to mark it. ``compare`` brings the ledger in line with the
    set, and raises where that can't be done.
    ``marks`` is None where there are none to be had: what expired here is cleared without a look.
    ``records`` is None where ids from elsewhere can't be looked up: they are left as they are.
    ``on_kept(task_id, operators)`` is called for each id that the result backend does not prove,
    with whether it is an operator's.
    """

    name: ClassVar[str] = "revoked"

    interval_s: float
    grace_s: float
    proof_grace_s: float
    compare: Callable[[], None]
    ledger: Ledger
    revoked: HeldIds
    actor: Actor
    marks: RecordLookup | None
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
        self.compare()
        yield
        try:
            for count in self._sweep():
                cleared += count
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
        self.compare()  # the one of the copy would not reach it
        return replace(
            self,
            ledger=self.ledger.copy(),
            actor=DryRun(),
            backfill=Backfill(),
            totals=Totals(),
            lookups=Containment(self.name, first_pause_s=self.interval_s, report=report),
            on_kept=lambda _task_id, _operators: None,
            report=report,
        )

    def _sweep(self) -> Iterator[int]:
        """Clear what may leave; yields how many, after each slice."""
        expired: list[str] = []
        foreign: list[str] = []
        yield from self._select(expired, foreign)
        for batch in _batches(expired, _batch(self.marks, MARKS_BATCH)):
            if not self._may_ask(self.marks):
                break
            yield self._clear_expired(batch)
        for batch in _batches(foreign, _batch(self.records, LOOKUP_BATCH)):
            if self.records is None or not self._may_ask(self.records):
                break
            yield self._look_up(self.records, batch)

    def _select(self, expired: list[str], foreign: list[str]) -> Iterator[int]:
        """Collect what is due; yields after at most a slice's time each."""
        slice_started = self.monotonic()
        for chunk in _batches(self.ledger.ids(), _CHUNK):
            now = self.monotonic()
            if now - slice_started >= SLICE_S:
                yield 0
                slice_started = now = self.monotonic()
            selection = self.ledger.select(
                chunk,
                now,
                held=self.revoked,
                grace_s=self.grace_s,
                proof_grace_s=self.proof_grace_s,
            )
            expired.extend(selection.clear)
            foreign.extend(selection.look_up)
        yield 0

    def _may_ask(self, records: RecordLookup | None) -> bool:
        """Whether the result backend may be asked now, if it is to be."""
        return records is None or self.lookups.ready(self.monotonic())

    def _clear_expired(self, task_ids: Sequence[str]) -> int:
        """Clear those of these ids that expired here and bear no operator's mark."""
        marked: set[str] = set()
        if self.marks is not None:
            try:
                marked = self.marks.marked(task_ids)
            except Exception as exc:  # noqa: BLE001 - contained: reported, and tried again later
                self.lookups.failed(exc, self.monotonic())
                return 0
            self.lookups.succeeded()
        record = self.ledger.record_mark
        # Asked again one by one: an operator can have revoked one during the look-up.
        return self._clear([i for i in task_ids if record(i, operators=i in marked)])

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
                task_id, verdicts.get(task_id, Verdict.UNPROVEN), now, self.proof_grace_s
            )
        ]
        for task_id in task_ids:
            origin = self.ledger.origin(task_id)
            if origin in (Origin.OPERATOR, Origin.UNPROVEN):
                self.on_kept(task_id, origin is Origin.OPERATOR)
        return self._clear(proven)

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
                    operator=count(Origin.OPERATOR),
                    unproven=sum(map(count, UNPROVEN)),
                    grace=count(Origin.EXPIRED) + count(Origin.PROVEN),
                ),
                trigger=trigger,
                duration_s=round(duration_s, 6),
            )
        )
        backfill = self.backfill.drain(self.monotonic())
        if backfill is not None:
            self.report(backfill)


@dataclass(kw_only=True)
class Marker:
    """Marks ids beside the results that the guards of other workers are not to clear.

    ``pending`` is filled from outside: an id, and whether it is an operator's. An id leaves it when
    its mark is written. An operator's is marked though Celery has dropped it from the set, where it
    can be the oldest as it is added. ``kept`` returns all that is to be marked, for renewal.
    """

    name: ClassVar[str] = "operator_marks"

    interval_s: float
    pending: dict[str, bool]
    held: Container[str]
    kept: Callable[[], Mapping[str, bool]]
    store: MarkStore
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self._renewed_mono = self.monotonic()

    def round(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write the marks that are still to be written."""
        if self.monotonic() - self._renewed_mono >= RENEW_S:
            self.pending.update(self.kept())
            self._renewed_mono = self.monotonic()
        size = _batch(self.store, LOOKUP_BATCH)
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


def clear_in_s(ready_in_s: float, *, due_in_s: float, interval_s: float) -> float:
    """In how many seconds an id is cleared whose grace is over in ``ready_in_s``: by a sweep."""
    sweeps_before = max(0, ceil((ready_in_s - due_in_s) / interval_s))
    return max(0.0, due_in_s) + sweeps_before * interval_s


def _batch(store: RecordLookup | MarkStore | None, size: int) -> int:
    """How many ids make one slice."""
    return size if store is None or store.one_trip else 1


def _batches(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(ids)
    while batch := list(islice(rest, size)):
        yield batch
