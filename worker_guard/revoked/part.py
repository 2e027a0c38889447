"""What heals the revoked set of one worker, put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, Protocol

from celery.worker import state

from worker_guard import celery_internals
from worker_guard.backoff import Backoff
from worker_guard.errors import WorkerGuardError
from worker_guard.events import CleanupCompleted, Event, Trigger
from worker_guard.revoked.backfill import BackfillCounter
from worker_guard.revoked.confirmation import Records, open_records
from worker_guard.revoked.ledger import Origin
from worker_guard.revoked.marker import Marker
from worker_guard.revoked.set_watch import RevokedWatch
from worker_guard.revoked.sweeper import (
    UNCONFIRMED,
    RevokedActor,
    RevokedDryRun,
    Sweeper,
    Totals,
    clear_in_s,
)
from worker_guard.scheduler import Part, run_to_end
from worker_guard.settings import PREFIX, Settings
from worker_guard.values.masking import reason_of

#: The last marks and the last sweep take no longer each, so that a worker told to stop does.
_AT_STOP_S = 1.0

#: A sweep that somebody asked for runs so long before it goes on in slices: the answer is to hold
#: its counts where the set is small, and the result backend is asked for marks meanwhile.
_ASKED_S = 0.05

#: An id from elsewhere is looked up within this time, or the interval where that is shorter.
_ASK_WITHIN_S = 5.0

#: The longest pause between tries at a mark that fails. Another guard looks for it twice, a grace
#: apart: it is to be there by then. But a result backend that hangs costs the loop each time.
_LEAST_MARK_PAUSE_S = 10.0

#: Marks are written anew for a peer that starts, but not for each of several within this time.
_HAND_ON_S = 10.0

#: So many marks wait at most for a result backend that is away: twice what Celery's set holds.
_MOST_PENDING = 100_000

#: The longest pause between tries at a look-up that fails: until it succeeds no id is cleared.
_LONGEST_LOOKUP_PAUSE_S = 60.0

_ON = "on"


class Hasten(Protocol):
    """Has a part's next round earlier; as :meth:`worker_guard.scheduler.Scheduler.run_soon`."""

    def __call__(self, part: str, *, within_s: float = 0.0, anyway: bool = False) -> None: ...


class Revoked:
    """The revoked set of one worker: watched, swept, and its operators' ids marked.

    :attr:`parts` are for the scheduler; :attr:`states` maps names of the start event to ``"on"``
    or to the reason why they are off. Connects to nothing yet.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        *,
        totals: Totals,
        report: Callable[[Event], None],
        run_soon: Hasten,
        monotonic: Callable[[], float],
    ) -> None:
        self._settings, self._hasten, self._monotonic = settings, run_soon, monotonic
        self.states: dict[str, str] = {}
        self.backfill = BackfillCounter()
        self._queues = celery_internals.EmptyQueues(app, on_error=self.watch_failed)
        self._watch = RevokedWatch(
            queues=self._queues, backfill=self.backfill, monotonic=monotonic, listener=self
        )
        self._watching = Backoff("revoked_watch", first_pause_s=settings.interval, report=report)
        self.lookups = Backoff(
            "revoked_verify",
            first_pause_s=settings.interval,
            longest_pause_s=max(settings.interval, _LONGEST_LOOKUP_PAUSE_S),
            report=report,
        )
        records = self._open_records(app.backend)
        actor: RevokedActor = (
            RevokedDryRun() if settings.dry_run else celery_internals.Discarding(state.revoked)
        )
        self._sweeper = Sweeper(
            interval_s=settings.interval,
            grace_s=settings.revoked_grace,
            confirmed_grace_s=settings.revoked_grace,
            compare=self._watch.compare,
            ledger=self._watch.ledger,
            revoked=state.revoked,
            actor=actor,
            marks=records,
            records=records if self.states["revoked_verify"] == _ON else None,
            lookups=self.lookups,
            backfill=self.backfill,
            totals=totals,
            on_kept=self._keep_marked,
            report=report,
            monotonic=monotonic,
        )
        self.parts: list[Part] = [self._sweeper]
        self._pending_marks: dict[str, bool] = {}
        self._handed_on_mono = -_HAND_ON_S
        self._marker: Marker | None = None
        if records is not None and not settings.dry_run:
            self._marker = Marker(
                interval_s=settings.interval,
                pending=self._pending_marks,
                held=state.revoked,
                kept=self._kept,
                store=records,
                monotonic=monotonic,
            )
            self.parts.append(self._marker)
        #: For the scheduler, by the part's name.
        self.longest_pauses_s = {Marker.name: max(settings.revoked_grace / 2, _LEAST_MARK_PAUSE_S)}

    def _open_records(self, backend: Any) -> Records | None:
        off = ""
        records: Records | None = None
        try:
            records = open_records(backend, revoke_expires_s=float(state.revoked.expires))
        except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
            off = reason_of(exc)
        self.states["operator_marks"] = off or ("a dry run" if self._settings.dry_run else _ON)
        off = off or (records.unreadable if records is not None else "")
        self.states["revoked_verify"] = off or _ON
        if not self._settings.revoked_verify:
            self.states["revoked_verify"] = f"{PREFIX}revoked_verify is False"
        return records

    # -- the worker's life -----------------------------------------------------------------

    def start(self, worker: Any, *, before_statedb: Collection[str]) -> None:
        """Begin to watch; :attr:`parts` is empty where that can't be done.

        ``before_statedb`` is what the application put into the set before the statedb was read.
        """
        try:
            self._watch.start(worker, before_statedb=before_statedb)
            self.states["revoked"] = _ON
            self._queues.start()
        except celery_internals.MissingInternalError as exc:
            # Nothing is known of any id then, and so nothing is cleared or marked.
            off = ("revoked", "revoked_verify", "operator_marks")
            self.states.update(dict.fromkeys(off, str(exc)))
            self.parts, self._marker = [], None

    @property
    def watches(self) -> bool:
        """Whether the set is watched, so that the origins of its ids are known."""
        return self.states.get("revoked") == _ON

    def write_last_marks(self) -> None:
        """Mark all operators' ids once more, for about a second at most."""
        if self._marker is None:
            return
        # The result backend may have lost a mark, and this worker takes what it knows with it.
        self._pending_marks.update(dict.fromkeys(self._watch.ledger.ids(Origin.OPERATOR), True))
        self._run_briefly(self._marker.run())

    def sweep_for_the_last_time(self, *, ask: bool) -> None:
        """Sweep what expired here without a grace, for about a second at most.

        Where the result backend holds marks and is not to be asked, nothing may be cleared.
        """
        if self.watches and (ask or self._sweeper.marks is None):
            self._run_briefly(replace(self._sweeper, grace_s=0.0).run())

    def unhook(self) -> None:
        """Undo every hook."""
        self._watch.unhook()
        self._queues.stop()

    def note_in_statedb(self, worker: Any) -> None:
        """Note which ids are not to be cleared in the statedb, if there is one."""
        unmarked = [task_id for task_id, is_op in self._pending_marks.items() if is_op]
        self._watch.note_in_statedb(worker, unmarked=unmarked)

    def _run_briefly(self, slices: Iterator[None]) -> None:
        until = self._monotonic() + _AT_STOP_S
        run_to_end(slices, until=lambda: self._monotonic() >= until)

    # -- on request ------------------------------------------------------------------------

    def sweep(
        self, report: Callable[[Event], None], trigger: Trigger, *, preview: bool
    ) -> tuple[CleanupCompleted | None, Iterator[None]]:
        """Sweep now for one slice, as a dry run where it is a ``preview``.

        Returns what came of it, or None and the rest, to be run in slices.

        Raises:
            WorkerGuardError: the set can't be swept; the message says why.
        """
        done: list[CleanupCompleted] = []

        def note(event: Event) -> None:
            if isinstance(event, CleanupCompleted):
                done.append(event)
            report(event)

        if not self.watches:
            raise WorkerGuardError(f"the revoked set is not swept: {self.states['revoked']}")
        sweeper = self._sweeper.preview(note) if preview else replace(self._sweeper, report=note)
        deadline = self._monotonic() + _ASKED_S
        slices = sweeper.run(trigger)
        run_to_end(slices, until=lambda: self._monotonic() >= deadline)
        return (done[0] if done else None), slices

    def describe(
        self, *, due_in_s: float = 0.0, compare: bool = True
    ) -> dict[str, int | float | None]:
        """How many ids there are of each origin, and when those on their way out are cleared.

        The origins add up to the total. Where the set is not watched nothing is known of its ids
        but their number (None). ``due_in_s`` is the time until the next sweep. To ``compare`` the
        ledger with the set is for the consumer's thread alone; without it the counts are as of the
        last change that was heard of.
        """
        names = ("operator", "expired", "proven", "unproven", "would_clear")
        counts: dict[str, int | None] = dict.fromkeys(names)
        if self.watches:
            with contextlib.suppress(celery_internals.ReplacedSetError):
                if compare:
                    self._watch.compare()
                counts.update(self._counts())
        leaving = (counts["expired"] or 0) + (counts["proven"] or 0)
        if self.lookups.consecutive_failures:
            leaving = 0  # until the result backend answers, nothing is cleared
        return {
            "total": len(state.revoked),
            **counts,
            "stamps": len(state.revoked_stamps),
            "clearing": leaving,
            "next_clear_s": self._clear_in_s(due_in_s) if leaving else None,
        }

    def _counts(self) -> dict[str, int]:
        count = self._watch.ledger.count
        return {
            "operator": count(Origin.OPERATOR),
            "expired": count(Origin.EXPIRED),
            "proven": count(Origin.CONFIRMED),
            "unproven": sum(map(count, UNCONFIRMED)),
            "would_clear": count(Origin.WOULD_CLEAR),
        }

    def alarming(self) -> int:
        """How many ids are no operator's, and not about to be cleared."""
        if not self.watches:
            return len(state.revoked)
        count = self._watch.ledger.count
        stay = [Origin.UNCONFIRMED, Origin.EXPIRING]
        if self._sweeper.records is None or self.lookups.consecutive_failures:
            stay.append(Origin.INHERITED)  # else it is asked for within seconds
        if self.lookups.consecutive_failures:
            stay += [Origin.EXPIRED, Origin.CONFIRMED]  # nothing is cleared until it answers
        return sum(map(count, stay))

    def _kept(self) -> dict[str, bool]:
        """What is to be marked, for as long as it is held: and whether it is an operator's."""
        ids = self._watch.ledger.ids
        return {
            **dict.fromkeys(ids(Origin.UNCONFIRMED), False),
            **dict.fromkeys(ids(Origin.OPERATOR), True),
        }

    def _clear_in_s(self, due_in_s: float) -> float:
        """In how many seconds the last of the ids on their way out is cleared."""
        came_mono = self._watch.ledger.last_leaving_mono or 0.0
        ready_in_s = came_mono + self._settings.revoked_grace - self._monotonic()
        interval_s = self._settings.interval
        return round(clear_in_s(ready_in_s, due_in_s=due_in_s, interval_s=interval_s), 1)

    # -- what the watch is told by -----------------------------------------------------------

    def operator_revoked(self, task_id: str) -> None:
        """An operator revoked this id, here and now or before a restart."""
        self._keep_marked(task_id, True)

    def confirmation_lost(self, task_id: str) -> None:
        """An id from elsewhere expired here before it was asked for; its record proves nothing."""
        # Nor to a peer that gets the id from here, and would find the record alone.
        self._keep_marked(task_id, False)

    def inherited_came(self) -> None:
        """An id came in from elsewhere."""
        # What the result backend says of an id counts from when it is first asked. A fleet that
        # gets the same ids at once is still spread.
        self._hasten(self._sweeper.name, within_s=_ASK_WITHIN_S)

    def peer_came(self, operators: Collection[str]) -> None:
        """A peer that starts took our ids over; these of them are an operator's."""
        if self._marker is None:
            return
        # It will look for their marks, which the result backend may have lost meanwhile, or which
        # could not be written so far. Many peers start at once: one time serves all of them.
        now = self._monotonic()
        if now - self._handed_on_mono < _HAND_ON_S:
            return
        self._handed_on_mono = now
        self._pending_marks.update(dict.fromkeys(operators, True))
        if self._pending_marks:
            self._hasten(self._marker.name, anyway=True)

    def watch_failed(self, error: Exception) -> None:
        """The guard's own code raised in a hook; Celery was not touched by it."""
        self._watching.noticed(error, self._monotonic())

    def _keep_marked(self, task_id: str, operators: bool) -> None:
        if self._marker is not None:
            self._pending_marks[task_id] = operators or self._pending_marks.get(task_id, False)
            while len(self._pending_marks) > _MOST_PENDING:
                del self._pending_marks[next(iter(self._pending_marks))]
            self._hasten(self._marker.name)
