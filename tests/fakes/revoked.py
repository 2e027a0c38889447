"""A revoked set and a result backend, written by hand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from worker_guard.backoff import Backoff
from worker_guard.events import CleanupCompleted, Event
from worker_guard.revoked.backfill import BackfillCounter
from worker_guard.revoked.ledger import Confirmation, Ledger
from worker_guard.revoked.record import Made
from worker_guard.revoked.sweeper import (
    RevokedActor,
    RevokedDryRun,
    Sweeper,
)
from worker_guard.scheduler import run_to_end
from worker_guard.values.source import Source, Target


class FakeSet(set[str]):
    """A set that counts how often a sweep was finished on it."""

    def __init__(self) -> None:
        super().__init__()
        self.finished = 0

    def finish(self) -> None:
        self.finished += 1


class Clearing:
    """Takes ids out of a fake set."""

    def __init__(self, revoked: FakeSet) -> None:
        self._revoked = revoked

    def clear(self, task_ids: Iterable[str]) -> None:
        self._revoked.difference_update(task_ids)

    def finish(self) -> None:
        self._revoked.finish()


class FakeRecords:
    """The confirmations that it is given, and a count of the round trips."""

    one_trip = True
    unreadable = ""

    def __init__(self, **confirmations: Confirmation) -> None:
        self.known = confirmations
        self.asked: list[int] = []
        self.error: Exception | None = None
        self.operators: dict[Target, Made] = {}
        self.unproven: list[str] = []
        self.removed: list[str] = []
        #: The revocations that someone took back since they were made.
        self.taken_back: set[Target] = set()
        self.asked_for_marks: list[int] = []

    def confirmations(self, task_ids: Sequence[str]) -> dict[str, Confirmation]:
        self.asked.append(len(task_ids))
        if self.error:
            raise self.error
        return {i: self.known[i] for i in task_ids if i in self.known}

    def marked(self, task_ids: Sequence[str]) -> set[str]:
        self.asked_for_marks.append(len(task_ids))
        if self.error:
            raise self.error
        return {i for i in task_ids if self.known.get(i) is Confirmation.OPERATOR}

    def mark(
        self, operators: Mapping[Target, Made], unconfirmed: Collection[str]
    ) -> Collection[Target]:
        if self.error:
            raise self.error
        self.operators |= {t: made for t, made in operators.items() if t not in self.taken_back}
        self.unproven += unconfirmed
        return [target for target in operators if target in self.taken_back]

    def unmark(self, task_ids: Collection[str]) -> None:
        if self.error:
            raise self.error
        self.removed += task_ids


class OneByOne(FakeRecords):
    """A store in which each key costs a round trip, and ``no/key`` can't be a key."""

    one_trip = False

    def mark(
        self, operators: Mapping[Target, Made], unconfirmed: Collection[str]
    ) -> Collection[Target]:
        if "no/key" in operators:
            raise FileNotFoundError("no/key")
        return super().mark(operators, unconfirmed)


class World:
    """A sweeper with all that it needs, and a clock that the test sets."""

    def __init__(self, *, records: FakeRecords | None = None, dry_run: bool = False) -> None:
        self.now = 1000.0
        self.step_s = 0.0
        self.revoked, self.ledger, self.events = FakeSet(), Ledger(), list[Event]()
        self.kept: list[tuple[str, bool]] = []
        actor: RevokedActor = RevokedDryRun() if dry_run else Clearing(self.revoked)
        self.sweeper = Sweeper(
            interval_s=30.0,
            grace_s=60.0,
            confirmed_grace_s=60.0,
            compare=self.compare,
            ledger=self.ledger,
            revoked=self.revoked,
            actor=actor,
            marks=records,
            records=records,
            lookups=Backoff("revoked_verify", first_pause_s=30, report=self.events.append),
            backfill=BackfillCounter(),
            on_kept=lambda task_id, operators: self.kept.append((task_id, operators)),
            report=self.events.append,
            monotonic=self.clock,
        )

    def clock(self) -> float:
        self.now += self.step_s
        return self.now

    def compare(self) -> None:
        for task_id in self.ledger.compare(dict.fromkeys(self.revoked).keys()).unknown:
            self.ledger.added(task_id, Source.OPERATOR, self.now)

    def add(self, source: Source, *task_ids: str, confirm: bool = True) -> None:
        for task_id in task_ids:
            self.revoked.add(task_id)
            self.ledger.added(task_id, source, self.now)
            if confirm and source is Source.EXPIRY:
                self.ledger.confirmed_expired(task_id)

    def sweep(self) -> CleanupCompleted:
        run_to_end(self.sweeper.run())
        cleanups = [event for event in self.events if isinstance(event, CleanupCompleted)]
        return cleanups[-1]
