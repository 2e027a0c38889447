"""The sweep of the revoked set, with fakes for the set and the result backend."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.fakes.revoked import FakeRecords, OneByOne, World
from worker_guard.events import CleanupCompleted, Event, PartFailed, RevokedKept
from worker_guard.revoked.batches import LOOKUP_BATCH
from worker_guard.revoked.ledger import Confirmation
from worker_guard.revoked.sweeper import (
    MARKS_BATCH,
    clear_in_s,
)
from worker_guard.scheduler import SLICE_S, run_to_end
from worker_guard.values.source import Source


def test_what_was_taken_back_leaves_as_soon_as_the_record_says_so() -> None:
    """A peer that has not heard brought it; there is nothing to wait for."""
    world = World(records=FakeRecords(x=Confirmation.TAKEN_BACK))
    world.add(Source.INHERITED, "x", "y")
    assert world.sweep().revoked_tasks_cleared == 1
    assert world.revoked == {"y"}


def test_the_event_says_what_was_cleared_and_what_was_kept_and_why() -> None:
    """The whole event of a sweep that meets every kind of id."""
    records = FakeRecords(confirmed=Confirmation.EXPIRED, marked=Confirmation.OPERATOR)
    world = World(records=records)
    world.add(Source.EXPIRY, "expired-1", "expired-2")
    world.add(Source.EXPIRY, "unconfirmed", confirm=False)
    world.add(Source.INHERITED, "confirmed", "marked", "unknown")
    world.add(Source.OPERATOR, "operators")
    world.now += 60
    world.add(Source.EXPIRY, "fresh")
    assert world.sweep() == CleanupCompleted(
        revoked_tasks_cleared=3,
        revoked_tasks_kept=RevokedKept(operator=2, unproven=2, grace=1),
        trigger="timer",
    )
    assert world.revoked == {"unconfirmed", "marked", "unknown", "operators", "fresh"}
    assert world.revoked.finished == 1
    assert world.kept == [("marked", True), ("unknown", False)]


def test_a_sweep_that_did_nothing_is_quiet() -> None:
    """It is logged at debug; one that did something, or that was asked for, at info."""
    world = World()
    assert world.sweep().level == "debug"
    world.add(Source.EXPIRY, "x")
    world.now += 60
    assert world.sweep().level == "info"
    run_to_end(world.sweeper.run("control"))
    assert world.events[-1].level == "info"


def test_a_dry_run_counts_each_id_once_and_leaves_it() -> None:
    """What a dry run would do is counted once, since a real run would do it once."""
    world = World(dry_run=True)
    world.add(Source.EXPIRY, "x")
    world.now += 60
    assert [world.sweep().revoked_tasks_cleared for _ in range(3)] == [1, 0, 0]
    assert world.revoked == {"x"}


def test_a_preview_leaves_no_trace() -> None:
    """A dry run of a sweep takes nothing from the next real sweep."""
    world, seen = World(records=FakeRecords(confirmed=Confirmation.EXPIRED)), list[Event]()
    world.add(Source.EXPIRY, "x")
    world.add(Source.INHERITED, "confirmed")
    world.now += 60
    run_to_end(world.sweeper.preview(seen.append).run("control"))
    assert [e.revoked_tasks_cleared for e in seen if isinstance(e, CleanupCompleted)] == [2]
    assert world.events == []
    assert world.revoked == {"x", "confirmed"}
    assert world.sweep().revoked_tasks_cleared == 2


def test_slices_hold_the_loop_for_a_moment_only() -> None:
    """A sweep of many ids gives the loop back when its time is over, and asks in batches."""
    records = FakeRecords()
    world = World(records=records)
    world.add(Source.INHERITED, *(f"{n}" for n in range(LOOKUP_BATCH * 2 + 1)))
    world.add(Source.EXPIRY, *(f"x{n}" for n in range(1000)))
    world.now += 60
    world.step_s = SLICE_S / 3
    slices = sum(1 for _ in world.sweeper.run())
    assert slices >= 6
    assert records.asked == [LOOKUP_BATCH, LOOKUP_BATCH, 1]


def test_a_backend_that_fails_is_left_alone_for_a_while() -> None:
    """One failure, one report; ids that may bear a mark wait like ids to be confirmed."""
    records = FakeRecords(confirmed=Confirmation.EXPIRED)
    records.error = ConnectionError("refused")
    world = World(records=records)
    world.add(Source.INHERITED, "confirmed", *(f"{n}" for n in range(LOOKUP_BATCH * 3)))
    world.add(Source.EXPIRY, "x")
    world.now += 60
    assert world.sweep().revoked_tasks_cleared == 0
    assert world.sweep().revoked_tasks_cleared == 0
    assert (records.asked_for_marks, records.asked) == ([1], [])  # and not a second time at once
    failures = [event for event in world.events if isinstance(event, PartFailed)]
    assert failures == [
        PartFailed(
            part="revoked_verify",
            error="ConnectionError: refused",
            consecutive_failures=1,
            retry_in_s=30.0,
        )
    ]
    records.error = None
    world.now += 30
    assert world.sweep().revoked_tasks_cleared == 2
    assert not {"confirmed", "x"} & world.revoked


def test_an_id_that_expired_here_and_bears_a_mark_is_kept() -> None:
    """Another worker heard the revoke; only the mark says so."""
    world = World(records=FakeRecords(marked=Confirmation.OPERATOR))
    world.add(Source.EXPIRY, "plain", "marked")
    world.now += 60
    cleanup = world.sweep()
    assert (cleanup.revoked_tasks_cleared, cleanup.revoked_tasks_kept.operator) == (1, 1)
    assert world.revoked == {"marked"}


def test_marks_of_what_expired_here_are_read_in_few_round_trips() -> None:
    """Each costs the loop a wait for the network."""
    records = FakeRecords()
    world = World(records=records)
    world.add(Source.EXPIRY, *(f"{n}" for n in range(MARKS_BATCH + 1)))
    world.now += 60
    assert world.sweep().revoked_tasks_cleared == MARKS_BATCH + 1
    assert records.asked_for_marks == [MARKS_BATCH, 1]


def test_an_id_of_unknown_origin_is_an_operators() -> None:
    """It came in past every hook, and expires here too."""
    world = World()
    world.revoked.add("merged")
    assert world.sweep().revoked_tasks_kept == RevokedKept(operator=1)
    world.add(Source.EXPIRY, "merged")
    world.now += 60
    assert world.sweep().revoked_tasks_cleared == 0


def test_a_run_that_is_given_up_finishes_what_it_began() -> None:
    """At a shutdown the rest stays, and the set is in order."""
    world = World(records=FakeRecords())
    world.add(Source.EXPIRY, "x")
    world.add(Source.INHERITED, "y")
    world.now += 60
    slices = world.sweeper.run()
    while world.revoked == {"x", "y"}:
        next(slices)
    slices.close()  # type: ignore[attr-defined]
    assert world.revoked.finished == 1
    (cleanup,) = [event for event in world.events if isinstance(event, CleanupCompleted)]
    assert cleanup.revoked_tasks_cleared == 1


def test_where_each_key_is_a_trip_each_has_a_slice() -> None:
    """The loop waits for one answer at a time."""
    records = OneByOne()
    world = World(records=records)
    world.add(Source.EXPIRY, "x", "y")
    world.add(Source.INHERITED, "f", "g")
    world.now += 60
    world.sweep()
    assert (records.asked_for_marks, records.asked) == ([1, 1], [1, 1])


def test_a_sweep_that_is_ended_early_tells_what_it_did() -> None:
    """A worker that stops in the middle of a sweep still has all that it cleared in its totals."""
    world = World()
    world.add(Source.EXPIRY, *(f"{n}" for n in range(300)))
    world.now += 60
    world.step_s = SLICE_S
    slices = world.sweeper.run("control")
    while len(world.revoked) == 300:
        next(slices)
    left = len(world.revoked)
    assert 0 < left < 300
    assert isinstance(slices, Generator)
    slices.close()
    (cleanup,) = [event for event in world.events if isinstance(event, CleanupCompleted)]
    assert (cleanup.revoked_tasks_cleared, cleanup.trigger) == (300 - left, "control")
    assert world.revoked.finished == 1


@pytest.mark.parametrize(
    ("ready_in_s", "due_in_s", "expected"),
    [
        (-5.0, 4.0, 4.0),
        (0.0, 0.0, 0.0),
        (3.0, 4.0, 4.0),
        (4.0, 4.0, 4.0),
        (5.0, 4.0, 34.0),
        (60.0, 4.0, 64.0),
    ],
)
def test_an_id_is_cleared_by_the_first_sweep_after_its_grace(
    ready_in_s: float, due_in_s: float, expected: float
) -> None:
    """Here there is a sweep every 30 s."""
    assert clear_in_s(ready_in_s, due_in_s=due_in_s, interval_s=30.0) == expected
