"""Random histories of a fleet, played twice: by plain Celery, and with the guard beside it.

There are two oracles. Celery itself: no message runs that plain Celery discards because an operator
revoked it, and none is discarded that plain Celery runs, but for a revocation that stands. And what
is promised: no message runs that an operator revoked and nobody took back, within the lifetime, at
a guarded worker that has heard of it or has read the record since. What runs is Celery's own code
with the guard's hooks in it (``tests/harness/model.py``); that real workers do the same is proved
in ``tests/integration/test_heal.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
from celery.utils.collections import LimitedSet
from celery.worker import state
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.harness.model import (
    BACKENDS,
    GRACE_S,
    LIFETIME_S,
    REVOKE_EXPIRES_S,
    REVOKES_MAX,
    Clock,
    Process,
    Shelf,
    fresh_apps,
)
from worker_guard.celery_internals import held_ids
from worker_guard.celery_internals import revoked_hooks as hooks
from worker_guard.revoked import confirmation, ledger
from worker_guard.revoked.holder import Holder
from worker_guard.revoked.ledger import Differences, Ledger, Origin
from worker_guard.revoked.record import Record
from worker_guard.revoked.restorer import Restorer
from worker_guard.revoked.set_watch import RevokedWatch
from worker_guard.revoked.sweeper import Sweeper

IDS = ("a", "b")

#: Two with the guard, and one that gets it with an upgrade.
GUARDED = ("guarded-1", "guarded-2")
NAMES = (*GUARDED, "upgraded")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Celery logs each message that it discards, and each result that it can't store."""
    logger = logging.getLogger("celery")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


task_ids = st.sampled_from(IDS)
workers = st.sampled_from(NAMES)
guarded = st.sampled_from(GUARDED)


class Seat:
    """One worker of the fleet, in both worlds, and what the history knows of its ids."""

    def __init__(self, name: str, apps: tuple[Any, Any], clock: Clock) -> None:
        self.name, self._apps, self._clock = name, apps, clock
        self._shelves: tuple[Shelf, Shelf] | None = None
        #: The ids of the plain worker's set that an operator's word brought there; of its statedb.
        self.operators: set[str] = set()
        self.saved_operators: set[str] = set()
        #: When only expiry has put an id into the guarded set, and that was known: the first time.
        self.expired_at: dict[str, float] = {}
        #: What ever came to the guarded worker by another way, or without Celery's word.
        self.doubtful: set[str] = set()
        #: The operators' revocations that this guard knows of: when each was made; in its statedb.
        self.known: dict[str, float] = {}
        self.saved_known: dict[str, float] = {}
        self.is_guarded = name in GUARDED
        self.begin(statedb=False)

    def asks_about(self, task_id: str) -> bool:
        """Whether the guard has inherited the id, and looks it up within seconds."""
        guard = self.ours.guard
        return guard is not None and guard._watch.ledger.origin(task_id) is Origin.INHERITED

    def begin(self, *, statedb: bool, applications: tuple[str, ...] = ()) -> None:
        """Start the worker, without a peer."""
        if not statedb:
            self._shelves = None
        elif self._shelves is None:
            self._shelves, self.saved_operators = (Shelf(), Shelf()), set()
            self.saved_known = {}
        plain_shelf, shelf = self._shelves or (None, None)
        plain, ours = self._apps
        self.plain = Process(
            self.name,
            plain,
            self._clock,
            guarded=False,
            shelf=plain_shelf,
            applications=applications,
        )
        self.ours = Process(
            self.name,
            ours,
            self._clock,
            guarded=self.is_guarded,
            shelf=shelf,
            applications=applications,
        )
        self.operators = {*applications, *(self.saved_operators if statedb else ())}
        self.known = dict(self.saved_known) if statedb and self.is_guarded else {}
        self.expired_at, self.doubtful = {}, set(held_ids(self.ours.revoked))
        self.look()

    def end(self, *, cold: bool) -> None:
        """Stop it in order."""
        for process in (self.plain, self.ours):
            process.stop(cold=cold)
        self.look()
        self.saved_operators = set(self.operators)
        self.saved_known = dict(self.known) if self.is_guarded else {}

    def doubt(self, task_ids: Iterable[str]) -> None:
        """These ids came by another way than an expiry that Celery told of."""
        self.doubtful.update(task_ids)
        for task_id in task_ids:
            self.expired_at.pop(task_id, None)

    def look(self) -> None:
        """Forget what is in neither set any more."""
        self.operators &= set(held_ids(self.plain.revoked))
        held = set(held_ids(self.ours.revoked))
        self.expired_at = {i: at for i, at in self.expired_at.items() if i in held}


class Histories(RuleBasedStateMachine):
    """Any order of what can happen to ids."""

    @initialize(backend=st.sampled_from([*BACKENDS, "record"]))
    def begin(self, backend: str) -> None:
        """A fleet starts, with a result backend that has the record, with another, or without."""
        self.clock = Clock()
        self.backend, self.record = backend != "none", backend == "record"
        self.apps = fresh_apps(backend, self.clock)
        self.seats = {name: Seat(name, self.apps, self.clock) for name in NAMES}
        for seat in self.seats.values():
            self._connect(seat)
        #: What an operator revoked, and a guard heard, and when; so that it has to be on record.
        self.marked: dict[str, float] = {}
        #: What operators ever revoked, and nobody took back.
        self.revoked: set[str] = set()
        #: What was taken back, and came by no other way since.
        self.taken_back: set[str] = set()
        #: What was taken back, and was revoked at no guarded worker since: for the fleet it is not
        #: revoked, whatever unguarded workers have heard (documented).
        self.void: set[str] = set()

    # -- messages --------------------------------------------------------------------------

    @rule(task_id=task_ids, worker=workers)
    def a_message_comes(self, task_id: str, worker: str) -> None:
        """It has not expired: a later use of the id, a retry, or one that was due later."""
        self._deliver(task_id, worker)

    @rule(
        task_id=task_ids,
        worker=workers,
        times=st.sampled_from([1, 2]),
        every_s=st.sampled_from([1.0, GRACE_S]),
        sweeps_after_s=st.sampled_from([None, 1.0, GRACE_S]),
        away=st.booleans(),
    )
    def a_message_expires(
        self,
        task_id: str,
        worker: str,
        times: int,
        every_s: float,
        sweeps_after_s: float | None,
        away: bool,
    ) -> None:
        """Once, or again and again, as those of a Beat entry with an id of its own.

        Often a sweep comes before anything else does.
        """
        for _ in range(times):
            self.clock.now += every_s
            self._expire(task_id, worker)
        if sweeps_after_s is not None and worker in GUARDED:
            self.guards_sweep((worker,), sweeps_after_s, away)

    @rule(worker=workers, number=st.sampled_from([2, REVOKES_MAX]))
    def many_messages_expire(self, worker: str, number: int) -> None:
        """So many that the set drops its oldest ids."""
        for n in range(number):
            self._expire(f"flood-{n}", worker)

    # -- revocations -----------------------------------------------------------------------

    @rule(
        task_id=task_ids,
        heard=st.sampled_from([(), (), NAMES]),
        witness=guarded,
        terminate=st.booleans(),
    )
    def an_operator_revokes(
        self, task_id: str, heard: tuple[str, ...], witness: str, terminate: bool
    ) -> None:
        """All workers hear it, or one guard alone: without any nobody can know (documented)."""
        for name in sorted({*heard, witness}):
            seat = self.seats[name]
            for process in (seat.plain, seat.ours):
                process.hear_revoke(task_id, terminate=terminate)
            self._is_operators(seat, task_id)

    @rule(task_id=task_ids, missed=st.sampled_from([(), (), GUARDED[:1], NAMES]))
    def an_operator_takes_back(self, task_id: str, missed: tuple[str, ...]) -> None:
        """By the command: from the record, and at each worker that has the guard.

        The command reaches the result backend, also where workers don't. A worker that is away
        misses the command, and connects again later.
        """
        if not self.record:
            return
        backend = self.apps[1].backend
        down, backend.down = backend.down, False
        backend.record().take_back([task_id])
        backend.down = down
        self.marked.pop(task_id, None)
        self.revoked.discard(task_id)
        self.taken_back.add(task_id)
        self.void.add(task_id)
        for seat in self.seats.values():
            seat.operators.discard(task_id)
            seat.saved_operators.discard(task_id)
            seat.known.pop(task_id, None)
            seat.saved_known.pop(task_id, None)
            if seat.name in missed:
                self._connect(seat)
            else:
                seat.ours.unrevoke(task_id)
            seat.look()

    @rule(task_id=task_ids, worker=guarded)
    def one_is_taken_back_before_it_is_recorded(self, task_id: str, worker: str) -> None:
        """The worker that heard it reaches neither the result backend nor the command meanwhile."""
        if not self.record:
            return
        backend = self.apps[1].backend
        down, backend.down = backend.down, True
        self.an_operator_revokes(task_id, (), worker, False)
        self.an_operator_takes_back(task_id, (worker,))
        backend.down = down
        for seat in self.seats.values():
            seat.ours.write_marks()
        self._connect(self.seats[worker])

    @rule(task_id=task_ids, worker=workers)
    def the_application_takes_out(self, task_id: str, worker: str) -> None:
        """At one worker; the others still hold it, with the guard and without."""
        seat = self.seats[worker]
        for process in (seat.plain, seat.ours):
            process.change_set(lambda revoked: revoked.discard(task_id))
        seat.operators.discard(task_id)
        seat.known.pop(task_id, None)
        self.marked.pop(task_id, None)
        for other in self.seats.values():
            other.doubt([task_id])  # it may have seen the mark that is gone now
        seat.look()

    @rule(worker=guarded)
    def the_application_empties_the_set(self, worker: str) -> None:
        """Plain Celery then holds nothing."""
        seat = self.seats[worker]
        for process in (seat.plain, seat.ours):
            process.change_set(lambda revoked: revoked.clear())
        seat.look()

    @rule(task_id=task_ids, worker=guarded, way=st.sampled_from(["add", "merge", "ahead"]))
    def the_application_revokes(self, task_id: str, worker: str, way: str) -> None:
        """Its own code puts an id into the set, by a way of Celery's or past it.

        Or it merges a set whose stamps are ahead of this clock, as Celery 5.6 does by itself with
        what a peer sends: the set is full then, and an id that is added is the oldest.
        """
        ids = [task_id]
        change: Callable[[Any], Any] = lambda revoked: revoked.add(task_id)  # noqa: E731
        if way == "merge":
            merged = LimitedSet()
            merged.add(task_id, self.clock.monotonic())
            change = lambda revoked: revoked.update(merged)  # noqa: E731
        elif way == "ahead":
            ids = [f"ahead-{n}" for n in range(REVOKES_MAX)]
            later = {i: self.clock.now + 1e6 + n for n, i in enumerate(ids)}
            change = lambda revoked: revoked.update(later)  # noqa: E731
        seat = self.seats[worker]
        for process in (seat.plain, seat.ours):
            process.change_set(change)
        for each in ids:
            self._is_operators(seat, each)

    # -- workers ---------------------------------------------------------------------------

    @rule(
        worker=workers,
        end=st.sampled_from(["warm", "cold", "killed"]),
        statedb=st.booleans(),
        applications=st.sampled_from([(), (), *((i,) for i in IDS)]),
        mingles=st.sampled_from([False, False, True]),
        upgrade=st.booleans(),
    )
    def a_worker_restarts(
        self,
        worker: str,
        end: str,
        statedb: bool,
        applications: tuple[str, ...],
        mingles: bool,
        upgrade: bool,
    ) -> None:
        """With its statedb or without, with what peers know or without; with the guard or not."""
        seat = self.seats[worker]
        if seat.ours.unwritten and (end == "killed" or seat.ours.shelf is None or not statedb):
            return  # what this guard alone knows goes with it (documented)
        if end != "killed":
            seat.end(cold=end == "cold")
        if worker not in GUARDED:
            seat.is_guarded = upgrade
        seat.begin(statedb=statedb, applications=applications)
        self._came(applications)
        self.revoked.update(applications)
        self._note_marks(seat, applications)
        self._disregard_void(seat)
        if mingles:
            self._mingle(seat)
        self._connect(seat)

    @rule(worker=workers, mingles=st.booleans())
    def a_worker_reconnects(self, worker: str, mingles: bool) -> None:
        """Its consumer starts anew, and mingles again, if anybody answers."""
        if mingles:
            self._mingle(self.seats[worker])
        self._connect(self.seats[worker])

    @rule(
        names=st.sampled_from([GUARDED[:1], GUARDED[1:], GUARDED]),
        later_s=st.sampled_from([0.0, GRACE_S, GRACE_S, 4000.0, REVOKE_EXPIRES_S + 1.0]),
        away=st.booleans(),
    )
    def guards_sweep(self, names: tuple[str, ...], later_s: float, away: bool) -> None:
        """Time passes, and the timers of the guards fire; the result backend can be away then."""
        self.clock.now += later_s
        down = self.backend and self.apps[1].backend.down
        if self.backend:
            self.apps[1].backend.down = away or down
        for name in names:
            self._sweep(self.seats[name])
        if self.backend:
            self.apps[1].backend.down = down
        for seat in self.seats.values():
            seat.ours.write_marks()

    def _sweep(self, seat: Seat) -> None:
        before, had_read = set(held_ids(seat.ours.revoked)), seat.ours.has_read
        seat.ours.sweep()
        if seat.ours.has_read and not had_read:
            self._learn(seat)
        cleared = before - set(held_ids(seat.ours.revoked))
        if self.backend:
            standing = {i for i in cleared if self._stands_on_record(i)}
            assert not standing, f"cleared although an operator's mark stands: {standing}"
        seat.look()
        self._nothing_is_left_that_only_expiry_put_there(seat)

    @rule(down=st.sampled_from([True, False, False]))
    def the_result_backend_goes_down_or_comes_back(self, down: bool) -> None:
        """While it is down nothing is known of marks, and they wait."""
        if not self.backend:
            return
        for app in self.apps:
            app.backend.down = down
        for seat in self.seats.values():
            seat.ours.write_marks()

    # -- how it is played --------------------------------------------------------------------

    def _deliver(self, task_id: str, worker: str) -> None:
        seat = self.seats[worker]
        plain = seat.plain.discards(task_id)
        ours = seat.ours.discards(task_id)
        revoked = plain and task_id in seat.operators
        assert ours or not revoked, f"{worker} ran {task_id}, which plain Celery discards"
        if seat.is_guarded:
            made_at = seat.known.get(task_id)
            held = made_at is not None and self.clock.now - made_at < LIFETIME_S
            assert ours or not held, f"{worker} ran {task_id}, which it knows to be revoked"
            may_hold = task_id in self.revoked or (self.record and not seat.ours.has_read)
            lost = ours and not plain and not may_hold and not seat.asks_about(task_id)
            assert not lost, f"{worker} discarded {task_id}, which plain Celery runs"

    def _expire(self, task_id: str, worker: str) -> None:
        seat = self.seats[worker]
        for process in (seat.plain, seat.ours):
            assert process.discards(task_id, expired=True)
        self._came([task_id])
        if self.backend and self.apps[1].backend.down:
            seat.doubt([task_id])  # Celery could not store that it expired, and sent no signal
        elif task_id not in seat.doubtful:
            seat.expired_at.setdefault(task_id, self.clock.now)
        seat.look()

    def _is_operators(self, seat: Seat, task_id: str) -> None:
        seat.operators.add(task_id)
        if seat.is_guarded:
            seat.known[task_id] = self.clock.now
        self.revoked.add(task_id)
        self._came([task_id])
        seat.doubt([task_id])
        self._note_marks(seat, [task_id])
        seat.look()

    def _note_marks(self, seat: Seat, task_ids: Iterable[str]) -> None:
        if seat.is_guarded:
            self.void.difference_update(task_ids)
        if self.backend and seat.is_guarded:
            self.marked.update(dict.fromkeys(task_ids, self.clock.now))

    def _came(self, task_ids: Iterable[str]) -> None:
        """These ids are in a set for another reason than the revocation that was taken back."""
        self.taken_back.difference_update(task_ids)

    def _connect(self, seat: Seat) -> None:
        seat.ours.connect()
        if seat.ours.has_read:
            self._learn(seat)

    def _learn(self, seat: Seat) -> None:
        """The worker has read the record."""
        for task_id in IDS:
            made_at = self.apps[1].backend.revoked_at(task_id)
            if made_at is not None:
                seat.known[task_id] = max(made_at, seat.known.get(task_id, made_at))

    def _stands_on_record(self, task_id: str) -> bool:
        return self.apps[1].backend.revoked_at(task_id) is not None

    def _mingle(self, seat: Seat) -> None:
        peers = [peer for peer in self.seats.values() if peer is not seat]
        held = {each.name: set(held_ids(each.plain.revoked)) for each in (seat, *peers)}
        ours = {each.name: set(held_ids(each.ours.revoked)) for each in (seat, *peers)}
        seat.plain.say_hello([peer.plain for peer in peers])
        seat.ours.say_hello([peer.ours for peer in peers])
        said = seat.operators & held[seat.name]  # to all, before any of them answers
        for peer in peers:
            peer.operators |= said
            peer.doubt(ours[seat.name])
            seat.operators |= peer.operators & held[peer.name]
            # Its answer holds what it had, and what it was just given.
            seat.doubt(ours[peer.name] | ours[seat.name])
        for each in (seat, *peers):
            self._disregard_void(each)
            each.look()

    def _disregard_void(self, seat: Seat) -> None:
        if seat.is_guarded:
            seat.operators -= self.void

    def _nothing_is_left_that_only_expiry_put_there(self, seat: Seat) -> None:
        guard = seat.ours.guard
        assert guard is not None
        if self.backend and (self.apps[1].backend.down or guard.lookups.consecutive_failures):
            return
        for task_id, at in seat.expired_at.items():
            marked = self.backend and self._stands_on_record(task_id)
            assert marked or self.clock.now - at < GRACE_S, f"{task_id} never gets free"

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def the_counts_add_up(self) -> None:
        """Each id of the set has an origin, and no other id has one."""
        for name in (name for name in NAMES if self.seats[name].is_guarded):
            counts = self.seats[name].ours.counts()
            names = ("operator", "expired", "confirmed", "unproven", "would_clear")
            held = len(self.seats[name].ours.revoked)
            assert sum(getattr(counts, name) or 0 for name in names) == counts.total == held

    @invariant()
    def each_operators_id_that_a_guard_heard_bears_a_mark(self) -> None:
        """Whatever Celery's own set did with it."""
        if self.backend and not self.apps[1].backend.down:
            for task_id, made_at in self.marked.items():
                held = self.clock.now - made_at < LIFETIME_S
                assert not held or self._stands_on_record(task_id), task_id

    @invariant()
    def what_was_taken_back_does_not_come_back(self) -> None:
        """Not by a peer that has not heard, and not from a statedb."""
        for seat in self.seats.values():
            if seat.is_guarded and seat.ours.has_read:
                held = self.taken_back.intersection(held_ids(seat.ours.revoked))
                assert not {i for i in held if not seat.asks_about(i)}


TestHistories = Histories.TestCase
# The same histories each time, so that a change fails by what it changes.
TestHistories.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
)


class OtherHistories(Histories):
    """Others each time, and many."""


TestOtherHistories = pytest.mark.slow(OtherHistories.TestCase)
TestOtherHistories.settings = settings(max_examples=10_000, stateful_step_count=30, deadline=None)


# -- the histories find what they are to find ------------------------------------------------


def ages_out() -> Iterator[Any]:
    """The guard enforces REVOKE_EXPIRES, for every id."""
    sweep = Sweeper.run

    def sweep_and_age_out(self: Sweeper, trigger: Any = "timer") -> Iterator[None]:
        yield from sweep(self, trigger)
        now = self.monotonic()
        entries = {**self.ledger._entries, **self.ledger._operators}.items()
        old = [i for i, entry in entries if now - entry.since_mono >= REVOKE_EXPIRES_S]
        self.actor.clear(old)
        self.actor.finish()

    yield patch.object(Sweeper, "run", sweep_and_age_out)


def looks_at_no_mark() -> Iterator[Any]:
    """What expired here is cleared whatever mark stands."""
    yield patch.object(confirmation.KeyValueRecords, "marked", lambda _self, _ids: set())


def does_not_wait_for_the_result_backend() -> Iterator[Any]:
    """Marks that can't be read are taken for none."""
    marked = confirmation.KeyValueRecords.marked

    def marked_or_none(self: Any, task_ids: Any) -> set[str]:
        try:
            return marked(self, task_ids)
        except ConnectionError:
            return set()

    yield patch.object(confirmation.KeyValueRecords, "marked", marked_or_none)


def takes_the_applications_ids_for_inherited() -> Iterator[Any]:
    """What is in the set at the start came from a statedb."""
    start = RevokedWatch.start

    def start_without(self: RevokedWatch, worker: Any, **_: Any) -> None:
        start(self, worker, before_statedb=())

    def all_held(_worker: Any) -> frozenset[str]:
        return frozenset(held_ids(state.revoked))

    yield patch.object(RevokedWatch, "start", start_without)
    yield patch("worker_guard.celery_internals.ids_of_statedb", all_held)


def hears_nothing_of_a_merge() -> Iterator[Any]:
    """Ids that come past ``add`` are nobody's."""
    yield patch.object(hooks, "LimitedSet", ())
    yield patch.object(Ledger, "compare", lambda _self, _held: Differences([], []))


def counts_the_grace_from_the_last_expiry() -> Iterator[Any]:
    """So that a fixed id at a worker that is behind never gets free."""
    yield patch.object(ledger, "_EXPIRES_AGAIN", frozenset[Origin]())


def puts_nothing_back() -> Iterator[Any]:
    """What the set drops is gone, as without the guard."""
    yield patch.object(Holder, "put_back", lambda self, ids, _: [*map(self._ledger.dropped, ids)])


def reads_no_record() -> Iterator[Any]:
    """A worker starts with what peers and statedb tell it."""
    yield patch.object(Record, "pages", lambda _self, **_: iter(()))


def reads_only_at_the_start() -> Iterator[Any]:
    """A worker that reconnects has missed what was revoked and taken back."""
    yield patch.object(Restorer, "connected", lambda _self: None)


def does_not_remember_what_was_taken_back() -> Iterator[Any]:
    """So that a peer or a statedb brings it back."""
    yield patch.object(Record, "taken_back", lambda _self, **_: iter(()))


def records_late_what_was_taken_back() -> Iterator[Any]:
    """As if it had been revoked when it was recorded."""
    put = Record.put

    def put_as_new(self: Record, made: Any) -> Any:
        return put(self, {target: each._replace(age_s=0.0) for target, each in made.items()})

    yield patch.object(Record, "put", put_as_new)


def ends_at_once() -> Iterator[Any]:
    """The lifetime is one second."""
    init = Holder.__init__

    def short(self: Holder, **given: Any) -> None:
        init(self, **{**given, "lifetime_s": 1.0})

    yield patch.object(Holder, "__init__", short)


def hands_nothing_on() -> Iterator[Any]:
    """Peers without the guard get nothing by ``hello``."""
    yield patch.object(RevokedWatch, "hands_on", lambda _self, _id: False)


@pytest.mark.parametrize(
    "fault",
    [
        ages_out,
        looks_at_no_mark,
        does_not_wait_for_the_result_backend,
        takes_the_applications_ids_for_inherited,
        hears_nothing_of_a_merge,
        counts_the_grace_from_the_last_expiry,
        puts_nothing_back,
        reads_no_record,
        reads_only_at_the_start,
        does_not_remember_what_was_taken_back,
        records_late_what_was_taken_back,
        ends_at_once,
        hands_nothing_on,
    ],
    ids=lambda fault: str(fault.__name__),
)
def test_the_histories_find_each_fault_that_was_there(fault: Callable[[], Iterator[Any]]) -> None:
    """The first were in the first build. Put in, none must pass."""
    with ExitStack() as stack:
        for fault_part in fault():
            stack.enter_context(fault_part)
        with pytest.raises(AssertionError):
            run_state_machine_as_test(
                Histories,
                settings=settings(
                    TestHistories.settings,
                    max_examples=2000,
                    report_multiple_bugs=False,
                    phases=[Phase.generate],
                ),
            )
