"""What a worker answered, read: an older release's answer, a newer one's, and nonsense."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.screens.draw import recorded
from worker_guard.commands.status.reply import BrokenReplyError, GuardState, read_guard


def answer() -> dict[str, Any]:
    """What a real worker answered."""
    found: Any = dict(recorded().replies)["mail@test"]
    return dict(copy.deepcopy(found))


def test_a_real_answer_is_read_whole() -> None:
    """Each figure comes where it belongs."""
    given = answer()
    guard = read_guard(given)
    assert (guard.version, guard.pool, guard.concurrency) == (given["version"], "prefork", 4)
    assert (guard.uptime_s, guard.active_tasks, guard.dry_run) == (given["uptime_s"], 2, False)
    assert guard.revoked is not None
    assert vars(guard.revoked) == given["revoked"]
    assert guard.memory is not None
    assert [child.pid for child in guard.memory.children] == [
        child["pid"] for child in given["memory"]["children"]
    ]
    busy = {c.pid: vars(c.task) for c in guard.memory.children if c.task is not None}
    assert busy == {c["pid"]: c["task"] for c in given["memory"]["children"] if c["task"]}
    assert len(busy) == 2
    assert guard.memory.main.used_bytes == given["memory"]["parent"]["used_bytes"]
    assert guard.memory.main_limit_bytes == given["memory"]["parent_limit_bytes"]
    assert guard.last_cleanup is not None
    assert guard.last_cleanup.age_s == given["last_cleanup"]["age_s"]
    assert guard.off == {"metrics_port": "worker_guard_metrics_port is None"}
    assert guard.failing == {}
    assert guard.totals == given["totals"]


def test_parts_that_are_not_well() -> None:
    """A part that is off has its reason, one that fails its count."""
    given = answer()
    given["parts"]["results"] = "results are not kept in Redis"
    given["consecutive_failures"]["memory"] = 3
    given["alerts"] = [
        {"alert": "revoked_tasks", "value": 23, "threshold": 10, "since_s": 4.5},
    ]
    guard = read_guard(given)
    assert guard.off["results"] == "results are not kept in Redis"
    assert guard.failing == {"memory": 3}
    assert [vars(alert) for alert in guard.alerts] == given["alerts"]


def nulls(given: Any) -> Any:
    """The same with null for each value."""
    return dict.fromkeys(given) if isinstance(given, dict) else given


@pytest.mark.parametrize("name", sorted(answer().keys() - {"version"}))
def test_what_is_missing_or_null_is_unknown(name: str) -> None:
    """An older release lacks a field, and is read all the same."""
    for change in ("absent", "null", "nulls"):
        given = answer()
        if change == "absent":
            del given[name]
        else:
            given[name] = None if change == "null" else nulls(given[name])
        assert isinstance(read_guard(given), GuardState)


def test_an_unknown_field_is_let_be() -> None:
    """A newer release says more."""
    assert isinstance(read_guard({**answer(), "mood": ["fine"]}), GuardState)


def wrong(given: Any, path: str = "") -> list[tuple[str, Any]]:
    """The answer with one value of a wrong type each, for each value that is read."""
    found = []
    for name, value in given.items():
        others: tuple[Any, ...] = ("text", 1.5, True, {}, [1])
        for other in others:
            if type(other) is type(value) or value is None or name in {"at", "rss_bytes"}:
                continue
            if isinstance(value, float) and other == 1.5:
                continue
            found.append((f"{path}{name}={other!r}", {**given, name: other}))
        if isinstance(value, dict) and name not in {"revoked_tasks_kept"}:
            found += [(w, {**given, name: v}) for w, v in wrong(value, f"{path}{name}.")]
    return found


#: Shown to nobody, so not read: a release may change them.
UNREAD = ("pid=", "memory.metric", "suspects", "keys_", "duration_s", "revoked_tasks_kept")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(given, id=what)
        for what, given in wrong(answer())
        if not any(f".{name}" in f".{what}" for name in UNREAD)
    ],
)
def test_a_value_of_the_wrong_type_makes_a_broken_answer(given: Any) -> None:
    """Half of an answer is not taken for all of it."""
    with pytest.raises(BrokenReplyError):
        read_guard(given)


@pytest.mark.parametrize(
    "given",
    [None, 7, "pong", [], {}, {"ok": "pong"}, {"version": 1}, b"x", {"version": float("nan")}],
    ids=repr,
)
def test_nonsense_is_a_broken_answer(given: object) -> None:
    """Whatever it is, the error says in one short line what came."""
    with pytest.raises(BrokenReplyError) as caught:
        read_guard(given)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)
