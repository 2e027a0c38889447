"""What is the matter with a worker, and what to do about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.answers import ALERT, MB, MIB, WELL, fleet_of
from worker_guard.commands.status.troubles import share
from worker_guard.status_model import ProcessStatus


def troubles(answer: Any) -> list[tuple[str, str, str]]:
    """What is the matter with a worker that answers so, and what to do."""
    (worker,) = fleet_of(w=answer).workers
    return [(trouble.kind, trouble.text, trouble.to_do) for trouble in worker.troubles]


def alert(name: str, value: float | None = None, threshold: float | None = None) -> dict[str, Any]:
    """An alert that is active."""
    return {"alert": name, "value": value, "threshold": threshold}


def memory(*children: dict[str, Any], limit: int | None = 100 * MB, **more: Any) -> dict[str, Any]:
    """A worker's memory with these children."""
    return {**WELL, "memory": {"child_limit_bytes": limit, "children": list(children), **more}}


OVER = {"pid": 7, "used_bytes": 130 * MB}
LEAVING = {**OVER, "leaving": True, "task": {"task_name": "m.send", "running_s": 75}}
SUSPENDED = {"reason": "baseline_over_limit", "baseline_bytes": 120 * MB, "limit_bytes": 100 * MB}
STALLED = {"stalled": True, "queue": "work", "waiting_messages": 12, "idle_s": 130.0}
STALLED_TEXT = (
    "the consumer has stalled: 12 messages wait in the queue work, and none has come for 2 min 10 s"
)
TO_RESTART = "restart the worker; worker_guard_stall_action can have it connect again by itself"
KILLED = {
    "age_s": 300,
    "child_pid": 7,
    "signal": "SIGKILL",
    "task_id": "470328a3",
    "task_name": "m.send",
    "used_bytes": 130 * MB,
}
OVER_TEXT = "child 7 uses 130 MB, its limit is 100 MB"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (WELL, []),
        ({**WELL, "alerts": []}, []),
        ({**WELL, "parts": {"results": "no Redis"}}, []),
        ({**WELL, "stall": {"stalled": False}}, []),
        (
            {**WELL, "stall": {**STALLED, "action": "log"}},
            [
                (
                    "stalled",
                    STALLED_TEXT,
                    TO_RESTART,
                )
            ],
        ),
        (
            {**WELL, "stall": {**STALLED, "action": "wait", "held_back_by": 2}},
            [
                (
                    "stalled",
                    STALLED_TEXT,
                    "nothing; it connects again when 2 tasks would no longer run twice by that",
                )
            ],
        ),
        (
            {**WELL, "stall": {**STALLED, "action": "reconnect"}},
            [("stalled", STALLED_TEXT, "nothing; the guard has it connect again")],
        ),
        (
            {**WELL, "stall": {**STALLED, "action": "shutdown"}},
            [("stalled", STALLED_TEXT, "nothing; it shuts down when its tasks have ended")],
        ),
        (
            {**WELL, "dry_run": True, "stall": {**STALLED, "action": "reconnect"}},
            [("stalled", STALLED_TEXT, "restart the worker: in a dry run the guard does nothing")],
        ),
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
                    "nothing; it leaves when its task ends (m.send, which has run for 1 min 15 s)",
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
                    "the guard will not clear 23 ids, the threshold is 10, for 5 min",
                    "see why they stay: the how-to page, “Find out why an id stays”",
                )
            ],
        ),
        (
            {**WELL, "alerts": [ALERT], "consecutive_failures": {"revoked_verify": 2}},
            [
                (
                    "alert",
                    "the guard will not clear 23 ids, the threshold is 10, for 5 min",
                    "make the result backend answer again; then the guard clears them",
                ),
                (
                    "part_fails",
                    "revoked_verify failed 2 times in a row",
                    "see why: grep worker_guard.part_failed in the worker's log",
                ),
            ],
        ),
        (
            {
                **WELL,
                "alerts": [{"alert": "redis_memory", "value": 0.83, "threshold": 0.8}],
            },
            [
                (
                    "alert",
                    "the result backend's Redis uses 83 % of its memory, the threshold is 80 %",
                    "celery guard cleanup --dry-run says which old results would go",
                )
            ],
        ),
        (
            {**WELL, "alerts": [alert("new")]},
            [("alert", "new is ?, the threshold is ?", "see the worker's log")],
        ),
        (
            {**WELL, "alerts": [alert("unacked_without_index", 2, 0)]},
            [
                (
                    "alert",
                    (
                        "2 unacknowledged messages in the broker have no index: if no worker holds "
                        "them any more, they are never delivered again"
                    ),
                    "give each an index: the how-to page, “Put messages back into unacked_index”",
                )
            ],
        ),
        (
            {
                **memory(suspects=[{"task": "mail.send", "runs": 2, "growth_bytes": MB}]),
                "alerts": [{"alert": "recycles_per_hour", "value": 2, "threshold": 1}],
            },
            [
                (
                    "alert",
                    "2 children were replaced in the last hour, the threshold is 1",
                    "fix the task whose memory grows: mail.send",
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
            memory(total_bytes=300 * MB, total_limit_bytes=200 * MB),
            [
                (
                    "over_limit",
                    "all processes together use 300 MB, their limit is 200 MB",
                    "nothing; it is replaced soon",
                )
            ],
        ),
        (memory(total_bytes=200 * MB, total_limit_bytes=200 * MB), []),
        (
            {**WELL, "last_killed": {**KILLED, "oom": True}},
            [
                (
                    "child_killed",
                    (
                        "child 7 was killed by the kernel, which had no memory left, 5 min ago, "
                        "running m.send 470328a3; it last used 130 MB"
                    ),
                    (
                        "set worker_guard_total_memory_limit, give it more memory, or run fewer "
                        "children"
                    ),
                )
            ],
        ),
        (
            {**WELL, "last_killed": {"child_pid": 7, "signal": "SIGKILL"}},
            [
                (
                    "child_killed",
                    "child 7 was killed by SIGKILL",
                    "find out who sends SIGKILL: the kernel's log, a supervisor, a person",
                )
            ],
        ),
        (
            {**WELL, "last_killed": {**KILLED, "signal": "SIGSEGV", "used_bytes": None}},
            [
                (
                    "child_killed",
                    "child 7 was killed by SIGSEGV, 5 min ago, running m.send 470328a3",
                    "if the task calls native code, look there; see the kernel's log",
                )
            ],
        ),
        ({**WELL, "last_killed": {**KILLED, "age_s": 3600}}, []),
        (
            memory(suspended={**SUSPENDED, "setting": "worker_guard_total_memory_limit"}),
            [
                (
                    "recycling_suspended",
                    (
                        "no child is replaced: all processes together, 120 MB, would be over the "
                        "limit of 100 MB with new children"
                    ),
                    (
                        "raise worker_guard_total_memory_limit, load less before the fork, or run "
                        "fewer children"
                    ),
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
                        "no child is replaced: a replacement is not up within the time that "
                        "Celery gives it; it is tried again in 12 min"
                    ),
                    "raise worker_proc_alive_timeout, or make children start faster",
                )
            ],
        ),
        (
            {"error": "worker_guard_enabled is False"},
            [
                (
                    "no_guard",
                    "worker_guard_enabled is False",
                    "if it should run there, fix that and restart the worker",
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
                        'put app.steps["worker"].add(WorkerGuard) into the module of its app, '
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
                    "the answer is not a guard's status: the answer is not an object: 'pong'",
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
    ("used", "limit", "expected"),
    [(50, 100, 0.5), (150, 100, 1.5), (None, 100, None), (50, None, None), (50, 0, None)],
)
def test_the_share_of_a_limit(used: int | None, limit: int | None, expected: float | None) -> None:
    """Unknown without a limit, and before the first reading."""
    assert share(ProcessStatus(pid=1, used_bytes=used), limit) == expected
