"""Random histories of a fleet: no operator's id is ever cleared, and every expired one is.

The machine drives the real ledger, sweeper and marker over Celery's own ``LimitedSet``, for two
guarded workers and one without the guard on one result backend. What a hook would see is called
directly; that the hooks see it is proved on real workers (``tests/integration/test_heal.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from celery.utils.collections import LimitedSet
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker_guard.celery_internals import Discarding
from worker_guard.containment import Containment
from worker_guard.events import Event
from worker_guard.revoked.backfill import Backfill
from worker_guard.revoked.ledger import Ledger, Origin, Source, Verdict
from worker_guard.revoked.sweeper import Marker, Sweeper, Totals
from worker_guard.scheduler import run_to_end

GRACE_S = 60.0
REVOKE_EXPIRES_S = 10_800.0

task_ids = st.sampled_from(["a", "b"])
guarded = st.sampled_from([0, 1])


class Backend:
    """The result backend: what Celery wrote for an id last, and the guards' marks."""

    def __init__(self) -> None:
        self.records: dict[str, str] = {}
        self.marks: dict[str, bool] = {}
        self.down = False

    def verdicts(self, task_ids: Sequence[str]) -> dict[str, Verdict]:
        self._check()
        verdicts = {"expired": Verdict.EXPIRED, "revoked": Verdict.OPERATOR}
        marked = {True: Verdict.OPERATOR, False: Verdict.UNPROVEN}
        return {
            i: marked[self.marks[i]]
            if i in self.marks
            else verdicts.get(self.records.get(i, ""), Verdict.UNPROVEN)
            for i in task_ids
        }

    def mark(self, operators: Sequence[str], unproven: Sequence[str]) -> None:
        self._check()
        self.marks.update(dict.fromkeys(operators, True))
        for task_id in unproven:
            self.marks.setdefault(task_id, False)

    def _check(self) -> None:
        if self.down:
            raise ConnectionError("down")


class GuardedWorker:
    """One worker's set with its guard, without the process around it."""

    def __init__(self, backend: Backend, now: list[float], marks_revokes: bool) -> None:
        self.backend, self._now = backend, now
        self.revoked = LimitedSet(maxlen=50_000, expires=REVOKE_EXPIRES_S)
        self.ledger = Ledger()
        self.pending: dict[str, bool] = {}
        self.marks_revokes = marks_revokes
        self.sweeper = Sweeper(
            interval_s=30.0,
            grace_s=GRACE_S,
            ledger=self.ledger,
            revoked=self.revoked,
            actor=Discarding(self.revoked),
            records=backend,
            lookups=Containment("revoked_verify", first_pause_s=30.0, report=self._report),
            backfill=Backfill(),
            totals=Totals(),
            on_kept=self.mark,
            report=self._report,
            monotonic=lambda: now[0],
        )
        #: The ways by which each id came in, as the history tells it and not as the ledger does.
        self.ways: dict[str, set[str]] = {}
        self.marker = Marker(
            interval_s=30.0, pending=self.pending, held=self.revoked, store=backend
        )

    def add(self, task_id: str, source: Source) -> None:
        if task_id not in self.revoked:
            self.ways[task_id] = set()
        self.ways[task_id].add(source.value)
        self.revoked.add(task_id, self._now[0])
        if self.ledger.added(task_id, source, self._now[0]):
            self.mark(task_id, False)
        elif source is Source.OPERATOR:
            self.mark(task_id, True)

    def mark(self, task_id: str, operators: bool) -> None:
        self.pending[task_id] = operators or self.pending.get(task_id, False)
        self.write_marks()

    def marks_anew(self) -> None:
        """What the guard does when a peer takes its ids over, and when it stops."""
        for task_id in self.ledger.ids(Origin.OPERATOR):
            self.mark(task_id, True)

    def write_marks(self) -> None:
        if not self.backend.down:
            run_to_end(self.marker.round())

    def restart(self, *, note: bool) -> GuardedWorker:
        """The statedb carries the ids over, and the note which of them are an operator's."""
        operators = set(self.ledger.ids(Origin.OPERATOR)) if note else set()
        after = GuardedWorker(self.backend, self._now, self.marks_revokes)
        for task_id in list(self.revoked):
            after.add(task_id, Source.OPERATOR if task_id in operators else Source.FOREIGN)
        return after

    def _report(self, event: Event) -> None:
        """Nothing here reads the log."""


class Histories(RuleBasedStateMachine):
    """Any order of what can happen to ids."""

    def __init__(self) -> None:
        super().__init__()
        self.now = [1000.0]
        self.backend = Backend()
        self.workers = [GuardedWorker(self.backend, self.now, marks_revokes=True) for _ in "ab"]
        self.unguarded: set[str] = set()
        #: When an operator last revoked an id, as far as this worker can have heard of it; None
        #: stands for the workers without the guard.
        self.operators: dict[tuple[str, int | None], float] = {}

    # -- what happens ----------------------------------------------------------------------

    @rule(task_id=task_ids, worker=guarded, confirmed=st.sampled_from([True, True, False]))
    def expires(self, task_id: str, worker: int, confirmed: bool) -> None:
        """A message expires here: a first delivery, a redelivery, or a retry of the same id."""
        if self._forgotten(task_id):
            return
        self.workers[worker].add(task_id, Source.EXPIRY)
        if confirmed:
            self.backend.records[task_id] = "expired"
            self.workers[worker].ledger.confirmed_expired(task_id, self.now[0])
        else:
            # The result backend failed, so that Celery raised before it sent the signal.
            self.workers[worker].ways[task_id].add("unconfirmed")

    @rule(task_id=task_ids)
    def expires_at_the_unguarded(self, task_id: str) -> None:
        """The worker without the guard discards it, and overwrites whatever record there was."""
        if self._forgotten(task_id):
            return
        self.unguarded.add(task_id)
        self.backend.records[task_id] = "expired"

    @rule(task_id=task_ids, worker=guarded, redelivered=st.booleans())
    def a_revoke_that_no_guard_heard(self, task_id: str, worker: int, redelivered: bool) -> None:
        """Before 5.6 it leaves no trace but the id, which a guard then gets from a peer.

        The guard asks for it; only after that the message expires, at whichever worker.
        """
        guard = self.workers[worker]
        asks = not self.backend.down and guard.sweeper.lookups.ready(self.now[0])
        proven = guard.ledger.origin(task_id) is Origin.PROVEN
        if not asks or proven or self.backend.records.get(task_id) == "expired":
            # An answer or a record from before makes the two look alike: a documented limit.
            return
        self.unguarded.add(task_id)
        self.workers[worker].add(task_id, Source.FOREIGN)
        run_to_end(self.workers[worker].sweeper.round())
        self.operators[task_id, worker] = self.operators[task_id, None] = self.now[0]
        self.expires_at_the_unguarded(task_id)
        if redelivered:
            self.expires(task_id, worker, True)

    @rule(task_id=task_ids, record=st.booleans())
    def revokes(self, task_id: str, record: bool) -> None:
        """An operator revokes: all workers hear it, and from 5.6 on there is a record."""
        for worker in self.workers:
            worker.add(task_id, Source.OPERATOR)
        self.unguarded.add(task_id)
        if record and task_id not in self.backend.records:
            self.backend.records[task_id] = "revoked"
        self.operators.update(dict.fromkeys([(task_id, w) for w in (0, 1, None)], self.now[0]))

    @rule(task_id=task_ids)
    def runs_again(self, task_id: str) -> None:
        """The id is used again and its task succeeds where no set holds it."""
        if not any(task_id in worker.revoked for worker in self.workers):
            self.backend.records[task_id] = "success"

    @rule(worker=guarded, source=st.sampled_from(["guarded", "unguarded"]))
    def says_hello(self, worker: int, source: str) -> None:
        """A peer's ids arrive, by hello or mingle."""
        peer = 1 - worker if source == "guarded" else None
        # A worker that starts says hello to all.
        self.workers[1 - worker].marks_anew()
        ids = self.unguarded if peer is None else set(self.workers[peer].revoked)
        for task_id in ids:
            self.workers[worker].add(task_id, Source.FOREIGN)
            heard = [self.operators.get((task_id, w), 0.0) for w in (peer, worker)]
            self.operators[task_id, worker] = max(heard)

    @rule(worker=guarded, note=st.booleans(), keeps=st.booleans())
    def restarts(self, worker: int, note: bool, keeps: bool) -> None:
        """A worker restarts, with its statedb, with one that has no note, or with none."""
        before = self.workers[worker]
        before.marks_anew()
        # It says hello to the others as it starts.
        self.workers[1 - worker].marks_anew()
        if keeps or before.pending:
            # Without a statedb, a mark that could never be written is lost: a documented limit.
            self.workers[worker] = before.restart(note=note or bool(before.pending))
        else:
            self.workers[worker] = GuardedWorker(self.backend, self.now, before.marks_revokes)
            for task_id in ("a", "b"):
                self.operators.pop((task_id, worker), None)

    @rule(worker=guarded, later_s=st.sampled_from([0.0, 1.0, 61.0, 61.0, 600.0, 4000.0]))
    def sweeps(self, worker: int, later_s: float) -> None:
        """Time passes, and the timer of one guard fires."""
        self.now[0] += later_s
        self.workers[worker].write_marks()
        run_to_end(self.workers[worker].sweeper.round())

    @rule(worker=guarded, by=task_ids)
    def an_operator_revokes_during_a_sweep(self, worker: int, by: str) -> None:
        """Between two slices anything can happen."""
        slices: Iterator[None] = self.workers[worker].sweeper.round()
        next(slices, None)
        self.revokes(by, True)
        run_to_end(slices)

    @rule()
    def the_result_backend_loses_its_keys(self) -> None:
        """It was restarted without persistence, or flushed, or evicted them.

        Two documented limits are left out: marks of ids without proof are not written anew (an
        operator's may have taken the place of one), nor are those that are lost between a peer's
        start and its look-ups.
        """
        self.backend.records.clear()
        asked = {
            task_id
            for worker in self.workers
            for origin in (Origin.FOREIGN, Origin.PROVEN, Origin.UNPROVEN)
            for task_id in worker.ledger.ids(origin)
        }
        marks = self.backend.marks.items()
        self.backend.marks = {i: is_op for i, is_op in marks if not is_op or i in asked}

    @rule(down=st.sampled_from([True, False, False]))
    def the_result_backend_goes_down_or_comes_back(self, down: bool) -> None:
        """While it is down nothing is proven, and marks wait."""
        self.backend.down = down
        for worker in self.workers:
            worker.write_marks()

    def _forgotten(self, task_id: str) -> bool:
        """Whether a guard has yet to ask for an operator's id of which nobody left word.

        Its mark was lost, and those who wrote it forgot it. That it expires before the guard asks,
        which takes seconds, is a documented limit.
        """
        if task_id in self.backend.marks or any(task_id in w.pending for w in self.workers):
            return False
        return any(
            worker.ledger.origin(task_id) is Origin.FOREIGN and self.operators.get((task_id, i))
            for i, worker in enumerate(self.workers)
        )

    # -- what must hold --------------------------------------------------------------------

    @invariant()
    def no_operators_revocation_is_cleared(self) -> None:
        """For Celery's own lifetime of a revocation it is in each set that it ever reached."""
        for (task_id, worker), revoked_at in self.operators.items():
            if worker is not None and revoked_at and self.now[0] - revoked_at < REVOKE_EXPIRES_S:
                assert task_id in self.workers[worker].revoked, (task_id, worker)

    @invariant()
    def the_ledger_knows_each_id_of_the_set(self) -> None:
        """No id is forgotten while it is held, and none is invented."""
        for worker in self.workers:
            assert set(worker.ledger.ids()) >= set(worker.revoked)

    def teardown(self) -> None:
        """At the end, after the grace, no id is left that only expiry put there."""
        self.backend.down = False
        for worker in self.workers:
            worker.write_marks()
        for _ in range(2):
            self.now[0] += GRACE_S
            for worker in self.workers:
                worker.sweeper.lookups.succeeded()
                run_to_end(worker.sweeper.round())
        for worker in self.workers:
            for task_id in worker.revoked:
                assert worker.ways[task_id] != {"expiry"}, task_id
                # Proven, and asked for: it would be gone.
                assert worker.ledger.origin(task_id) not in (Origin.FOREIGN, Origin.PROVEN)


TestHistories = Histories.TestCase
# The same histories each time, so that a change fails by what it changes.
TestHistories.settings = settings(
    max_examples=600, stateful_step_count=40, deadline=None, derandomize=True
)


class OtherHistories(Histories):
    """Others each time, and many."""


TestOtherHistories = pytest.mark.slow(OtherHistories.TestCase)
TestOtherHistories.settings = settings(max_examples=10_000, stateful_step_count=40, deadline=None)
