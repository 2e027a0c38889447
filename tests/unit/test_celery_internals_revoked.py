"""Celery's own revoked set: what its hooks see, and room for what it must not drop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.control import Inspect
from celery.utils.collections import LimitedSet
from celery.worker import control, state

from worker_guard.celery_internals import HeldRoom, revoked_hooks, watch_revoked_set
from worker_guard.celery_internals.revoked_hooks import handed_on
from worker_guard.values.source import Source, Way

Calls = list[tuple[Any, ...]]

OPERATORS = [f"operators-{n}" for n in range(1000)]


class Listener:
    """Writes down what happens to the set, and holds operators' ids in the room it is given."""

    def __init__(self) -> None:
        self.calls: Calls = []
        self.room: HeldRoom | None = None
        self.operators: set[str] = set()
        self.held: Any = ()

    def changing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def renewing(self, task_id: str) -> None:
        if self.room is not None:
            self.room.left(task_id)

    def added(self, task_id: str, source: Source, way: Way) -> None:
        self.calls.append(("added", task_id, source))
        self._hold(task_id)

    def dropped(self, task_id: str, *, full: bool) -> None:
        self.calls.append(("dropped", task_id, full))
        self._hold(task_id)

    def discarded(self, task_id: str) -> None:
        self.calls.append(("discarded", task_id))

    def looked_at(self, task_id: str) -> None:
        self.calls.append(("looked_at", task_id))

    def emptied(self) -> None:
        self.calls.append(("emptied",))

    def stamped(self, stamps: Sequence[tuple[str, Any]]) -> None:
        self.calls.append(("stamped", *stamps))

    def hands_on(self, task_id: str) -> bool:
        return task_id != "expired"

    def hello(self) -> None:
        self.calls.append(("hello",))

    def _hold(self, task_id: str) -> None:
        """As the guard does: what is an operator's and has left is put back."""
        if self.room is not None and task_id in self.operators and task_id not in self.held:
            self.room.put(task_id)


def watched(revoked: LimitedSet, listener: Listener) -> list[Any]:
    """The hooks of a worker without Mingle, on a set of the test's own."""
    blueprint = SimpleNamespace(steps={})
    worker = SimpleNamespace(consumer=SimpleNamespace(blueprint=blueprint, steps=[]))
    return watch_revoked_set(worker, revoked, listener)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def revoked(listener: Listener) -> Iterator[LimitedSet]:
    """A set of this release with room for three, which is watched."""
    limited = LimitedSet(maxlen=3, expires=100.0)
    hooks = watched(limited, listener)
    yield limited
    for hook in reversed(hooks):
        hook.undo()
    assert vars(limited).keys() == vars(LimitedSet()).keys()
    state.revoked_stamps.clear()


def added(*task_ids: str) -> Calls:
    return [("added", task_id, Source.OPERATOR) for task_id in task_ids]


# -- hooks ---------------------------------------------------------------------------------


def test_each_id_that_is_added_is_seen(revoked: LimitedSet, listener: Listener) -> None:
    """One by one, again, and from whatever ``update`` takes."""
    revoked.add("a")
    revoked.add("a")
    revoked.update(["b"])
    revoked.update({"c": time.monotonic()})
    assert listener.calls == added("a", "a", "b", "c")


def test_the_ids_of_a_set_that_is_merged_are_seen(revoked: LimitedSet, listener: Listener) -> None:
    """Celery merges these past ``add``; what falls out of the full set is seen too."""
    revoked.add("old", time.monotonic() - 50.0)
    other = LimitedSet()
    other.update(["a", "b", "c"])
    listener.calls.clear()
    revoked.update(other)
    assert set(revoked) == {"a", "b", "c"}
    assert listener.calls == [("dropped", "old", True), *added("a", "b", "c")]


def test_what_a_full_set_drops_is_seen_before_what_pushed_it_out(
    revoked: LimitedSet, listener: Listener
) -> None:
    """An id can be dropped in its own ``add``."""
    now = time.monotonic()
    for task_id, age_s in (("b", 3.0), ("a", 9.0), ("c", 1.0)):
        revoked.add(task_id, now - age_s)
    listener.calls.clear()
    revoked.add("d", now)
    revoked.add("older-than-all", now - 20.0)
    assert listener.calls == [
        ("dropped", "a", True),
        *added("d"),
        ("dropped", "older-than-all", True),
        *added("older-than-all"),
    ]


def test_what_is_old_is_told_from_what_is_too_much(revoked: LimitedSet, listener: Listener) -> None:
    """By ``purge``, and by ``pop`` itself, which gives the default for an empty set."""
    revoked.add("a", time.monotonic() - 200.0)
    revoked.purge()
    revoked.add("b")
    assert revoked.pop() == "b"
    assert revoked.pop("none") == "none"
    dropped = [call for call in listener.calls if call[0] == "dropped"]
    assert dropped == [("dropped", "a", False), ("dropped", "b", False)]


def test_what_the_application_takes_out_is_seen(revoked: LimitedSet, listener: Listener) -> None:
    """And not that ``add`` takes an id out to renew it."""
    revoked.update(["a", "b"])
    revoked.add("a")
    listener.calls.clear()
    revoked.discard("a")
    revoked.clear()
    assert listener.calls == [("discarded", "a"), ("emptied",)]
    assert not revoked


def test_stamped_headers_are_seen(revoked: LimitedSet, listener: Listener) -> None:
    """Each stamp by itself, whether the release keeps them in lists or not."""
    revoke = control.Panel.data["revoke_by_stamped_headers"]
    revoke(SimpleNamespace(hostname="w@test"), {"customer": ["17", "18"], "region": "north"})
    (call,) = listener.calls
    assert set(call[1:]) == {("customer", "17"), ("customer", "18"), ("region", "north")}


def test_a_list_of_ids_is_handed_on_without_those_that_expired() -> None:
    """So Celery 5.7 sends them."""
    assert handed_on(["operators", "expired"], Listener().hands_on) == ["operators"]


def test_stamps_that_lie_ahead_are_not_handed_on() -> None:
    """Celery 5.6.3 and before send them, and a peer would keep those ids for ever."""
    before = time.monotonic()
    given = {"old": 5.0, "pair": (6.0, "pair"), "held": 2.0**40, "expired": 7.0}
    handed = handed_on(given, Listener().hands_on)
    assert before <= handed.pop("held") <= time.monotonic()
    assert handed == {"old": 5.0, "pair": 6.0}


# -- room ----------------------------------------------------------------------------------


def flood(
    *, messages: int, operators: Sequence[str], maxlen: int = 50_000, guarded: bool = True
) -> tuple[LimitedSet, Listener]:
    """A set into which operators' ids come, and then those of so many expired messages."""
    revoked, listener = LimitedSet(maxlen=maxlen, expires=10_800.0), Listener()
    hooks: list[Any] = []
    if guarded:
        hooks = watched(revoked, listener)
        listener.room, listener.held = HeldRoom(revoked), revoked
        listener.operators = set(operators)
    for task_id in operators:
        revoked.add(task_id)
    for number in range(messages):
        revoked.add(f"expired-{number}")
    for hook in reversed(hooks):
        hook.undo()
    return revoked, listener


def test_a_flood_takes_no_operators_id_out() -> None:
    """Of the others the set holds as many as without the guard, and the same ones."""
    revoked, listener = flood(messages=60_000, operators=OPERATORS)
    plain, _ = flood(messages=60_000, operators=OPERATORS, guarded=False)
    ids = set(revoked)
    assert set(OPERATORS) <= ids
    assert ids - set(OPERATORS) == set(plain)
    assert len(plain) == 50_000
    assert all(full for call, *_, full in listener.calls if call == "dropped")


def test_all_of_a_set_can_be_operators_ids() -> None:
    """Then there is still the room for others that Celery would have."""
    revoked, _ = flood(messages=20, operators=OPERATORS, maxlen=10)
    assert set(revoked) >= set(OPERATORS)
    assert set(revoked) - set(OPERATORS) == {f"expired-{n}" for n in range(10, 20)}


@pytest.fixture
def room(revoked: LimitedSet, listener: Listener) -> HeldRoom:
    """The room in the watched set."""
    listener.room, listener.held = HeldRoom(revoked), revoked
    return listener.room


def test_what_has_aged_out_stays(revoked: LimitedSet, listener: Listener, room: HeldRoom) -> None:
    """It is put back while Celery purges the set, which goes on after it."""
    old = time.monotonic() - 200.0
    listener.operators = {"a", "b"}
    LimitedSet.add(revoked, "a", old)
    LimitedSet.add(revoked, "expired", old + 1.0)
    LimitedSet.add(revoked, "b", old + 2.0)
    revoked.purge()
    assert set(revoked) == {"a", "b"}
    revoked.purge(now=time.monotonic() + 1e6)
    assert set(revoked) == {"a", "b"}


def test_a_merge_keeps_what_is_held(
    revoked: LimitedSet, listener: Listener, room: HeldRoom
) -> None:
    """Celery 5.6.3 and before rebuild the heap for it, and compare ids of equal stamps."""
    listener.operators = {"a", "b"}
    for task_id in ("a", "b"):
        room.put(task_id)
    other = LimitedSet(maxlen=100, expires=100.0)
    other.update(f"{n}" for n in range(20))
    other.add("a")
    revoked.update(other)
    assert {"a", "b"} <= set(revoked)
    assert len(set(revoked) - {"a", "b"}) in (2, 3)  # "a" has a place of its own, or not
    revoked.update(f"later-{n}" for n in range(10))
    assert set(revoked) == {"a", "b", "later-7", "later-8", "later-9"}


def test_what_was_taken_back_leaves_with_its_room(revoked: LimitedSet, room: HeldRoom) -> None:
    """The application did not take it out; the set's limit is its own again."""
    for task_id in ("a", "b"):
        room.put(task_id)
    assert revoked.maxlen == 5
    room.remove("a")
    room.remove("unknown")
    assert (set(revoked), revoked.maxlen) == ({"b"}, 4)


def test_what_has_ended_is_left_to_celery(
    revoked: LimitedSet, listener: Listener, room: HeldRoom
) -> None:
    """Its age counts from then on."""
    room.put("a")
    room.release("a")
    room.release("unknown")
    assert (set(revoked), revoked.maxlen) == ({"a"}, 3)
    revoked.purge(now=time.monotonic() + 50.0)
    assert set(revoked) == {"a"}
    revoked.purge(now=time.monotonic() + 101.0)
    assert not revoked


def test_a_set_that_is_left_is_celerys_again(revoked: LimitedSet, room: HeldRoom) -> None:
    """No stamp lies ahead, so a statedb or a peer gets none."""
    for task_id in ("a", "b", "c", "d"):
        room.put(task_id)
    room.undo()
    assert (set(revoked), revoked.maxlen) == ({"a", "b", "c", "d"}, 3)
    stamps = [float(s[0] if isinstance(s, tuple) else s) for s in revoked.as_dict().values()]
    assert max(stamps) <= time.monotonic()
    revoked.purge()
    assert set(revoked) == {"b", "c", "d"}


def test_a_set_without_a_limit_has_none_later() -> None:
    """The application may have one."""
    revoked = LimitedSet(maxlen=0, expires=100.0)
    room = HeldRoom(revoked)
    room.put("a")
    assert revoked.maxlen == 0
    room.undo()
    assert revoked.maxlen == 0


def test_an_id_that_leaves_takes_no_other_with_it(revoked: LimitedSet, room: HeldRoom) -> None:
    """Celery 5.6.3 and before drop the next one in place of what is left of it in the heap."""
    LimitedSet.add(revoked, "taken-back", time.monotonic() - 99.0)
    LimitedSet.add(revoked, "fresh")
    room.remove("taken-back")
    revoked.purge(now=time.monotonic() + 50.0)
    assert set(revoked) == {"fresh"}
    assert (revoked.pop(), revoked.pop("none is left")) == ("fresh", "none is left")


def test_a_set_of_the_applications_own_takes_what_celery_gives_it(listener: Listener) -> None:
    """Its ``add`` knows no stamp, and its ``pop`` no default."""

    class Own(LimitedSet):
        def add(self, item: str) -> None:
            LimitedSet.add(self, item)

        def pop(self) -> Any:
            return LimitedSet.pop(self)

    revoked = Own(maxlen=1)
    hooks = watched(revoked, listener)
    revoked.add("a")
    revoked.add("b")
    HeldRoom(revoked).put("c")
    assert set(revoked) == {"b", "c"}
    for hook in reversed(hooks):
        hook.undo()


@pytest.mark.usefixtures("revoked")
def test_mingle_says_no_more_than_hello_answers() -> None:
    """What the application asks by the same call is its own affair."""

    def ask(_command: str, *, from_node: str, revoked: Any) -> Any:
        return revoked

    asking = SimpleNamespace(_request=ask)
    mingle = revoked_hooks._coming_from(Source.INHERITED)(Inspect.hello)
    assert mingle(asking, "w@test", ["a", "expired"]) == ["a"]
    assert Inspect.hello(asking, "w@test", ["a", "expired"]) == ["a", "expired"]
