"""From answers to rows: who is there, what is the matter, what is worth a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from worker_guard.status.reply import Process
from worker_guard.status.view import (
    REMEMBERED_S,
    Answers,
    Fleet,
    Remembered,
    biggest,
    document,
    duration,
    is_unknown_command,
    read_fleet,
    share,
)

WELL = {"version": "1.0"}
ALERT = {"alert": "revoked_tasks", "value": 23, "threshold": 10, "since_s": 300}


def fleet_of(asked: tuple[str, ...] = (), **replies: Any) -> Fleet:
    """The fleet of workers that are there and answer so."""
    return read_fleet(
        Answers(present=list(replies), replies=list(replies.items()), asked=list(asked))
    )


def troubles(answer: Any) -> list[tuple[str, str]]:
    """What is the matter with a worker that answers so."""
    (worker,) = fleet_of(w=answer).workers
    return [(trouble.kind, trouble.text) for trouble in worker.troubles]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (WELL, []),
        ({**WELL, "alerts": []}, []),
        ({**WELL, "parts": {"results": "no Redis"}}, []),
        (
            {**WELL, "alerts": [ALERT]},
            [("alert", "revoked_tasks is 23, the threshold is 10, for 5 min")],
        ),
        (
            {**WELL, "alerts": [{"alert": "redis_memory"}]},
            [("alert", "redis_memory is ?, the threshold is ?")],
        ),
        (
            {**WELL, "consecutive_failures": {"memory": 1, "results": 0}},
            [("part_fails", "memory failed 1 time; the worker's log says why")],
        ),
        (
            {**WELL, "consecutive_failures": {"results": 4}},
            [("part_fails", "results failed 4 times in a row; the worker's log says why")],
        ),
        (
            {**WELL, "memory": {"suspended": {"baseline_bytes": 9, "limit_bytes": 8}}},
            [
                (
                    "recycling_suspended",
                    "recycling is suspended: a new child already uses more than the limit",
                )
            ],
        ),
        (
            {"error": "worker_guard_enabled is False"},
            [("no_guard", "worker_guard_enabled is False")],
        ),
        ({"error": "KeyError('guard')"}, [("unknown_command", "worker_guard is not loaded there")]),
        (
            "pong",
            [
                (
                    "broken_reply",
                    "not the answer of a guard: the answer is not an object: 'pong'",
                )
            ],
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_is_the_matter(answer: Any, expected: list[tuple[str, str]]) -> None:
    """Each kind of trouble, and what is none: a part that is off by configuration."""
    assert troubles(answer) == expected
    assert fleet_of(w=answer).trouble == bool(expected)


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
        "late": [("no_answer", "is there, but its guard did not answer in time")],
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
        "workers": {
            "a": {
                "guard": answer,
                "troubles": [
                    {
                        "kind": "alert",
                        "text": "revoked_tasks is 23, the threshold is 10, for 5 min",
                    }
                ],
            },
            "b": {"guard": None, "troubles": [{"kind": "no_guard", "text": "x"}]},
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
    assert [t.text for t in a.troubles] == ["no answer for 1 min; this is its last one"]
    assert b.troubles == ()
    late = read_fleet(Answers(present=["a", "b"], replies=[("b", WELL)]))
    assert [w.guard is not None for w in remembered.add(late, 95.0).workers] == [True, True]
    assert len(remembered.add(fleet_of(b=WELL), REMEMBERED_S).workers) == 2
    assert len(remembered.add(fleet_of(b=WELL), REMEMBERED_S + 1).workers) == 1


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
    children = [Process(pid=pid, used_bytes=size) for pid, size in sizes.items()]
    children.append(Process(pid=5, used_bytes=1, leaving=True))
    assert [child.pid for child in biggest(children, None)] == [5, 2, 4, 1, 3]
    assert [child.pid for child in biggest(children, 2)] == [5, 2]


@pytest.mark.parametrize(
    ("used", "limit", "expected"),
    [(50, 100, 0.5), (150, 100, 1.5), (None, 100, None), (50, None, None), (50, 0, None)],
)
def test_the_share_of_a_limit(used: int | None, limit: int | None, expected: float | None) -> None:
    """Unknown without a limit, and before the first reading."""
    assert share(Process(pid=1, used_bytes=used), limit) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (86_400, "1 d"),
        (86_400 * 12 + 3_600 * 4 + 59, "12 d 4 h"),
    ],
)
def test_time_spans_for_people(seconds: float, expected: str) -> None:
    """Rounded down, in the two largest units."""
    assert duration(seconds) == expected
