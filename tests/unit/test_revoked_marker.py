"""The job that records operators' revocations, with a fake for the result backend."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.revoked import FakeRecords, FakeSet, OneByOne
from worker_guard.revoked import marker as marker_module
from worker_guard.revoked.batches import LOOKUP_BATCH
from worker_guard.revoked.ledger import Confirmation, Ledger, Origin
from worker_guard.revoked.marker import RENEW_S, Marker
from worker_guard.revoked.record import Made
from worker_guard.scheduler import run_to_end
from worker_guard.values.source import Source, Stamp, Target, Way

STAMP = Stamp("customer", 17)


class World:
    """A marker with all that it needs, and a clock that the test sets."""

    def __init__(self, store: FakeRecords | None = None) -> None:
        self.now = 1000.0
        self.store = store or FakeRecords()
        self.ledger, self.held = Ledger(), FakeSet()
        self.taken_back: list[Target] = []
        self.marker = Marker(
            interval_s=30.0,
            longest_pause_s=30.0,
            ledger=self.ledger,
            held=self.held,
            store=self.store,
            on_taken_back=self.taken_back.append,
            monotonic=lambda: self.now,
        )

    def revoke(self, *task_ids: str, way: Way = Way.REVOKE) -> None:
        for task_id in task_ids:
            self.held.add(task_id)
            self.ledger.added(task_id, Source.OPERATOR, self.now, way)
        self.marker.keep(task_ids, operators=True)

    def doubt(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self.held.add(task_id)
            self.ledger.added(task_id, Source.INHERITED, self.now)
            self.ledger.record_confirmation(task_id, Confirmation.UNCONFIRMED, self.now, 0.0)
        self.marker.keep(task_ids, operators=False)

    def run(self) -> None:
        run_to_end(self.marker.run())


def test_revocations_are_written_in_batches_and_kept_until_they_are() -> None:
    """A revocation leaves the list when it is written, not before."""
    world = World()
    ids = [f"{n}" for n in range(LOOKUP_BATCH + 1)]
    world.revoke(*ids)
    world.doubt("unconfirmed", "not-held")
    world.held.remove("not-held")
    world.store.error = ConnectionError("refused")
    with pytest.raises(ConnectionError):
        world.run()
    assert len(world.marker.pending) == LOOKUP_BATCH + 3
    world.store.error = None
    assert sum(1 for _ in world.marker.run()) == 2
    assert (list(world.store.operators), world.store.unproven) == (
        # The batch that failed went last.
        [*ids[LOOKUP_BATCH:], *ids[:LOOKUP_BATCH]],
        ["unconfirmed"],
    )
    assert world.marker.pending == {}


def test_it_says_how_a_revocation_was_made_and_how_long_ago() -> None:
    """Stamped headers too; an operator's id is recorded even if a full set dropped it at once."""
    world = World()
    world.revoke("dropped", way=Way.TERMINATE)
    world.held.clear()
    world.ledger.stamped(STAMP, world.now - 5.0, Way.STAMPS)
    world.marker.keep([STAMP], operators=True)
    world.now += 2.5
    world.run()
    assert world.store.operators == {
        "dropped": Made(Way.TERMINATE, 2.5),
        STAMP: Made(Way.STAMPS, 7.5),
    }


def test_marks_of_unconfirmed_ids_are_renewed() -> None:
    """They end by themselves. A revocation on record needs no renewal."""
    world = World()
    world.revoke("operators")
    world.doubt("unconfirmed")
    world.run()
    world.store.operators.clear()
    world.now += RENEW_S
    world.run()
    assert (world.store.operators, world.store.unproven) == ({}, ["unconfirmed", "unconfirmed"])


def test_what_has_ended_while_it_waited_is_not_recorded() -> None:
    """Its lifetime is over, or it was taken back."""
    world = World()
    world.revoke("ended", "taken-back")
    world.ledger.ended("ended")
    world.ledger.forget("taken-back")
    world.run()
    assert (world.store.operators, world.marker.pending, world.taken_back) == ({}, {}, [])


def test_what_was_taken_back_before_it_was_recorded_is_taken_back_here() -> None:
    """The command was given while the result backend was away, or by a worker that was."""
    world = World()
    world.revoke("x", "stands")
    world.store.taken_back = {"x"}
    world.run()
    assert (world.taken_back, list(world.store.operators)) == (["x"], ["stands"])


def test_what_was_revoked_again_while_it_was_written_stands() -> None:
    """The record answers for the first revocation; the second waits to be recorded."""

    class Slow(FakeRecords):
        def mark(self, *args: Any) -> Any:
            answer = super().mark(*args)
            if self.taken_back:
                self.taken_back = set()
                world.now += 1.0
                world.revoke("x")
            return answer

    world = World(Slow())
    world.revoke("x")
    world.store.taken_back = {"x"}
    world.run()
    assert (world.taken_back, list(world.store.operators)) == ([], ["x"])
    assert world.ledger.origin("x") is Origin.OPERATOR


def test_an_id_that_becomes_an_operators_while_its_mark_is_written_is_recorded() -> None:
    """The mark says "unproven", which is not enough."""

    class Slow(FakeRecords):
        def mark(self, *args: Any) -> Any:
            answer = super().mark(*args)
            if not self.operators:
                world.revoke("x")
            return answer

    world = World(Slow())
    world.doubt("x")
    world.run()
    assert (world.store.unproven, list(world.store.operators)) == (["x"], ["x"])


def test_an_operators_id_stays_an_operators_while_it_waits() -> None:
    """A look-up that ends later does not make it an unconfirmed one."""
    world = World()
    world.revoke("x")
    world.marker.keep(["x"], operators=False)
    world.run()
    assert (list(world.store.operators), world.store.unproven) == (["x"], [])


def test_what_the_application_removed_is_taken_off_the_record() -> None:
    """In batches, at once or not at all; and not what an operator revoked again."""
    world = World()
    ids = [f"{n}" for n in range(LOOKUP_BATCH + 1)]
    world.revoke("waits", "again")
    for task_id in [*ids, "waits", "again"]:
        world.ledger.forget(task_id)
        world.marker.remove(task_id)
    world.revoke("again")
    assert sum(1 for _ in world.marker.run()) == 3
    assert world.store.removed == [*ids, "waits"]
    assert list(world.store.operators) == ["again"]


@pytest.mark.parametrize("late", [False, True], ids=["refused", "late"])
def test_what_is_not_taken_off_the_record_at_once_stays(late: bool) -> None:
    """Later another worker may have revoked it again."""
    world = World()
    world.marker.remove("x")
    if late:
        world.now += 60.0
    else:
        world.store.error = ConnectionError("refused")
        with pytest.raises(ConnectionError):
            world.run()
        world.store.error = None
    world.run()
    assert world.store.removed == []


def test_what_waits_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the result backend is down, ids that are neither an operator's nor held go."""
    monkeypatch.setattr(marker_module, "_MOST_PENDING", 3)
    world = World()
    world.revoke("operators")
    world.doubt("held", "gone-1", "gone-2")
    world.held -= {"gone-1", "gone-2", "operators"}
    assert len(world.marker.pending) == 4
    world.doubt("another")
    assert list(world.marker.pending) == ["operators", "held", "another"]


def test_an_id_that_cannot_be_a_key_does_not_block_the_others() -> None:
    """It is tried again after the others, and each key has a slice of its own."""
    world = World(OneByOne())
    world.revoke("no/key", "a", "b")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            world.run()
    assert (list(world.store.operators), world.marker.pending) == (["a", "b"], {"no/key": True})
