"""The job that reads the record, with a fake for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from worker_guard.events import Event, RevocationsRestored
from worker_guard.revoked.ledger import Ledger, Origin
from worker_guard.revoked.record import Record, Revocation, TakenBack
from worker_guard.revoked.restorer import Restorer
from worker_guard.scheduler import run_to_end
from worker_guard.values.source import Source, Stamp, Target, Way

STAMP = Stamp("customer", 17)


class FakeRecord:
    """A record in memory, in pages of two."""

    def __init__(self) -> None:
        self.made: dict[Target, Revocation] = {}
        self.gone: list[TakenBack] = []
        self.purged = 0
        self.looked_for: list[Target] = []
        self.error: Exception | None = None
        self.reads = 0

    def put(self, *targets: Target, age_s: float = 0.0, way: Way = Way.REVOKE) -> None:
        for target in targets:
            self.made[target] = Revocation(target, way, since=0.0, until=None, age_s=age_s)

    def pages(self) -> Iterator[list[Revocation]]:
        self.reads += 1
        made = list(self.made.values())
        for start in range(0, len(made), 2):
            yield made[start : start + 2]
            if self.error:
                raise self.error

    def taken_back(self, *, last: bool = False) -> Iterator[Sequence[TakenBack]]:
        yield self.gone

    def lost(self, targets: Sequence[Target]) -> list[Target]:
        self.looked_for += targets
        return [target for target in targets if target not in self.made]

    def purge(self) -> Iterator[None]:
        self.purged += 1
        yield


class World:
    """A restorer, and the worker whose set it fills."""

    def __init__(self, *, dry_run: bool = False) -> None:
        self.now = 1000.0
        self.ledger, self.record, self.events = Ledger(), FakeRecord(), list[Event]()
        self.pending: set[Target] = set()
        self.recorded_again: list[Target] = []
        self.restorer = Restorer(
            interval_s=30.0,
            record=cast(Record, self.record),
            ledger=self.ledger,
            entrance=None if dry_run else self,
            pending=self.pending,
            report=self.events.append,
            monotonic=lambda: self.now,
        )

    # What the part does.

    def enter(self, target: Target, since_mono: float, way: Way) -> bool:
        if isinstance(target, Stamp):
            return self.ledger.stamped(target, since_mono, way)
        return self.ledger.restored(target, since_mono, way)

    def take_back(self, target: Target) -> bool:
        return isinstance(target, str) and self.ledger.forget(target) is not None

    def record_again(self, targets: Sequence[Target]) -> None:
        self.recorded_again += targets

    # What the test does.

    def run(self) -> list[Event]:
        self.events.clear()
        run_to_end(self.restorer.run())
        return list(self.events)

    def reconnect(self) -> list[Event]:
        self.restorer.connected()
        return self.run()


def test_the_first_read_reports_all_and_later_ones_what_was_missed() -> None:
    """At the start it says that the record was read, though a peer or a statedb knew the ids."""
    world = World()
    world.record.put("a", "b", "c", STAMP, age_s=5.0, way=Way.TERMINATE)
    world.ledger.added("a", Source.OPERATOR, world.now)
    assert world.reconnect() == [RevocationsRestored(revocations=3, stamps=1)]
    assert set(world.ledger.revocations()) == {"a", "b", "c", STAMP}
    assert world.ledger.revocation("b") == (995.0, Way.TERMINATE)
    assert world.restorer.has_read
    assert world.run() == []
    assert world.record.reads == 1
    assert world.reconnect() == []
    world.record.put("missed")
    assert world.reconnect() == [RevocationsRestored(revocations=1, stamps=0)]


def test_an_empty_record_is_not_reported() -> None:
    """There is nothing to say; what has ended is removed in each run."""
    world = World()
    assert world.reconnect() == world.run() == []
    assert (world.restorer.has_read, world.record.purged) == (True, 2)


def test_what_was_taken_back_meanwhile_leaves() -> None:
    """The worker was away, or its statedb is old. One that was revoked again since then stays."""
    world = World()
    for task_id in ("gone", "waits", "stays"):
        world.ledger.added(task_id, Source.OPERATOR, world.now)
    world.pending |= {"waits"}
    world.record.put("stays")
    world.now += 2.0
    world.ledger.added("again", Source.OPERATOR, world.now)
    world.now += 1.0
    world.record.gone = [TakenBack(task_id, 2.0) for task_id in ("gone", "waits", "again")]
    world.reconnect()
    assert set(world.ledger.revocations()) == {"stays", "again"}


def test_one_that_is_taken_back_while_the_record_is_read_leaves() -> None:
    """It was on a page that was read before."""
    world = World()
    world.record.put("a", "b", "c")
    slices = world.restorer.run()
    while world.ledger.origin("a") is None:
        next(slices)
    assert world.ledger.origin("a") is Origin.OPERATOR
    world.record.gone = [TakenBack("a", 0.0)]
    run_to_end(slices)
    assert world.ledger.revocations() == ["b", "c"]


def test_what_an_old_statedb_brings_leaves_before_the_rest_is_read() -> None:
    """The record can be so large that messages come before all of it is read."""
    world = World()
    world.ledger.added("gone", Source.INHERITED, world.now)
    world.record.put("a", "b", "c")
    world.record.gone = [TakenBack("gone", 5.0)]
    next(world.restorer.run())
    assert list(world.ledger.ids()) == world.ledger.revocations() == []


def test_a_read_that_fails_is_done_again_from_the_start() -> None:
    """What was entered by then stays; all of it is reported in the end."""
    world = World()
    world.record.put("a", "b", "c")
    world.record.error = ConnectionError("refused")
    with pytest.raises(ConnectionError):
        world.reconnect()
    assert (world.ledger.revocations(), world.restorer.has_read) == (["a", "b"], False)
    world.record.error = None
    assert world.run() == [RevocationsRestored(revocations=3, stamps=0)]
    assert world.restorer.has_read


def test_what_the_record_has_lost_is_recorded_again() -> None:
    """A flush, say, or one of two keys. What waits to be recorded is not lost."""
    world = World()
    for task_id in ("a", "b", "waits"):
        world.ledger.added(task_id, Source.OPERATOR, world.now)
    world.ledger.stamped(STAMP, world.now, Way.STAMPS)
    world.pending |= {"waits"}
    world.record.put("a", "b", STAMP)
    world.reconnect()
    assert world.recorded_again == []
    world.record.made.pop("a")
    world.record.put("of another worker")
    world.run()
    assert world.recorded_again == ["a"]
    world.record.made.clear()
    world.recorded_again.clear()
    world.run()
    assert set(world.recorded_again) == {"a", "b", STAMP}


def test_many_are_looked_for_in_turn_until_none_is_lost() -> None:
    """One look a run while all is well; all of them in one run after a flush."""
    world = World()
    many = [f"{n}" for n in range(600)]
    for task_id in many:
        world.ledger.added(task_id, Source.OPERATOR, world.now)
    world.record.put(*many)
    world.reconnect()
    looked = len(world.record.looked_for)
    assert 0 < looked < 600
    for _ in range(3):
        world.run()
    assert set(world.record.looked_for) == set(many)
    world.record.made.clear()
    world.run()
    assert sorted(world.recorded_again) == sorted(many)


def test_a_dry_run_enters_and_changes_nothing() -> None:
    """It reports what would be entered: at the start all, later what this worker did not hear."""
    world = World(dry_run=True)
    world.record.put("a", STAMP)
    world.record.gone = [TakenBack("heard", 0.0)]
    world.ledger.added("heard", Source.OPERATOR, world.now)
    assert world.reconnect() == [RevocationsRestored(revocations=1, stamps=1)]
    assert world.ledger.revocations() == ["heard"]
    assert (world.recorded_again, world.record.purged) == ([], 0)
