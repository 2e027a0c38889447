"""The job that holds operators' ids in the set and ends them, with a fake for the set."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from worker_guard.events import Event, RevocationsEnded, RevocationsPutBack
from worker_guard.revoked.holder import Holder
from worker_guard.revoked.ledger import Ledger, Origin
from worker_guard.scheduler import SLICE_S, run_to_end
from worker_guard.values.source import Source, Stamp, Way

LIFETIME_S = 100.0
STAMP = Stamp("customer", 17)


class FakeRoom:
    """What was put where Celery does not drop it, and what was left to Celery again."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.released: list[str] = []

    def put(self, task_id: str) -> None:
        self.held.append(task_id)

    def release(self, task_id: str) -> None:
        self.released.append(task_id)

    def remove(self, task_id: str) -> None:
        raise AssertionError("nothing was taken back")


class World:
    """A holder with all that it needs, and a clock that the test sets."""

    def __init__(
        self, *, lifetime_s: float | None = LIFETIME_S, room: FakeRoom | None = None
    ) -> None:
        self.now, self.step_s = 1000.0, 0.0
        self.ledger, self.events = Ledger(), list[Event]()
        self.messages: set[str] = set()
        self.asked_for_messages = 0
        self.error: Exception | None = None
        self.left: list[str] = []
        self.holder = Holder(
            interval_s=30.0,
            ledger=self.ledger,
            lifetime_s=lifetime_s,
            held_messages=self.held_messages,
            on_ended=self.on_ended,
            report=self.events.append,
            monotonic=self.clock,
        )
        self.holder.room = room

    def clock(self) -> float:
        self.now += self.step_s
        return self.now

    def held_messages(self) -> set[str]:
        self.asked_for_messages += 1
        if self.error is not None:
            raise self.error
        return self.messages

    def on_ended(self, task_ids: Sequence[str]) -> None:
        self.left += task_ids

    def revoke(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self.ledger.added(task_id, Source.OPERATOR, self.now)
            self.holder.will_end(self.now)

    def run(self) -> list[Event]:
        """The events of one run."""
        self.events.clear()
        run_to_end(self.holder.run())
        return list(self.events)


def test_what_the_set_has_lost_is_put_back_and_reported_once_for_each_reason() -> None:
    """The ids stay an operator's."""
    room = FakeRoom()
    world = World(room=room)
    world.revoke("a", "b", "c")
    world.holder.put_back(["a", "b"], "set_full")
    world.holder.put_back(["c"], "aged_out")
    world.holder.put_back(["a"], "set_full")
    assert room.held == ["a", "b", "c", "a"]
    assert world.ledger.count(Origin.OPERATOR) == 3
    assert world.run() == [
        RevocationsPutBack(revocations=3, reason="set_full"),
        RevocationsPutBack(revocations=1, reason="aged_out"),
    ]
    assert world.run() == []


def test_a_dry_run_puts_nothing_back_and_says_what_it_would() -> None:
    """The set stays as Celery left it, and the ledger knows that; each id is counted once."""
    world = World()
    world.revoke("a", "b")
    world.holder.put_back(["a"], "set_full")
    assert (world.ledger.origin("a"), world.ledger.origin("b")) == (None, Origin.OPERATOR)
    assert world.run() == [RevocationsPutBack(revocations=1, reason="set_full")]


def test_what_could_not_end_ends_at_the_next_try() -> None:
    """The job failed before the end of its run; what came meanwhile ends at its own time."""
    world = World(room=FakeRoom())
    world.revoke("a")
    world.now += LIFETIME_S
    world.error = RuntimeError("the messages can't be counted")
    with pytest.raises(RuntimeError):
        world.run()
    world.revoke("b")
    world.error = None
    assert world.run() == [RevocationsEnded(revocations=1)]
    assert world.left == ["a"]


def test_a_revocation_ends_after_its_lifetime() -> None:
    """Then the id is left to Celery, and never cleared; a stamped header is only forgotten."""
    room = FakeRoom()
    world = World(room=room)
    world.revoke("early")
    world.ledger.stamped(STAMP, world.now, Way.STAMPS)
    world.now += 1.0
    world.revoke("late")
    world.now += LIFETIME_S - 1.1
    assert world.run() == []
    assert world.asked_for_messages == 0  # nothing can have ended
    world.now += 0.2
    assert world.run() == [RevocationsEnded(revocations=2)]
    assert (world.ledger.origin("early"), world.ledger.origin("late")) == (
        Origin.ENDED,
        Origin.OPERATOR,
    )
    assert world.ledger.revocations() == ["late"]
    assert (room.released, world.left) == (["early"], ["early"])
    world.now += 1.0
    assert world.run() == [RevocationsEnded(revocations=1)]
    assert world.left == ["early", "late"]


def test_a_dry_run_ends_them_too() -> None:
    """It is only what the guard knows; the set is left alone."""
    world = World()
    world.revoke("x")
    world.now += LIFETIME_S
    assert world.run() == [RevocationsEnded(revocations=1)]
    assert world.ledger.origin("x") is Origin.ENDED


def test_an_id_whose_message_is_held_stays_with_it() -> None:
    """A task that is due in a month, say; it is looked at again in each run."""
    world = World(room=FakeRoom())
    world.revoke("held")
    world.messages = {"held"}
    world.now += LIFETIME_S
    assert world.run() == world.run() == []
    assert world.ledger.origin("held") is Origin.OPERATOR
    world.messages = set()
    assert world.run() == [RevocationsEnded(revocations=1)]


@pytest.mark.parametrize("age_s", [0.0, 1e9])
def test_without_a_lifetime_nothing_ends(age_s: float) -> None:
    """``None`` is for ever."""
    world = World(lifetime_s=None, room=FakeRoom())
    world.revoke("x")
    world.now += age_s
    assert world.run() == []
    assert (world.ledger.origin("x"), world.asked_for_messages) == (Origin.OPERATOR, 0)


def test_one_that_was_made_earlier_ends_earlier() -> None:
    """Such as one that was read from the record after others were made here."""
    world = World(room=FakeRoom())
    world.revoke("here")
    world.ledger.restored("elsewhere", world.now - 50.0, Way.REVOKE)
    world.holder.will_end(world.now - 50.0)
    world.now += LIFETIME_S - 50.0
    assert world.run() == [RevocationsEnded(revocations=1)]
    assert world.ledger.revocations() == ["here"]


def test_many_end_in_slices() -> None:
    """The loop is free in between, and each is counted; some are made meanwhile."""
    world = World(room=FakeRoom())
    world.revoke(*(f"{n}" for n in range(1000)))
    world.now += LIFETIME_S
    world.step_s = SLICE_S
    slices = world.holder.run()
    for _ in range(3):
        next(slices)
    ended = world.ledger.count(Origin.ENDED)
    assert 0 < ended < 1000
    world.revoke("meanwhile")
    run_to_end(slices)
    assert world.events == [RevocationsEnded(revocations=1000)]
    assert world.ledger.revocations() == ["meanwhile"]
    world.step_s, world.now = 0.0, world.now + LIFETIME_S
    assert world.run() == [RevocationsEnded(revocations=1)]
