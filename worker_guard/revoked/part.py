"""The part that watches and sweeps the revoked set, and marks the ids that must stay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from celery.worker import state

from worker_guard import celery_internals
from worker_guard.backoff import Backoff
from worker_guard.events import CleanupCompleted, Event
from worker_guard.part import ON, Context, Part, PartOff
from worker_guard.revoked.backfill import BackfillCounter
from worker_guard.revoked.confirmation import Records, open_records
from worker_guard.revoked.holder import Holder
from worker_guard.revoked.ledger import Ledger, Origin
from worker_guard.revoked.marker import Marker
from worker_guard.revoked.record import Record, open_record
from worker_guard.revoked.restorer import Restorer
from worker_guard.revoked.set_watch import RevokedWatch
from worker_guard.revoked.sweeper import (
    UNCONFIRMED,
    RevokedActor,
    RevokedDryRun,
    Sweeper,
    clear_in_s,
)
from worker_guard.scheduler import run_to_end
from worker_guard.settings import PREFIX
from worker_guard.status_model import PastBackfill, RevokedStatus
from worker_guard.values.masking import reason_of
from worker_guard.values.source import Target, Way

#: Seconds that the last marks and the last sweep may each take, so that the worker stops soon.
_AT_STOP_S = 1.0

#: Seconds that a sweep on request runs before it continues in slices. So the reply holds the counts
#: of a small set, even if the result backend is asked for marks.
_ASKED_S = 0.05

#: An inherited id is looked up within this time, or within the interval if that is shorter.
_ASK_WITHIN_S = 5.0

#: The longest pause before marks that failed are tried again is half the grace, but at least this.
#: Another guard looks for a mark twice, a grace apart, and must find it by then. But each try at a
#: result backend that hangs holds the loop.
_LEAST_MARK_PAUSE_S = 10.0

#: The first message waits this long for the revocations on record, and for at most two round trips
#: more, each of which can hang for a timeout. The promise is 2 s. The rest is entered in slices.
_READ_AT_START_S = 0.8

#: The longest pause before a look-up that failed is tried again: until then no id is cleared.
_LONGEST_LOOKUP_PAUSE_S = 60.0


class RevokedPart(Part):
    """Watches and sweeps the revoked set of one worker, and holds its operators' revocations."""

    name: ClassVar[str] = "revoked"
    also: ClassVar[tuple[str, ...]] = ("revoked_verify", "operator_marks", "revocations")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        app, settings, scheduler = context.worker.app, context.settings, context.scheduler
        #: Whether the set is watched, so that the origins of its ids are known.
        self._watches = False
        self.backfill = BackfillCounter()
        self._queues = celery_internals.EmptyQueues(app, on_error=self.watch_failed)
        ledger = Ledger()
        self._holder = Holder(
            interval_s=settings.interval,
            ledger=ledger,
            lifetime_s=settings.revocation_lifetime,
            held_messages=lambda: celery_internals.held_task_ids(context.worker),
            on_ended=self._ended,
            report=context.report,
            monotonic=context.monotonic,
        )
        self._watch = RevokedWatch(
            ledger=ledger,
            holder=self._holder,
            queues=self._queues,
            backfill=self.backfill,
            dry_run=settings.dry_run,
            monotonic=context.monotonic,
            now=context.now,
            listener=self,
        )
        self._watching = Backoff(
            "revoked_watch", first_pause_s=settings.interval, report=context.report
        )
        self.lookups = scheduler.backoff(
            "revoked_verify",
            first_pause_s=settings.interval,
            longest_pause_s=max(settings.interval, _LONGEST_LOOKUP_PAUSE_S),
        )
        record = self._open_record(app.backend)
        records = self._open_records(app.backend, record)
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
            records=records if self.states["revoked_verify"] == ON else None,
            lookups=self.lookups,
            backfill=self.backfill,
            on_kept=lambda task_id, operators: self._mark([task_id], operators=operators),
            report=context.report,
            monotonic=context.monotonic,
        )
        self.jobs += [self._sweeper, self._holder]
        self._marker: Marker | None = None
        if records is not None and not settings.dry_run:
            self._marker = Marker(
                interval_s=settings.interval,
                longest_pause_s=max(settings.revoked_grace / 2, _LEAST_MARK_PAUSE_S),
                ledger=ledger,
                held=state.revoked,
                store=records,
                on_taken_back=self.take_back,
                monotonic=context.monotonic,
            )
            self.jobs.append(self._marker)
        self._restorer: Restorer | None = None
        if record is not None:
            self._restorer = Restorer(
                interval_s=settings.interval,
                record=record,
                ledger=ledger,
                entrance=None if settings.dry_run else self,
                pending=self._marker.pending if self._marker else (),
                report=context.report,
                monotonic=context.monotonic,
            )
            self.jobs.append(self._restorer)

    def _open_record(self, backend: Any) -> Record | None:
        try:
            return open_record(
                backend,
                lifetime_s=self.context.settings.revocation_lifetime,
                timeout_s=celery_internals.REDIS_TIMEOUT_S,
            )
        except Exception as exc:  # noqa: BLE001 - the start event gives the reason
            self.states["revocations"] = reason_of(exc)
            return None

    def _open_records(self, backend: Any, record: Record | None) -> Records | None:
        settings = self.context.settings
        off = ""
        records: Records | None = None
        try:
            records = open_records(backend, record, revoke_expires_s=float(state.revoked.expires))
        except Exception as exc:  # noqa: BLE001 - the start event gives the reason
            off = reason_of(exc)
        self.states["operator_marks"] = off or ("a dry run" if settings.dry_run else ON)
        off = off or (records.unreadable if records is not None else "")
        self.states["revoked_verify"] = off or ON
        if not settings.revoked_verify:
            self.states["revoked_verify"] = f"{PREFIX}revoked_verify is False"
        return records

    # -- the worker's life -----------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch the set. If that isn't possible, only its size is known."""
        context = self.context
        try:
            self._watch.start(context.worker, before_statedb=context.before_statedb)
            self._watches = True
            self._queues.start()
        except celery_internals.MissingInternalError as exc:
            # The origin of no id is known, so none is cleared or marked.
            self._watches = False
            self.states = dict.fromkeys(self.states, str(exc))
            for job in self.jobs:
                context.scheduler.drop(job.name)
            self.jobs, self._marker, self._restorer = [], None, None

    def connected(self) -> None:
        """Enter what is on record before the first message of this connection."""
        if self._restorer is not None:
            self._restorer.connected()
            monotonic = self.context.monotonic
            until = monotonic() + _READ_AT_START_S
            self.context.scheduler.begin(Restorer.name, until=lambda: monotonic() >= until)

    def stop(self, *, cold: bool) -> None:
        """Sweep for the last time, before the statedb is written, and undo every hook."""
        attempt = self.context.attempt
        if not cold:
            attempt("operator_marks", self._write_last_marks)
        attempt("last_sweep", lambda: self._sweep_for_the_last_time(ask=not cold))
        attempt(self.name, self._watch.unhook)
        attempt(self.name, self._queues.stop)
        attempt("statedb", self._note_in_statedb)

    def _write_last_marks(self) -> None:
        """Mark all operators' ids once more, for about a second at most."""
        if self._marker is None:
            return
        # The result backend may have lost a mark, and what this worker knows ends with it.
        if self._restorer is None:
            self.record_again(self._watch.ledger.revocations())
        else:
            self._run_briefly(self._restorer.look_for_losses())
        self._run_briefly(self._marker.run())

    def _sweep_for_the_last_time(self, *, ask: bool) -> None:
        """Sweep once more, with no grace for ids that expired here, for about a second at most.

        If the result backend holds marks but must not be asked, clear nothing.
        """
        if self._watches and (ask or self._sweeper.marks is None):
            self._run_briefly(replace(self._sweeper, grace_s=0.0).run())

    def _note_in_statedb(self) -> None:
        self._watch.note_in_statedb(self.context.worker)

    def _run_briefly(self, slices: Iterator[None]) -> None:
        monotonic = self.context.monotonic
        until = monotonic() + _AT_STOP_S
        run_to_end(slices, until=lambda: monotonic() >= until)

    # -- on request ------------------------------------------------------------------------

    def sweep_now(self, *, dry_run: bool) -> tuple[CleanupCompleted | None, bool]:
        """Sweep now; returns the result, and whether it was a dry run.

        A result of None: the sweep takes longer, and continues in slices; the log will have the
        result.

        Raises:
            PartOff: the set can't be swept; the message says why.
        """
        if not self._watches:
            raise PartOff(f"the revoked set is not swept: {self.states[self.name]}")
        context = self.context
        preview = dry_run and not context.settings.dry_run
        report = context.preview if preview else context.report
        done: list[CleanupCompleted] = []

        def note(event: Event) -> None:
            if isinstance(event, CleanupCompleted):
                done.append(event)
            report(event)

        sweeper = self._sweeper.preview(note) if preview else replace(self._sweeper, report=note)
        deadline = context.monotonic() + _ASKED_S
        slices = sweeper.run("control")
        run_to_end(slices, until=lambda: context.monotonic() >= deadline)
        if not done:
            context.scheduler.resume(Sweeper.name, slices)
        return (done[0] if done else None), dry_run or context.settings.dry_run

    def status(self, *, quick: bool) -> dict[str, Any]:
        """How many ids there are of each origin, and when those that are due to leave are cleared.

        The origins add up to the total. ``quick`` doesn't compare the ledger with the set, since
        only the consumer's thread may: the counts are as of the last change that the hooks saw.
        """
        counts: dict[str, int] = {}
        if self._watches:
            with contextlib.suppress(celery_internals.ReplacedSetError):
                if not quick:
                    self._watch.compare()
                counts = self._counts()
        clearing = counts.get("expired", 0) + counts.get("confirmed", 0)
        if self.lookups.consecutive_failures:
            clearing = 0  # until the result backend answers, nothing is cleared
        return {
            "revoked": RevokedStatus(
                total=len(state.revoked),
                **counts,
                stamps=len(state.revoked_stamps),
                clearing=clearing,
                next_clear_s=self._clear_in_s() if clearing else None,
                lingering=self._lingering(),
                expired_tasks=self.backfill.causes_in_all(),
            ),
            "last_backfill": self._last_backfill(),
        }

    def _counts(self) -> dict[str, int]:
        count = self._watch.ledger.count
        return {
            "operator": count(Origin.OPERATOR) + count(Origin.ENDED),
            "expired": count(Origin.EXPIRED),
            "confirmed": count(Origin.CONFIRMED),
            "unproven": sum(map(count, UNCONFIRMED)),
            "would_clear": count(Origin.WOULD_CLEAR),
        }

    def _lingering(self) -> int:
        """How many ids are neither an operator's nor about to be cleared."""
        if not self._watches:
            return len(state.revoked)
        count = self._watch.ledger.count
        stay = [Origin.UNCONFIRMED, Origin.EXPIRING]
        if self._sweeper.records is None or self.lookups.consecutive_failures:
            stay.append(Origin.INHERITED)  # else they are looked up within seconds
        if self.lookups.consecutive_failures:
            stay += [Origin.EXPIRED, Origin.CONFIRMED]  # nothing is cleared until it answers
        return sum(map(count, stay))

    def _last_backfill(self) -> PastBackfill | None:
        last = self.backfill.last
        if last is None:
            return None
        age_s = self.context.monotonic() - self.backfill.last_mono
        return PastBackfill(
            at=round(self.context.now() - age_s, 3),
            age_s=round(age_s, 1),
            expired_tasks=last.expired_tasks,
            tasks=last.tasks,
            waited_s_p50=last.waited_s_p50,
            waited_s_max=last.waited_s_max,
            causes=last.causes,
        )

    def _clear_in_s(self) -> float:
        """Seconds until the last of the ids that are due to leave is cleared."""
        settings = self.context.settings
        came_mono = self._watch.ledger.last_leaving_mono or 0.0
        ready_in_s = came_mono + settings.revoked_grace - self.context.monotonic()
        due_in_s = self.context.scheduler.due_in_s(Sweeper.name)
        return round(clear_in_s(ready_in_s, due_in_s=due_in_s, interval_s=settings.interval), 1)

    # -- called by the watch -----------------------------------------------------------

    def operator_revoked(self, target: Target) -> None:
        """An operator revoked this, now or before a restart."""
        self._mark([target], operators=True)

    def removed(self, task_id: str) -> None:
        """The application took an operator's id out of the set."""
        if self._marker is not None:
            self._marker.remove(task_id)
            self.context.scheduler.run_soon(self._marker.name)

    def confirmation_lost(self, task_id: str) -> None:
        """An inherited id expired here before it was looked up; its record confirms nothing."""
        # The mark tells peers too: one that inherits the id from here would find only the record.
        self._mark([task_id], operators=False)

    def inherited_came(self) -> None:
        """An inherited id came in."""
        # Soon, since the result backend's first answer counts. At a random moment, so that a fleet
        # that inherits the same ids doesn't ask at once.
        self.context.scheduler.run_soon(self._sweeper.name, within_s=_ASK_WITHIN_S)

    def was_put_back(self) -> None:
        """Operators' ids that were dropped from the set were put back."""
        self.context.scheduler.run_soon(self._holder.name)

    def peer_came(self) -> None:
        """A peer that starts took over this worker's ids."""
        # It will look for them in the result backend, which may have lost them, or was down when
        # they were due.
        run_soon = self.context.scheduler.run_soon
        if self._restorer is not None:
            run_soon(self._restorer.name, within_s=_ASK_WITHIN_S)
        if self._marker is not None and self._marker.pending:
            run_soon(self._marker.name, within_s=_ASK_WITHIN_S, anyway=True)

    def knows_all(self) -> bool:
        """Whether this worker knows all revocations on record."""
        if self._restorer is not None:
            return self._restorer.has_read
        return self._sweeper.marks is None  # else a mark that nobody read yet may stand

    def watch_failed(self, error: Exception) -> None:
        """The guard's own code raised in a hook; Celery is not affected."""
        self._watching.noticed(error, self.context.monotonic())

    # -- what is on record -----------------------------------------------------------------

    def enter(self, target: Target, since_mono: float, way: Way) -> bool:
        """Revoke this here too; returns whether that was not known."""
        return self._watch.enter(target, since_mono, way)

    def take_back(self, target: Target) -> bool:
        """Take this back here too; returns whether it was revoked here."""
        return self._watch.take_back(target)

    def record_again(self, targets: Sequence[Target]) -> None:
        """Record these once more."""
        self._mark(targets, operators=True)

    def unrevoke(self, task_ids: Sequence[str]) -> int:
        """Take these revocations back here, on request; returns how many were revoked here.

        Raises:
            PartOff: the set can't be changed; the message says why.
        """
        if not self._watches:
            raise PartOff(f"the revoked set is not watched: {self.states[self.name]}")
        if self.context.settings.dry_run:
            raise PartOff("a dry run changes nothing")
        found = sum(self.take_back(task_id) for task_id in task_ids)
        if self._restorer is None:  # else they are off the record already
            for task_id in task_ids:
                self.removed(task_id)
        return found

    def _ended(self, task_ids: Sequence[str]) -> None:
        """The lifetime of these ids is over: no guard may clear them when they leave the record."""
        if self._marker is not None:
            self._marker.ended(task_ids)

    def _mark(self, targets: Sequence[Target], *, operators: bool) -> None:
        if self._marker is not None:
            self._marker.keep(targets, operators=operators)
            self.context.scheduler.run_soon(self._marker.name)
