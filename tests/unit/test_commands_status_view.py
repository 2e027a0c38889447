"""From answers to rows: who is there, what is the matter, what is worth a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.harness.answers import ALERT, WELL, fleet_of
from worker_guard.commands.status.view import (
    REMEMBERED_S,
    Answers,
    Remembered,
    biggest,
    document,
    is_unknown_command,
    read_fleet,
)
from worker_guard.status_model import ChildStatus


@pytest.mark.parametrize(
    ("replies", "expected", "line"),
    [
        ({"w": WELL}, None, "ok: 1 worker; nothing to do"),
        (
            {"w": {**WELL, "revoked": {"clearing": 56, "next_clear_s": 24.9}}, "v": WELL},
            2,
            "ok: 2 workers; 56 ids will be cleared in 24 s; nothing to do",
        ),
        (
            {"w": WELL, "v": {"error": "KeyError()"}},
            None,
            "trouble: 1 of 2 workers: v (not loaded)",
        ),
        (
            {f"w{n}": {"error": "no"} for n in range(5)},
            None,
            "trouble: 5 of 5 workers: w0 (no guard), w1 (no guard), w2 (no guard) and 2 more",
        ),
        ({"w": WELL}, 3, "trouble: 1 answered, 3 were expected"),
    ],
)
def test_the_verdict(replies: Any, expected: int | None, line: str) -> None:
    """One line that says what there is to do, if anything."""
    fleet = read_fleet(
        Answers(present=list(replies), replies=list(replies.items())), expected=expected
    )
    assert fleet.verdict() == line
    assert fleet.trouble == line.startswith("trouble")


def test_rows_are_in_the_order_of_their_names() -> None:
    """Whoever answers first."""
    assert [w.name for w in fleet_of(b=WELL, c=WELL, a=WELL).workers] == ["a", "b", "c"]
    assert list(document(fleet_of(b=WELL, a=WELL))["workers"]) == ["a", "b"]
    worst = fleet_of(b=WELL, c={"error": "x"}, a=WELL).worst_first()
    assert [w.name for w in worst] == ["c", "a", "b"]


def test_who_is_silent_has_a_row() -> None:
    """One that is there and whose guard does not answer, and one that was asked by name."""
    fleet = read_fleet(Answers(present=["late", "w"], replies=[("w", WELL)], asked=["gone", "w"]))
    said = {w.name: [(t.kind, t.text) for t in w.troubles] for w in fleet.workers}
    assert said == {
        "gone": [("no_answer", "no answer in time")],
        "late": [("no_answer", "answers a ping, but its guard did not answer in time")],
        "w": [],
    }


def test_two_workers_of_one_name_are_told() -> None:
    """They share a mailbox, and one's figures would pass for the other's."""
    fleet = read_fleet(Answers(present=["w", "w"], replies=[("w", WELL), ("w", {"version": "2"})]))
    (worker,) = fleet.workers
    assert [t.kind for t in worker.troubles] == ["duplicate_name"]
    assert worker.guard is not None
    assert worker.guard.version == "1.0"


def test_the_document_holds_the_answers_as_they_came() -> None:
    """A machine gets what the worker said, fields that this release does not know included."""
    answer = {**WELL, "mood": "fine", "alerts": [ALERT]}
    found = document(fleet_of(a=answer, b={"error": "x"}))
    assert found == {
        "trouble": True,
        "answered": 2,
        "expected": None,
        "workers": {
            "a": {
                "guard": answer,
                "troubles": [
                    {
                        "kind": "alert",
                        "text": ("the guard will not clear 23 ids, the threshold is 10, for 5 min"),
                        "to_do": "see why they stay: the how-to page, “Find out why an id stays”",
                    }
                ],
            },
            "b": {
                "guard": None,
                "troubles": [
                    {
                        "kind": "no_guard",
                        "text": "x",
                        "to_do": "if it should run there, fix that and restart the worker",
                    }
                ],
            },
        },
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"error": "KeyError('guard')"}, True),
        ({"error": "Unknown control command 'guard'"}, True),
        ({"error": "worker_guard_enabled is False"}, False),
        ({"error": 5}, False),
        (WELL, False),
        (None, False),
    ],
)
def test_who_has_no_such_command(answer: Mapping[str, Any] | None, expected: bool) -> None:
    """Such a worker is not asked each time."""
    assert is_unknown_command(answer) is expected


def test_a_worker_that_falls_silent_is_shown_for_a_while() -> None:
    """With its last answer, and for how long it has been silent; then it is forgotten."""
    remembered = Remembered()
    remembered.add(fleet_of(a=WELL, b=WELL), 0.0)
    fleet = remembered.add(fleet_of(b=WELL), 90.0)
    (a, b) = fleet.workers
    assert a.guard is not None
    assert [t.text for t in a.troubles] == ["no answer for 1 min 30 s; its figures are old"]
    assert (a.old_s, b.old_s) == (90.0, 0.0)
    assert b.troubles == ()
    late = read_fleet(Answers(present=["a", "b"], replies=[("b", WELL)]))
    assert [w.guard is not None for w in remembered.add(late, 95.0).workers] == [True, True]
    assert len(remembered.add(fleet_of(b=WELL), REMEMBERED_S).workers) == 2
    assert len(remembered.add(fleet_of(b=WELL), REMEMBERED_S + 1).workers) == 1


def test_a_worker_that_said_that_it_shuts_down_is_gone_and_not_in_trouble() -> None:
    """Until it answers again; who never answered has no row."""
    remembered = Remembered()
    remembered.add(fleet_of(a=WELL, b=WELL), 0.0)
    fleet = remembered.add(fleet_of(b=WELL), 5.0, ["a", "stranger"])
    (a, b) = fleet.workers
    assert (a.is_gone, a.troubles, a.old_s, b.is_gone) == (True, (), 5.0, False)
    assert not fleet.trouble
    assert fleet.verdict() == "ok: 1 worker, 1 shut down; nothing to do"
    assert [w.name for w in fleet.worst_first()] == ["b", "a"]
    # It says nothing again in the rounds that follow.
    assert remembered.add(fleet_of(b=WELL), 7.0).workers[0].is_gone
    assert not remembered.add(fleet_of(a=WELL, b=WELL), 9.0).workers[0].is_gone
    assert remembered.add(fleet_of(b=WELL), 11.0).trouble


def test_a_fleet_that_shut_down_is_in_no_trouble() -> None:
    """Nobody answers any more, as they said."""
    remembered = Remembered()
    assert not remembered.add(fleet_of(), 0.0).all_gone
    remembered.add(fleet_of(a=WELL, b=WELL), 1.0)
    assert not remembered.add(fleet_of(), 2.0, ["a"]).all_gone
    fleet = remembered.add(fleet_of(), 3.0, ["b"])
    assert fleet.all_gone
    assert fleet.verdict() == "ok: 0 workers, 2 shut down; nothing to do"


def test_a_worker_that_answers_again_is_well_again() -> None:
    """And one that answers with an error is what it says now, not what it was."""
    remembered = Remembered()
    remembered.add(fleet_of(a=WELL), 0.0)
    remembered.add(fleet_of(), 5.0)
    assert not remembered.add(fleet_of(a=WELL), 10.0).trouble
    (row,) = remembered.add(fleet_of(a={"error": "x"}), 15.0).workers
    assert row.guard is None
    assert [t.kind for t in row.troubles] == ["no_guard"]


def test_the_biggest_children_come_first() -> None:
    """After those that leave; one that was not read yet is last."""
    sizes = {1: 10, 2: 30, 3: None, 4: 20}
    children = [ChildStatus(pid=pid, used_bytes=size) for pid, size in sizes.items()]
    children.append(ChildStatus(pid=5, used_bytes=1, leaving=True))
    assert [child.pid for child in biggest(children, None)] == [5, 2, 4, 1, 3]
    assert [child.pid for child in biggest(children, 2)] == [5, 2]
