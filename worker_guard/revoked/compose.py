"""What heals the revoked set of one worker, put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, Protocol

from celery.worker import state

from worker_guard import celery_internals
from worker_guard.containment import Containment
from worker_guard.events import CleanupCompleted, Event, Trigger
from worker_guard.reporting import masked
from worker_guard.revoked.backfill import Backfill
from worker_guard.revoked.ledger import LEAVING, Origin
from worker_guard.revoked.records import Records, open_records
from worker_guard.revoked.sweeper import (
    UNPROVEN,
    Actor,
    DryRun,
    Marker,
    Sweeper,
    Totals,
    clear_in_s,
)
from worker_guard.revoked.watch import RevokedWatch
from worker_guard.scheduler import SLICE_S, Part, run_to_end
from worker_guard.settings import PREFIX, Settings

#: The last marks and the last sweep take no longer each, so that a worker told to stop does.
_AT_STOP_S = 1.0

#: An id from elsewhere is looked up within this time, or the interval where that is shorter.
_ASK_WITHIN_S = 5.0

#: The longest pause between tries at a mark that fails. Another guard looks for it twice, a grace
#: apart: it is to be there by then. But a result backend that hangs costs the loop each time.
_LEAST_MARK_PAUSE_S = 10.0

_ON = "on"


class Hasten(Protocol):
    """Has a part's next round earlier; as :meth:`worker_guard.scheduler.Scheduler.hasten`."""

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
        hasten: Hasten,
        monotonic: Callable[[], float],
    ) -> None:
        self._settings, self._hasten, self._monotonic = settings, hasten, monotonic
        self.states: dict[str, str] = {}
        self.backfill = Backfill()
        self._watch = RevokedWatch(backfill=self.backfill, monotonic=monotonic, listener=self)
        self._watching = Containment(
            "revoked_watch", first_pause_s=settings.interval, report=report
        )
        self.lookups = Containment("revoked_verify", first_pause_s=settings.interval, report=report)
        records = self._open_records(app.backend)
        actor: Actor = DryRun() if settings.dry_run else celery_internals.Discarding(state.revoked)
        self._sweeper = Sweeper(
            interval_s=settings.interval,
            grace_s=settings.revoked_grace,
            ledger=self._watch.ledger,
            revoked=state.revoked,
            actor=actor,
            records=records if settings.revoked_verify else None,
            lookups=self.lookups,
            backfill=self.backfill,
            totals=totals,
            on_kept=self._keep_marked,
            report=report,
            monotonic=monotonic,
        )
        self.parts: list[Part] = [self._sweeper]
        self._pending_marks: dict[str, bool] = {}
        self._marker: Marker | None = None
        if records is not None and not settings.dry_run:
            self._marker = Marker(
                interval_s=settings.interval,
                pending=self._pending_marks,
                held=state.revoked,
                store=records,
            )
            self.parts.append(self._marker)
        #: For the scheduler, by the part's name.
        self.longest_pauses_s = {Marker.name: max(settings.revoked_grace / 2, _LEAST_MARK_PAUSE_S)}

    def _open_records(self, backend: Any) -> Records | None:
        off: str | None = None
        records: Records | None = None
        try:
            records = open_records(backend, revoke_expires_s=float(state.revoked.expires))
        except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
            off = masked(str(exc) or repr(exc))
        self.states["revoked_verify"] = off or _ON
        if not self._settings.revoked_verify:
            self.states["revoked_verify"] = f"{PREFIX}revoked_verify is False"
        self.states["operator_marks"] = off or ("a dry run" if self._settings.dry_run else _ON)
        return records

    # -- the worker's life -----------------------------------------------------------------

    def start(self, worker: Any) -> None:
        """Begin to watch."""
        try:
            self._watch.start(worker)
            self.states["revoked"] = _ON
        except celery_internals.MissingInternalError as exc:
            # Nothing is known of any id then, and so nothing is cleared or marked.
            off = ("revoked", "revoked_verify", "operator_marks")
            self.states.update(dict.fromkeys(off, str(exc)))

    def write_last_marks(self) -> None:
        """Mark all operators' ids once more, for about a second at most."""
        if self._marker is None:
            return
        # The result backend may have lost a mark, and this worker takes what it knows with it.
        operators = self._watch.ledger.ids(Origin.OPERATOR)
        self._pending_marks.update(dict.fromkeys(operators, True))
        self._run_briefly(self._marker.round())

    def sweep_for_the_last_time(self, *, ask: bool) -> None:
        """Sweep without a grace, for about a second at most; ``ask``: the result backend, too."""
        sweeper = replace(self._sweeper, grace_s=0.0)
        self._run_briefly((sweeper if ask else replace(sweeper, records=None)).round())

    def unhook(self) -> None:
        """Undo every hook."""
        self._watch.unhook()

    def note_in_statedb(self, worker: Any) -> None:
        """Note which ids are an operator's in the statedb, if there is one."""
        self._watch.note_in_statedb(worker)

    def _run_briefly(self, slices: Iterator[None]) -> None:
        until = self._monotonic() + _AT_STOP_S
        run_to_end(slices, until=lambda: self._monotonic() >= until)

    # -- on request ------------------------------------------------------------------------

    def sweep(
        self, report: Callable[[Event], None], trigger: Trigger, *, preview: bool
    ) -> tuple[CleanupCompleted | None, Iterator[None]]:
        """Sweep now for one slice, as a dry run where it is a ``preview``.

        Returns what came of it, or None and the rest, to be run in slices.
        """
        done: list[CleanupCompleted] = []

        def note(event: Event) -> None:
            if isinstance(event, CleanupCompleted):
                done.append(event)
            report(event)

        sweeper = self._sweeper.preview(note) if preview else replace(self._sweeper, report=note)
        deadline = self._monotonic() + SLICE_S
        slices = sweeper.round(trigger)
        run_to_end(slices, until=lambda: self._monotonic() >= deadline)
        return (done[0] if done else None), slices

    def describe(self, *, due_in_s: float = 0.0) -> dict[str, int | float | None]:
        """How many ids there are of each origin, and when those on their way out are cleared.

        ``due_in_s`` is the time until the next sweep.
        """
        count = self._watch.ledger.count
        leaving = sum(map(count, LEAVING))
        return {
            "total": len(state.revoked),
            "operator": count(Origin.OPERATOR),
            "expired": count(Origin.EXPIRED),
            "proven": count(Origin.PROVEN),
            "unproven": sum(map(count, UNPROVEN)),
            "stamps": len(state.revoked_stamps),
            "clearing": leaving,
            "next_clear_s": self._clear_in_s(due_in_s) if leaving else None,
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

    def proof_lost(self, task_id: str) -> None:
        """An id from elsewhere expired here before it was asked for; its record proves nothing."""
        # Nor to a peer that gets the id from here, and would find the record alone.
        self._keep_marked(task_id, False)

    def foreign_came(self) -> None:
        """An id came in from elsewhere."""
        # What the result backend says of an id counts from when it is first asked. A fleet that
        # gets the same ids at once is still spread.
        self._hasten(self._sweeper.name, within_s=_ASK_WITHIN_S)

    def peer_came(self, operators: Collection[str]) -> None:
        """A peer that starts took our ids over; these of them are an operator's."""
        if self._marker is None:
            return
        # It will look for their marks, which the result backend may have lost meanwhile, or which
        # could not be written so far.
        self._pending_marks.update(dict.fromkeys(operators, True))
        if self._pending_marks:
            self._hasten(self._marker.name, anyway=True)

    def watch_failed(self, error: Exception) -> None:
        """The guard's own code raised in a hook; Celery was not touched by it."""
        self._watching.noticed(error, self._monotonic())

    def _keep_marked(self, task_id: str, operators: bool) -> None:
        if self._marker is not None:
            self._pending_marks[task_id] = operators or self._pending_marks.get(task_id, False)
            self._hasten(self._marker.name)
