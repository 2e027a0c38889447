"""From answers to rows: who is there, what is the matter, what is worth a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from worker_guard.commands.status.reply import Process
from worker_guard.commands.status.view import (
    REMEMBERED_S,
    Answers,
    Fleet,
    Remembered,
    biggest,
    document,
    is_unknown_command,
    read_fleet,
)

MB, MIB = 10**6, 2**20

WELL: dict[str, Any] = {"version": "1.0"}
ALERT = {"alert": "revoked_tasks", "value": 23, "threshold": 10, "since_s": 300}


def fleet_of(asked: tuple[str, ...] = (), **replies: Any) -> Fleet:
    """The fleet of workers that are there and answer so."""
    return read_fleet(
        Answers(present=list(replies), replies=list(replies.items()), asked=list(asked))
    )


def troubles(answer: Any) -> list[tuple[str, str, str]]:
    """What is the matter with a worker that answers so, and what to do."""
    (worker,) = fleet_of(w=answer).workers
    return [(trouble.kind, trouble.text, trouble.to_do) for trouble in worker.troubles]


def memory(*children: dict[str, Any], limit: int | None = 100 * MB, **more: Any) -> dict[str, Any]:
    """A worker's memory with these children."""
    return {**WELL, "memory": {"child_limit_bytes": limit, "children": list(children), **more}}


OVER = {"pid": 7, "used_bytes": 130 * MB}
LEAVING = {**OVER, "leaving": True, "task": {"task_name": "mail.send", "running_s": 75}}
SUSPENDED = {"reason": "baseline_over_limit", "baseline_bytes": 120 * MB, "limit_bytes": 100 * MB}
OVER_TEXT = "child 7 uses 130 MB, its limit is 100 MB"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (WELL, []),
        ({**WELL, "alerts": []}, []),
        ({**WELL, "parts": {"results": "no Redis"}}, []),
        (memory({"pid": 7, "used_bytes": 100 * MB}), []),
        (memory({"pid": 7, "used_bytes": None}), []),
        (memory(OVER, limit=None), []),
        (memory(OVER), [("over_limit", OVER_TEXT, "nothing; it is replaced soon")]),
        (
            memory(LEAVING),
            [
                (
                    "over_limit",
                    OVER_TEXT,
                    "nothing; it leaves when its task ends (mail.send, which has run for 1 min)",
                )
            ],
        ),
        (
            {**memory(OVER), "dry_run": True},
            [("over_limit", OVER_TEXT, "nothing in a dry run: it would be replaced")],
        ),
        (
            {**memory(OVER), "parts": {"recycling": "the solo pool has no children"}},
            [
                (
                    "over_limit",
                    OVER_TEXT,
                    "restart the worker: recycling is off: the solo pool has no children",
                )
            ],
        ),
        (
            memory(OVER, {**OVER, "pid": 8, "used_bytes": 140 * MB}),
            [
                (
                    "over_limit",
                    "2 children use more than their limit of 100 MB: 8 (140 MB), 7 (130 MB)",
                    "nothing; it is replaced soon",
                )
            ],
        ),
        (
            memory(parent={"pid": 1, "used_bytes": 3 * MIB}, parent_limit_bytes=2 * MIB),
            [
                (
                    "over_limit",
                    "the main process uses 3 MiB, its limit is 2 MiB",
                    "restart the worker, unless worker_guard_parent_action is shutdown",
                )
            ],
        ),
        (
            {**WELL, "alerts": [ALERT]},
            [
                (
                    "alert",
                    "23 ids will not be cleared by the guard, the threshold is 10, for 5 min",
                    "see why they stay: the how-to page, “Find out why an id stays”",
                )
            ],
        ),
        (
            {**WELL, "alerts": [ALERT], "consecutive_failures": {"revoked_verify": 2}},
            [
                (
                    "alert",
                    "23 ids will not be cleared by the guard, the threshold is 10, for 5 min",
                    "have the result backend answer again; then they are cleared",
                ),
                (
                    "part_fails",
                    "revoked_verify failed 2 times in a row",
                    "see why: grep worker_guard.part_failed in the worker's log",
                ),
            ],
        ),
        (
            {**WELL, "alerts": [{"alert": "redis_memory", "value": 0.83, "threshold": 0.8}]},
            [
                (
                    "alert",
                    "the result backend's Redis uses 83 % of its memory, the threshold is 80 %",
                    "celery guard sweep --dry-run says which old results would go",
                )
            ],
        ),
        (
            {**WELL, "alerts": [{"alert": "new"}]},
            [("alert", "new is ?, the threshold is ?", "see the worker's log")],
        ),
        (
            {
                **memory(suspects=[{"task": "mail.send"}]),
                "alerts": [{"alert": "recycles_per_hour", "value": 2, "threshold": 1}],
            },
            [
                (
                    "alert",
                    "2 children were replaced in the last hour, the threshold is 1",
                    "mend the task that grows: mail.send",
                )
            ],
        ),
        (
            {**WELL, "consecutive_failures": {"memory": 1, "results": 0}},
            [
                (
                    "part_fails",
                    "memory failed 1 time",
                    "see why: grep worker_guard.part_failed in the worker's log",
                )
            ],
        ),
        (
            {**WELL, "consecutive_failures": {"results": 4}},
            [
                (
                    "part_fails",
                    "results failed 4 times in a row",
                    "see why: grep worker_guard.part_failed in the worker's log",
                )
            ],
        ),
        (
            memory(suspended=SUSPENDED),
            [
                (
                    "recycling_suspended",
                    (
                        "no child is replaced: a new child uses 120 MB and so is already over the "
                        "limit of 100 MB"
                    ),
                    "raise worker_guard_child_memory_limit",
                )
            ],
        ),
        (
            memory(suspended={"reason": "regrows_at_once", "setting": "its_setting"}),
            [
                (
                    "recycling_suspended",
                    (
                        "no child is replaced: each new child is over the limit again after its "
                        "first tasks"
                    ),
                    "raise its_setting",
                )
            ],
        ),
        (
            memory(suspended={"reason": "replacement_not_up", "retry_in_s": 720}),
            [
                (
                    "recycling_suspended",
                    (
                        "no child is replaced: each new child ends before it is up; it is tried "
                        "again in 12 min"
                    ),
                    "see its error in the worker's log",
                )
            ],
        ),
        (
            memory(
                suspended={
                    "reason": "replacement_not_up",
                    "setting": "worker_proc_alive_timeout",
                    "retry_in_s": 720,
                }
            ),
            [
                (
                    "recycling_suspended",
                    (
                        "no child is replaced: a replacement does not come up in the time that "
                        "Celery gives it; it is tried again in 12 min"
                    ),
                    "raise worker_proc_alive_timeout, or make the start of a child faster",
                )
            ],
        ),
        (
            {"error": "worker_guard_enabled is False"},
            [
                (
                    "no_guard",
                    "worker_guard_enabled is False",
                    "if it is to run there, mend that and restart the worker",
                )
            ],
        ),
        (
            {"error": "KeyError('guard')"},
            [
                (
                    "unknown_command",
                    "worker_guard is not loaded there",
                    (
                        'app.steps["worker"].add(WorkerGuard) in the module of its app, '
                        "then restart it"
                    ),
                )
            ],
        ),
        (
            "pong",
            [
                (
                    "broken_reply",
                    "not the answer of a guard: the answer is not an object: 'pong'",
                    "run the same release of worker_guard there and here",
                )
            ],
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_is_the_matter(answer: Any, expected: list[tuple[str, str, str]]) -> None:
    """Each kind of trouble, what to do, and what is none: a part that the configuration has off."""
    assert troubles(answer) == expected
    assert fleet_of(w=answer).trouble == bool(expected)


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
        "answered": 2,
        "expected": None,
        "workers": {
            "a": {
                "guard": answer,
                "troubles": [
                    {
                        "kind": "alert",
                        "text": (
                            "23 ids will not be cleared by the guard, the threshold is 10, "
                            "for 5 min"
                        ),
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
                        "to_do": "if it is to run there, mend that and restart the worker",
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
    assert [t.text for t in a.troubles] == ["no answer for 1 min; the figures are from before"]
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
    children = [Process(pid=pid, used_bytes=size) for pid, size in sizes.items()]
    children.append(Process(pid=5, used_bytes=1, leaving=True))
    assert [child.pid for child in biggest(children, None)] == [5, 2, 4, 1, 3]
    assert [child.pid for child in biggest(children, 2)] == [5, 2]
