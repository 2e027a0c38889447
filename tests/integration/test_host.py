"""What the guard leaves of the host when it is gone, and what it never takes from it."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, current_app, signals
from celery.app.control import Inspect
from celery.concurrency.solo import TaskPool
from celery.contrib.testing.worker import start_worker
from celery.utils.collections import LimitedSet
from celery.worker import control, request, state

from tests.harness.workers import ROOT, wait_for
from worker_guard import WorkerGuard, celery_internals
from worker_guard.bootstep import GuardTimer
from worker_guard.celery_internals import Discarding, Hook, MissingInternalError
from worker_guard.event_log import LOGGER, Reporter, open_log
from worker_guard.events import CleanupCompleted, Event, Stopped
from worker_guard.guard import Guard
from worker_guard.part import Context, Part, PartOff
from worker_guard.revoked.backfill import BackfillCounter
from worker_guard.revoked.holder import Holder
from worker_guard.revoked.ledger import Ledger, Origin
from worker_guard.revoked.set_watch import RevokedWatch
from worker_guard.settings import Settings
from worker_guard.values.source import Source, Stamp, Target, Way


def hooks_in_place() -> dict[str, Any]:
    """Whatever the guard hooks into, as it is now."""
    return {
        **{
            name: vars(state.revoked).get(name)
            for name in ("add", "update", "pop", "discard", "clear", "purge", "maxlen")
        },
        "overload": vars(state.revoked).get("max_heap_percent_overload"),
        "maybe_expire": vars(request.Request)["maybe_expire"],
        "revoked": vars(request.Request)["revoked"],
        "asks": vars(Inspect)["hello"],
        "commands": dict(control.Panel.data),
        "receivers": len(signals.task_revoked.receivers or ()),
        "handlers": list(logging.getLogger(LOGGER).handlers),
        "propagate": logging.getLogger(LOGGER).propagate,
    }


@pytest.mark.filterwarnings("ignore")
def test_a_stopped_guard_leaves_no_hook() -> None:
    """A worker in this process, started and stopped twice; the set stays the same object."""
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(worker_guard_interval=0.1, worker_guard_revoked_grace=0.0)
    app.steps["worker"].add(WorkerGuard)

    @app.task(name="test.add")
    def add(x: int, y: int) -> int:
        return x + y

    before, the_set = hooks_in_place(), state.revoked
    for _ in range(2):
        with start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=60):
            assert hooks_in_place() != before
            assert GuardTimer in app.steps["consumer"]
            app.send_task("test.add", (1, 2), task_id="expired", expires=-1)
            app.control.revoke("operators")
            result = app.send_task("test.add", (1, 2))
            assert result.get(timeout=30) == 3
            wait_for(lambda: "expired" not in state.revoked, "the id to be cleared")
            wait_for(lambda: "operators" in state.revoked, "the revoke to arrive")
            pickled = pickle.loads(pickle.dumps(state.revoked))
            assert type(pickled) is LimitedSet
            assert vars(pickled).get("add") is None
        assert hooks_in_place() == before
        assert GuardTimer not in app.steps["consumer"]
    assert state.revoked is request.revoked_tasks is the_set
    assert "operators" in state.revoked
    state.revoked.clear()
    app.close()


def test_hooks_that_somebody_wrapped_again_only_pass_on() -> None:
    """Undone out of order, none tears another's wrapper away."""
    calls: list[str] = []
    place: dict[str, Any] = {"f": lambda: calls.append("original")}

    def wrapper(name: str) -> Any:
        def wrap(function: Any) -> Any:
            def wrapped() -> None:
                calls.append(name)
                function()

            return wrapped

        return wrap

    original = place["f"]
    first = Hook(place, "f", wrapper("first"))
    second = Hook(place, "f", wrapper("second"))
    first.undo()
    place["f"]()
    second.undo()
    place["f"]()
    assert calls == ["second", "original", "original"]
    first.undo()
    assert calls == ["second", "original", "original"]
    place["f"] = original


def test_an_id_that_was_cleared_and_revoked_later_outlives_its_old_entry() -> None:
    """In Celery 5.6.3 and before, purging the old heap entry takes the new id with it."""
    revoked = LimitedSet(maxlen=100, expires=100.0)
    revoked.add("x", 1000.0)
    actor = Discarding(revoked)
    actor.clear(["x"])
    actor.finish()
    revoked.add("x", 1090.0)
    revoked.purge(now=1150.0)
    assert "x" in revoked
    actor.finish()
    assert "max_heap_percent_overload" not in vars(revoked)


def test_a_fork_inherits_no_lock() -> None:
    """A child that is forked while a line is being written can write its own, and all others."""
    root, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("formatted: %(message)s"))
    root.addHandler(handler)
    log, close = open_log("json")
    report = Reporter(log, worker="w@test", dry_run=False)
    event = Stopped(
        revoked_tasks_cleared=0,
        expired_results_deleted=0,
        task_states_cleaned=0,
        children_recycled=0,
    )
    written, go_on = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            written.set()
            go_on.wait(30)
            return len(text)

    level = logging.getLogger(LOGGER).level
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    handler.setStream(Slow())
    writer = threading.Thread(target=report, args=(event,))
    try:
        writer.start()
        assert written.wait(30)
        child = os.fork()
        if child == 0:
            handler.stream = io.StringIO()
            root.error("a task's")
            report(event)
            tasks, guards = handler.stream.getvalue().splitlines()
            sound = tasks == "formatted: a task's" and json.loads(guards)["worker"] == "w@test"
            os._exit(0 if sound else 1)

        def ended() -> tuple[int, int] | None:
            pid, status = os.waitpid(child, os.WNOHANG)
            return (pid, status) if pid else None

        assert wait_for(ended, "the child to end") == (child, 0)
    finally:
        go_on.set()
        writer.join()
        close()
        root.removeHandler(handler)
        logging.getLogger(LOGGER).setLevel(level)


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import worker_guard", {"redis", "psutil", "structlog", "rich", "prometheus_client"}),
        ("import worker_guard.cli", {"redis", "psutil", "structlog", "rich", "prometheus_client"}),
    ],
)
def test_imports_are_light(code: str, never: set[str]) -> None:
    """Every celery command loads the entry point: nothing heavy comes with it."""
    check = f"import sys; {code}; print(sorted(set(sys.modules) & {never!r}))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_wheel_and_the_sdist_hold_what_they_should(tmp_path: Path) -> None:
    """The wheel has the package and the probe alone, typed, with their entry points."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    import zipfile

    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    assert "worker_guard/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "worker_guard",
        "worker_guard_probe.py",
        "worker_guard-0.1.0.dist-info",
    }
    entry_points = zipfile.ZipFile(wheel).read("worker_guard-0.1.0.dist-info/entry_points.txt")
    assert b"[celery.commands]\nguard = worker_guard.cli:guard" in entry_points
    assert b"[console_scripts]\nworker-guard-probe = worker_guard_probe:main" in entry_points


class StubWorker:
    """As much of a worker as the watch needs: no consumer steps, and a statedb."""

    def __init__(self, note: Any = None, saved: Any = None) -> None:
        blueprint = SimpleNamespace(steps={})
        self.consumer = SimpleNamespace(blueprint=blueprint, steps=[])
        self._persistence = SimpleNamespace(
            db={"worker_guard": note, "zrevoked": zlib.compress(pickle.dumps(saved or []))},
            decompress=zlib.decompress,
        )


class Heard:
    """Hears what the watch says."""

    def __init__(self) -> None:
        self.operators: list[Target] = []
        self.removed_ids: list[str] = []
        self.inherited = 0
        self.confirmations_lost: list[str] = []
        self.put_back = 0
        self.peers = 0
        self.has_read = True
        self.errors: list[Exception] = []

    def operator_revoked(self, target: Target) -> None:
        self.operators.append(target)

    def removed(self, task_id: str) -> None:
        self.removed_ids.append(task_id)

    def confirmation_lost(self, task_id: str) -> None:
        self.confirmations_lost.append(task_id)

    def inherited_came(self) -> None:
        self.inherited += 1

    def was_put_back(self) -> None:
        self.put_back += 1

    def peer_came(self) -> None:
        self.peers += 1

    def knows_all(self) -> bool:
        return self.has_read

    def watch_failed(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.fixture
def heard() -> Iterator[tuple[RevokedWatch, Heard]]:
    """A watch on Celery's own set, which is empty before and after."""
    state.revoked.clear()
    listener, ledger = Heard(), Ledger()
    holder = Holder(
        interval_s=30.0,
        ledger=ledger,
        lifetime_s=None,
        held_messages=tuple,
        on_ended=lambda _task_ids: None,
        report=lambda _event: None,
        monotonic=lambda: 50_000.0,
    )
    watch = RevokedWatch(
        ledger=ledger,
        holder=holder,
        queues=SimpleNamespace(empty_for_s=lambda: None),
        backfill=BackfillCounter(),
        dry_run=False,
        monotonic=lambda: 50_000.0,
        now=lambda: 1_700_000_000.0,
        listener=listener,
    )
    the_set = state.revoked
    yield watch, listener
    watch.unhook()
    state.revoked = the_set
    state.revoked.clear()
    state.revoked_stamps.clear()


def hello(revoked: Any = None) -> Any:
    """What a peer that starts is given by this worker."""
    panel = SimpleNamespace(hostname="w@test", app=current_app)
    return control.Panel.data["hello"](panel, "peer@test", revoked=revoked)["revoked"]


def test_a_peers_clock_is_not_ours(heard: tuple[RevokedWatch, Heard]) -> None:
    """Celery 5.6 and before take over stamps of a host that was booted at another time."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    # Not so old that Celery itself drops it as it arrives.
    peers_ids: Any = {"young": time.monotonic() - 1.0, "old": 10_000_000.0}
    hello(peers_ids)
    assert listener.errors == []
    assert listener.inherited == 2
    found = watch.ledger.select(
        ["young", "old"], 60_000.0, held=state.revoked, grace_s=0.0, confirmed_grace_s=0.0
    )
    assert set(found.look_up) == {"young", "old"}


def expire(watch: RevokedWatch, *task_ids: str) -> None:
    """Let these expire at this worker."""
    for task_id in task_ids:
        watch.ledger.added(task_id, Source.EXPIRY, 50_000.0)
        watch.ledger.confirmed_expired(task_id)
        LimitedSet.add(state.revoked, task_id)


def test_a_peer_that_starts_is_told_of(heard: tuple[RevokedWatch, Heard]) -> None:
    """It is given all but what is known to have expired, by a worker that has read the record."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    state.revoked.update({"operators"})
    hello({"inherited": time.monotonic()})
    expire(watch, "expired")
    assert set(hello()) == {"operators", "inherited"}
    listener.has_read = False
    assert set(hello()) == {"operators", "inherited", "expired"}
    assert (listener.operators, listener.peers) == (["operators"], 3)


def test_what_the_application_takes_out_is_taken_back(heard: tuple[RevokedWatch, Heard]) -> None:
    """Its own ``discard`` is its word; an id that is renewed meanwhile stays."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    state.revoked.update({"x", "y"})
    state.revoked.add("x")
    state.revoked.discard("y")
    state.revoked.discard("unknown")
    assert (listener.removed_ids, set(state.revoked)) == (["y"], {"x"})
    assert watch.ledger.origin("y") is None


def test_what_the_application_empties_is_put_back(heard: tuple[RevokedWatch, Heard]) -> None:
    """Nobody took these revocations back; the expired ids are gone."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    state.revoked.update({"x", "y"})
    expire(watch, "expired")
    state.revoked.clear()
    assert set(state.revoked) == {"x", "y"}
    assert (set(watch.ledger.operators), watch.ledger.ids()) == ({"x", "y"}, [])
    assert listener.put_back == 1


def test_a_set_that_was_emptied_past_every_hook(heard: tuple[RevokedWatch, Heard]) -> None:
    """All are put back as soon as one of them is looked at."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    state.revoked.update({"x", "y"})
    LimitedSet.clear(state.revoked)
    watch.looked_at("nobodys")
    assert not state.revoked
    watch.looked_at("x")
    assert (set(state.revoked), listener.put_back) == ({"x", "y"}, 1)


def test_a_set_in_the_place_of_celerys_holds_the_same(heard: tuple[RevokedWatch, Heard]) -> None:
    """Celery adds to the new one, and looks into the old one."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    celerys = state.revoked
    state.revoked.update({"x", "y"})
    state.revoked = LimitedSet(maxlen=100, expires=100.0)
    watch.looked_at("nobodys")
    assert set(state.revoked) == {"x", "y"}
    state.revoked.add("later")
    watch.looked_at("later")
    assert {"x", "y", "later"} <= set(celerys)
    assert listener.errors == []
    with pytest.raises(celery_internals.ReplacedSetError):
        watch.compare()


def test_what_was_taken_back_and_comes_from_a_peer_is_looked_up(
    heard: tuple[RevokedWatch, Heard],
) -> None:
    """The peer has not heard yet, or an operator has revoked it again: the record tells."""
    watch, _ = heard
    watch.start(StubWorker(), before_statedb=())
    state.revoked.update({"x"})
    assert watch.take_back("x") is True
    assert watch.take_back("x") is False
    hello({"x": time.monotonic()})
    assert ("x" in state.revoked, watch.ledger.origin("x")) == (True, Origin.INHERITED)


def test_what_is_on_record_is_entered(heard: tuple[RevokedWatch, Heard]) -> None:
    """Ids and stamped headers, with the time and the way of their revocation; each once."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    stamp = Stamp("customer", 17)
    for target in ("x", stamp):
        assert watch.enter(target, 40_000.0, Way.TERMINATE) is True
        assert watch.enter(target, 40_000.0, Way.TERMINATE) is False
        assert watch.ledger.revocation(target) == (40_000.0, Way.TERMINATE)
    assert ("x" in state.revoked, state.revoked_stamps) == (True, {"customer": [17]})
    assert listener.operators == []  # they are on record


def test_each_way_of_a_revocation_is_known(heard: tuple[RevokedWatch, Heard]) -> None:
    """By the remote commands, and by the application's own code."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    panel = SimpleNamespace(hostname="w@test", app=current_app, tset=set)
    commands = control.Panel.data
    commands["revoke"](panel, ["revoked"])
    commands["revoke"](panel, ["ended"], terminate=True)
    commands["terminate"](panel, "TERM", ["terminated"])
    commands["revoke_by_stamped_headers"](panel, {"customer": ["17"]})
    state.revoked.add("applications")
    made = {target: watch.ledger.revocation(target) for target in watch.ledger.revocations()}
    assert {target: held.way for target, held in made.items() if held} == {
        "revoked": Way.REVOKE,
        "ended": Way.TERMINATE,
        "terminated": Way.TERMINATE,
        "applications": Way.APPLICATION,
        Stamp("customer", "17"): Way.STAMPS,
    }
    assert set(listener.operators) == set(made)
    state.revoked_stamps["region"] = "north"
    watch.compare()
    found = watch.ledger.revocation(Stamp("region", "north"))
    assert found is not None
    assert found.way is Way.APPLICATION


def test_a_stamped_header_whose_lifetime_is_over_is_left_to_celery(
    heard: tuple[RevokedWatch, Heard],
) -> None:
    """Celery still has it, but a sweep does not take it for a new one; a new revoke is held."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())
    panel = SimpleNamespace(hostname="w@test", app=current_app, tset=set)
    revoke = control.Panel.data["revoke_by_stamped_headers"]
    stamp = Stamp("customer", "17")
    revoke(panel, {"customer": ["17"]})
    watch.ledger.ended(stamp)
    watch.compare()
    assert (watch.ledger.revocations(), listener.operators) == ([], [stamp])
    assert state.revoked_stamps == {"customer": ["17"]}
    revoke(panel, {"customer": ["17"]})
    assert (watch.ledger.revocations(), listener.operators) == ([stamp], [stamp, stamp])


def test_the_note_in_the_statedb_says_when_and_how(heard: tuple[RevokedWatch, Heard]) -> None:
    """A worker that reads it later goes on from there, whatever its monotonic clock says."""
    watch, listener = heard
    noted = {"old": (1_700_000_000.0 - 100.0, "terminate"), "of-a-later-release": ("?", "wish")}
    worker = StubWorker({"operator": noted})
    watch.start(worker, before_statedb=())
    assert set(state.revoked) == set(noted) == set(listener.operators)
    assert watch.ledger.revocation("old") == (49_900.0, Way.TERMINATE)
    assert watch.ledger.revocation("of-a-later-release") == (50_000.0, Way.APPLICATION)
    watch.note_in_statedb(worker)
    assert worker._persistence.db["worker_guard"] == {
        "operator": {
            "old": (1_700_000_000.0 - 100.0, "terminate"),
            "of-a-later-release": (1_700_000_000.0, "application"),
        },
        "unproven": [],
    }


@pytest.mark.parametrize("note", [{"later": 1}, {"operator": 17}, ["operators"], "operators"])
def test_a_note_that_cannot_be_read_is_none(heard: tuple[RevokedWatch, Heard], note: Any) -> None:
    """Such as one that a later release wrote; the worker starts with its guard."""
    watch, listener = heard
    saved = LimitedSet()
    saved.add("inherited")
    state.revoked.add("inherited")
    watch.start(StubWorker(note, saved), before_statedb=())
    assert (listener.operators, listener.inherited) == ([], 1)


def test_what_the_guard_raises_in_a_hook_does_not_reach_celery(
    heard: tuple[RevokedWatch, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is in the set, the error is told, and Celery goes on."""
    watch, listener = heard

    def broken(*_: Any) -> None:
        raise AssertionError("broken")

    monkeypatch.setattr(watch.ledger, "added", broken)
    watch.start(StubWorker(), before_statedb=())
    state.revoked.update({"x"})
    assert "x" in state.revoked
    assert [str(error) for error in listener.errors] == ["broken"]


def test_a_release_without_what_is_hooked_leaves_no_hook(
    heard: tuple[RevokedWatch, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is off then, and the set is as it was."""
    watch, _ = heard
    monkeypatch.delitem(control.Panel.data, "hello")
    before = (vars(state.revoked).get("add"), vars(request.Request)["maybe_expire"])
    with pytest.raises(MissingInternalError, match="'hello'"):
        watch.start(StubWorker(), before_statedb=())
    assert (vars(state.revoked).get("add"), vars(request.Request)["maybe_expire"]) == before


def test_two_threads_never_lose_an_operators_id() -> None:
    """Without an event loop a message can expire on the timer's thread while it is revoked."""
    ledger, interval = Ledger(), sys.getswitchinterval()
    ids = [f"{n}" for n in range(20_000)]

    def expire() -> None:
        for task_id in ids:
            ledger.added(task_id, Source.EXPIRY, 0.0)
            ledger.confirmed_expired(task_id)

    sys.setswitchinterval(1e-6)
    try:
        timer = threading.Thread(target=expire)
        timer.start()
        for task_id in ids:
            ledger.added(task_id, Source.OPERATOR, 0.0)
        timer.join()
    finally:
        sys.setswitchinterval(interval)
    assert ledger.count(Origin.OPERATOR) == len(ids)


def test_a_sweep_never_takes_an_id_that_is_being_renewed_for_gone(
    heard: tuple[RevokedWatch, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set takes an id out before it renews it; on another thread a sweep could see that."""
    watch, _ = heard
    found: list[Origin | None] = []

    def look() -> None:
        watch.compare()
        found.append(watch.ledger.origin("x"))

    sweep, discard = threading.Thread(target=look), LimitedSet.discard

    def slow_discard(self: Any, item: str) -> None:
        discard(self, item)
        sweep.start()
        sweep.join(0.2)

    monkeypatch.setattr(LimitedSet, "discard", slow_discard)
    watch.start(StubWorker(), before_statedb=())
    state.revoked.add("x")  # an operator's
    state.revoked.add("x")
    sweep.join()
    assert found == [Origin.OPERATOR]
    assert watch.ledger.origin("x") is Origin.OPERATOR


def test_a_revoke_while_a_peers_ids_are_taken_in_is_an_operators(
    heard: tuple[RevokedWatch, Heard],
) -> None:
    """With gevent the two interleave; what one call comes from says nothing of the other."""
    watch, listener = heard
    watch.start(StubWorker(), before_statedb=())

    def peers_ids() -> Iterator[str]:
        yield "inherited"
        revoke = threading.Thread(target=state.revoked.update, args=({"operators"},))
        revoke.start()
        revoke.join()

    hello(peers_ids())
    assert listener.errors == []
    assert watch.ledger.origin("inherited") is Origin.INHERITED
    assert watch.ledger.origin("operators") is Origin.OPERATOR


def test_a_start_that_failed_notes_nothing_in_the_statedb(
    heard: tuple[RevokedWatch, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the ids that it had not entered yet would be an operator's for ever."""
    watch, _ = heard
    shelf: dict[str, Any] = {}
    monkeypatch.setattr(celery_internals, "statedb", lambda _worker: shelf)
    monkeypatch.setattr(celery_internals, "ids_of_statedb", lambda _worker: {"inherited"})
    state.revoked.add("inherited")

    def fail(*_: Any) -> None:
        raise OSError("no ledger")

    monkeypatch.setattr(watch, "added", fail)
    with pytest.raises(OSError, match="no ledger"):
        watch.start(StubWorker(), before_statedb=())
    monkeypatch.undo()
    monkeypatch.setattr(celery_internals, "statedb", lambda _worker: shelf)
    watch.note_in_statedb(StubWorker())
    assert shelf == {}


def test_a_listener_that_raises_keeps_no_event_from_the_log() -> None:
    """Nor does it leave the timer callback in which a job reports its failure."""
    told: list[Event] = []
    worker = SimpleNamespace(hostname="w@test", app=Celery("test", set_as_current=False))
    guard = Guard(worker, Settings(), version="0")

    def fail(_event: Event) -> None:
        raise OSError("no listener")

    guard._activity.listeners.append(fail)
    guard._reporter = told.append  # type: ignore[assignment]
    try:
        guard._context.report(CleanupCompleted())
    finally:
        guard.abandon()
    assert told[0] == CleanupCompleted()


class FakeConsumer:
    """A consumer without an event loop: its timer is another thread."""

    hub = None

    def __init__(self) -> None:
        self.timed: list[tuple[Any, ...]] = []
        self.soon: list[Any] = []
        self.timer = SimpleNamespace(call_after=lambda *call: self.timed.append(call))

    def call_soon(self, function: Any) -> None:
        self.soon.append(function)


def test_without_an_event_loop_a_tick_only_hands_over_to_the_consumers_thread() -> None:
    """The revoked set is not made for two threads."""
    app = Celery("test", set_as_current=False)
    worker = SimpleNamespace(hostname="w@test", app=app)
    guard, consumer = Guard(worker, Settings(), version="0"), FakeConsumer()
    try:
        guard.arm(consumer)
        assert consumer.timed
        armed = len(consumer.timed)
        for _delay_s, function, arguments in list(consumer.timed):
            function(*arguments)
        # Nothing ran but the handing over, or it would have set its next tick.
        assert (len(consumer.soon), len(consumer.timed)) == (armed, armed)
        consumer.soon[0]()
        assert len(consumer.timed) == armed + 1
    finally:
        guard.abandon()


class Failing(Part):
    """A part that can't be started, or stopped."""

    name = "failing"
    also = ("its_other_half",)

    def start(self) -> None:
        raise OSError("no port for redis://:secret@host")

    def stop(self, *, cold: bool) -> None:
        raise OSError("still no port")


def test_a_part_that_fails_is_off_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says why in the start event, and its failure to stop keeps no other part from stopping."""
    lived: list[str] = []

    class Healthy(Part):
        name = "healthy"

        def start(self) -> None:
            lived.append("started")

        def stop(self, *, cold: bool) -> None:
            lived.append(f"stopped cold={cold}")

    class Unmade(Part):
        name = "unmade"

        def __init__(self, context: Context) -> None:
            raise PartOff("nothing to do here")

    monkeypatch.setattr("worker_guard.guard.PARTS", (Failing, Unmade, Healthy))
    app = Celery("test", set_as_current=False)
    worker = SimpleNamespace(hostname="w@test", app=app, pool_cls=TaskPool, concurrency=1)
    guard, told = Guard(worker, Settings(), version="0"), list[Event]()
    guard._activity.listeners.append(told.append)
    guard.start()
    off = "no port for redis://:**@host"
    assert guard.parts == {
        "failing": off,
        "healthy": "on",
        "its_other_half": off,
        "unmade": "nothing to do here",
    }
    with pytest.raises(PartOff, match="nothing to do here"):
        guard.part(Unmade)
    assert isinstance(guard.part(Healthy), Healthy)
    guard.stop()
    assert lived == ["started", "stopped cold=False"]
    assert [event.name.removeprefix("worker_guard.") for event in told] == [
        "part_failed", "started", "stopped",
    ]  # fmt: skip
