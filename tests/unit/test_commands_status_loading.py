"""What a worker answered: this release's, an older one's, a newer one's, and nonsense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import pytest

from tests.harness.answers import FULL, WELL
from tests.screens.draw import recorded
from worker_guard.commands.status.loading import BrokenReplyError, load_status
from worker_guard.events import Suspect
from worker_guard.status_model import (
    GuardStatus,
)


def answer() -> Any:
    """What the worker of this status answers, by JSON."""
    return json.loads(json.dumps(asdict(FULL)))


def values(given: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of this answer, by its path in the error."""
    if path:
        yield path, given
    if isinstance(given, list):
        for number, item in enumerate(given):
            yield from values(item, f"{path}[{number}]")
    elif isinstance(given, dict):
        by_name = path.rsplit(".", 1)[-1] in {
            "parts", "consecutive_failures", "tasks", "alert_thresholds",
        }  # fmt: skip
        for name, value in given.items():
            inner = f"{path}.{name}" if path else name
            yield from values(value, f"{path}[{name!r}]" if by_name else inner)


def with_value(path: str, value: Any) -> Any:
    """The answer with another value there."""
    whole = answer()
    *steps, last = path.replace("'", "").replace("]", "").replace("[", ".").split(".")
    place = whole
    for step in steps:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return whole


PATHS = [path for path, _ in values(answer())]


@pytest.mark.parametrize("whole", [answer(), asdict(FULL)], ids=["json", "pickle"])
def test_an_answer_is_loaded_whole(whole: Any) -> None:
    """Each field of each class, by JSON, or by pickle, which keeps tuples."""
    assert load_status(whole) == FULL


@pytest.mark.parametrize("name", ["mail@test", "images@test"])
def test_the_answer_of_a_real_worker_is_loaded_whole(name: str) -> None:
    """Nothing is lost and nothing is made up."""
    given = dict(recorded().replies)[name]
    assert json.loads(json.dumps(asdict(load_status(given)))) == given


def test_parts_that_are_not_well() -> None:
    """A part that is off has its reason, one that fails its count."""
    status = load_status(answer())
    assert status.off == {"results": "no Redis"}
    assert status.failing == {"memory": 3}


@pytest.mark.parametrize("path", PATHS)
def test_null_is_the_default(path: str) -> None:
    """As is a field that an older release lacks; only an element of a list can't be null."""
    given = with_value(path, None)
    needed = {f"memory.suspects[0].{field.name}" for field in fields(Suspect)} | {"version"}
    if path in needed or path.endswith(("0]", "1]")):
        with pytest.raises(BrokenReplyError):
            load_status(given)
    else:
        assert load_status(given) != FULL


def test_what_is_missing_is_the_default() -> None:
    """The release alone must be there."""
    assert load_status(WELL) == GuardStatus(version=WELL["version"])


def test_an_unknown_field_is_ignored() -> None:
    """A newer release says more."""
    assert load_status(with_value("mood", ["fine"])) == FULL
    assert load_status(with_value("memory.children[1].mood", 1)) == FULL


@pytest.mark.parametrize("path", PATHS)
def test_a_value_of_the_wrong_type_makes_a_broken_answer(path: str) -> None:
    """Half of an answer is not taken for all of it; the error names the field."""
    kind = type(dict(values(answer()))[path])
    right = {int, float} if kind is float else {kind}
    values_of_all_types: tuple[object, ...] = ("text", 7, 1.5, True, {}, ["x"])
    for other in values_of_all_types:
        # Each list is one of objects.
        if type(other) in right and kind is not list:
            continue
        with pytest.raises(BrokenReplyError) as caught:
            load_status(with_value(path, other))
        assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "the answer is not an object: None"),
        ("pong", "the answer is not an object: 'pong'"),
        ([], "the answer is not an object: []"),
        ({}, "the answer has no version: {}"),
        ({"ok": "pong"}, "the answer has no version: {'ok': 'pong'}"),
        ({"version": 1}, "version is not a text: 1"),
        ({"version": "1", "dry_run": 1}, "dry_run is not true or false: 1"),
        ({"version": "1", "pid": True}, "pid is not a whole number: True"),
        ({"version": "1", "uptime_s": True}, "uptime_s is not a number: True"),
        ({"version": "1", "alerts": {}}, "alerts is not a list: {}"),
        (
            {"version": "1", "memory": {"children": [{}, {"used_bytes": 1.5}]}},
            "memory.children[1].used_bytes is not a whole number: 1.5",
        ),
        (
            {"version": "1", "memory": {"suspects": [{"task": "t", "runs": 1}]}},
            "memory.suspects[0] has no growth_bytes: {'task': 't', 'runs': 1}",
        ),
        ({"version": "1", "parts": {"a\n" * 90: 1}}, "parts['a\\na\\n"),
        (b"x", "b'x' is not JSON"),
        ({"version": float("nan")}, "{'version': nan} is not JSON"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_nonsense_is_a_broken_answer(given: object, told: str) -> None:
    """Whatever it is, the error says in one short line what came."""
    with pytest.raises(BrokenReplyError) as caught:
        load_status(given)
    assert str(caught.value).startswith(told)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)
