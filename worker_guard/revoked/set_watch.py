"""Sees all that happens to Celery's revoked set, tells the ledger why, and holds what must stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

from celery import signals

from worker_guard import celery_internals
from worker_guard.events import PutBackReason
from worker_guard.revoked.backfill import BackfillCounter, ExpiredMessage, why_expired
from worker_guard.revoked.holder import Holder
from worker_guard.revoked.ledger import LEAVING, Confirmation, Ledger, Origin
from worker_guard.values.source import Source, Stamp, Target, Way


class Listener(Protocol):
    """Called with what the watch sees. No method may raise."""

    def operator_revoked(self, target: Target) -> None:
        """An operator revoked this, now or before a restart."""

    def removed(self, task_id: str) -> None:
        """The application took an operator's id out of the set."""

    def confirmation_lost(self, task_id: str) -> None:
        """An inherited id expired here before it was looked up; its record confirms nothing."""

    def inherited_came(self) -> None:
        """An inherited id came in."""

    def was_put_back(self) -> None:
        """Operators' ids that were dropped from the set were put back."""

    def peer_came(self) -> None:
        """A peer that starts took over this worker's ids."""

    def knows_all(self) -> bool:
        """Whether this worker knows all revocations on record."""

    def watch_failed(self, error: Exception) -> None:
        """The guard's own code raised in a hook; Celery is not affected."""


class Queues(Protocol):
    """The queues that this worker takes messages from."""

    def empty_for_s(self) -> float | None:
        """Seconds within which each of them was empty; None: not known."""


class RevokedWatch:
    """Sees all that happens to the set, and holds operators' ids in it.

    :meth:`unhook` undoes every hook. In a dry run the set stays as Celery leaves it.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        holder: Holder,
        queues: Queues,
        backfill: BackfillCounter,
        dry_run: bool,
        monotonic: Callable[[], float],
        now: Callable[[], float],
        listener: Listener,
    ) -> None:
        self.ledger = ledger
        self._holder = holder
        self._queues = queues
        self._backfill = backfill
        self._dry_run = dry_run
        self._monotonic = monotonic
        self._now = now
        self._listener = listener
        self._hooks: list[celery_internals.Hook] = []
        self._room: celery_internals.HeldRoom | None = None
        self._revoked: Any = None
        self._held: Collection[str] = ()
        self._stamps_seen = 0
        #: The set that the application has put in the place of Celery's.
        self._successor: Any = None

    def start(self, worker: Any, *, before_statedb: Collection[str]) -> None:
        """Begin to watch.

        The ids that are in the set by now came from the statedb or from the application; the latter
        count as an operator's. ``before_statedb`` are those from before the statedb was read.

        Raises:
            MissingInternalError: this release, or this application's set, can't be watched; no
                hook is left behind.
        """
        revoked = celery_internals.the_revoked_set()
        noted, inherited = _noted_in_statedb(worker), celery_internals.ids_of_statedb(worker)
        inherited -= noted.operators.keys() | before_statedb
        self._held = celery_internals.held_ids(revoked)
        self._hooks = celery_internals.watch_revoked_set(worker, revoked, self)
        signals.task_revoked.connect(self._task_revoked, weak=False)
        if not self._dry_run:
            self._room = celery_internals.HeldRoom(revoked)
            self._holder.room = self._room
        now, now_mono = self._now(), self._monotonic()
        for task_id in list(self._held):
            if task_id in noted.operators:
                continue
            source = Source.INHERITED if task_id in inherited else Source.OPERATOR
            self.added(task_id, source, Way.APPLICATION)
        for task_id in inherited & noted.unproven:
            self.ledger.record_confirmation(task_id, Confirmation.UNCONFIRMED, now_mono, 0.0)
        for task_id, (since, way) in noted.operators.items():
            # An id that a full set has dropped meanwhile is revoked all the same.
            self.enter(task_id, now_mono - max(0.0, now - since), way)
            self._listener.operator_revoked(task_id)
        # An id of the application that the statedb has pushed out of the set.
        for task_id in set(before_statedb) - self._held:
            self.added(task_id, Source.OPERATOR, Way.APPLICATION)
        # Last: what a start that failed knows of the ids is not to be compared, or noted.
        self._revoked = revoked

    def compare(self) -> None:
        """Bring the ledger in line with the set; an id that no hook saw is an operator's.

        Raises:
            ReplacedSetError: the application has put another set in its place.
        """
        if self._revoked is None:
            return
        if celery_internals.is_replaced(self._revoked):
            raise celery_internals.ReplacedSetError(
                "the application replaced celery.worker.state.revoked after the start"
            )
        differences = self.ledger.compare(celery_internals.held_ids(self._revoked))
        for task_id in differences.unknown:
            self.added(task_id, Source.OPERATOR, Way.APPLICATION)
        self._put_back(differences.missing, "replaced")
        if celery_internals.count_stamps() != self._stamps_seen:  # else none was added
            self._stamps_seen = celery_internals.count_stamps()
            for header, stamp in celery_internals.revoked_stamps():
                if not self.ledger.knows_stamp(Stamp(header, stamp)):
                    self.stamped([(header, stamp)], Way.APPLICATION)

    def unhook(self) -> None:
        """Undo every hook."""
        signals.task_revoked.disconnect(self._task_revoked)
        hooks, self._hooks = self._hooks, []
        room, self._room = self._room, None
        self._holder.room = None
        with ExitStack() as undoing:  # each, from the last one on, though another raises
            for hook in hooks:
                undoing.callback(hook.undo)
            if room is not None:
                undoing.callback(room.undo)

    def note_in_statedb(self, worker: Any) -> None:
        """Write the ids that must not be cleared into the statedb, if there is one."""
        shelf = celery_internals.statedb(worker)
        if shelf is not None and self._revoked is not None:
            self.compare()
            ahead_s = self._now() - self._monotonic()
            made = {task_id: self.ledger.revocation(task_id) for task_id in self.ledger.operators}
            shelf[celery_internals.STATEDB_KEY] = {
                "operator": {
                    i: (held.since_mono + ahead_s, held.way.value)
                    for i, held in made.items()
                    if held is not None
                },
                "unproven": [*self.ledger.ids(Origin.UNCONFIRMED), *self.ledger.ids(Origin.ENDED)],
            }

    # -- what is on record -----------------------------------------------------------------

    def enter(self, target: Target, since_mono: float, way: Way) -> bool:
        """Revoke this here too; returns whether that was not known."""
        self._holder.will_end(since_mono)
        if isinstance(target, Stamp):
            if not self.ledger.knows_stamp(target):
                celery_internals.revoke_stamp(target.header, target.value)
            return self.ledger.stamped(target, since_mono, way)
        with self.ledger.changing():
            unknown = self.ledger.restored(target, since_mono, way)
            if self._room is None:
                if target not in self._held:
                    self.ledger.dropped(target)
            elif target not in self._held:
                self._room.put(target)
        return unknown

    def take_back(self, target: Target) -> bool:
        """Take this back here too; returns whether it was revoked here."""
        if isinstance(target, Stamp) or self._room is None:
            return False
        with self.ledger.changing():
            known = self.ledger.forget(target) is not None
            if known:
                self._room.remove(target)
        return known

    # -- called by the hooks ---------------------------------------------------------------

    def changing(self) -> AbstractContextManager[object]:
        """Held while the set changes."""
        return self.ledger.changing()

    def renewing(self, task_id: str) -> None:
        """An id, which may be in the set already, is about to be added."""
        if self._room is not None:
            self._room.left(task_id)

    def added(self, task_id: str, source: Source, way: Way) -> None:
        """An id was added to the set."""
        try:
            # The time of arrival, not the set's own stamp: in Celery 5.6 and before that can be
            # another host's monotonic clock, or this one's from before a reboot.
            confirmation_lost = self.ledger.added(task_id, source, self._monotonic(), way)
            if task_id in self.ledger.operators and task_id not in self._held:
                self._put_back([task_id], "set_full")  # in its own ``add``
            if confirmation_lost:
                self._listener.confirmation_lost(task_id)
            elif source is Source.OPERATOR:
                self._holder.will_end(self._monotonic())
                self._listener.operator_revoked(task_id)
            elif source is Source.INHERITED:
                self._listener.inherited_came()
        except Exception as exc:  # noqa: BLE001 - reported; the id stays in the set
            self._listener.watch_failed(exc)

    def dropped(self, task_id: str, *, full: bool) -> None:
        """Celery dropped an id."""
        try:
            if task_id in self.ledger.operators:
                self._put_back([task_id], "set_full" if full else "aged_out")
            else:
                self.ledger.dropped(task_id)
        except Exception as exc:  # noqa: BLE001 - reported; the next sweep compares
            self._listener.watch_failed(exc)

    def discarded(self, task_id: str) -> None:
        """The application took an id out of the set: its revocation is taken back here."""
        try:
            if self._room is not None:
                self._room.left(task_id)
            if self.ledger.forget(task_id) is Origin.OPERATOR:
                self._listener.removed(task_id)
        except Exception as exc:  # noqa: BLE001 - reported; the next sweep compares
            self._listener.watch_failed(exc)

    def emptied(self) -> None:
        """The application emptied the set; what operators revoked stays revoked."""
        try:
            self._put_back(self.ledger.compare(celery_internals.held_ids(self._revoked)).missing)
        except Exception as exc:  # noqa: BLE001 - reported; the next look puts them back
            self._listener.watch_failed(exc)

    def looked_at(self, task_id: str) -> None:
        """Celery is about to look whether this task is revoked."""
        try:
            if self._revoked is not None and celery_internals.is_replaced(self._revoked):
                self._share_with(celery_internals.successor(), task_id)
            if task_id in self.ledger.operators and task_id not in self._held:
                # All of them: the application has changed the set past every hook.
                self._put_back([i for i in self.ledger.operators if i not in self._held])
        except Exception as exc:  # noqa: BLE001 - reported; Celery looks at the set as it is
            self._listener.watch_failed(exc)

    def stamped(self, stamps: Sequence[tuple[str, Any]], way: Way = Way.STAMPS) -> None:
        """An operator revoked these stamped headers."""
        try:
            for stamp in (Stamp(*each) for each in stamps):
                self.ledger.stamped(stamp, self._monotonic(), way)
                self._holder.will_end(self._monotonic())
                self._listener.operator_revoked(stamp)
        except Exception as exc:  # noqa: BLE001 - reported; Celery has them
            self._listener.watch_failed(exc)

    def hands_on(self, task_id: str) -> bool:
        """Whether peers are given this id: not if Celery would not have it, or if it only expired.

        What Celery would not have can push another id out of the set of a peer without the guard.
        That an id only expired is known to a worker that has read all revocations on record.
        """
        if self._room is None:
            return True
        if self.ledger.origin(task_id) in LEAVING and self._listener.knows_all():
            return False
        return task_id not in self._room

    def hello(self) -> None:
        """A starting peer has taken over the ids of this worker."""
        try:
            self._listener.peer_came()
        except Exception as exc:  # noqa: BLE001 - reported; the peer has its reply
            self._listener.watch_failed(exc)

    def _put_back(self, task_ids: Collection[str], reason: PutBackReason = "replaced") -> None:
        if task_ids:
            self._holder.put_back(list(task_ids), reason)
            self._listener.was_put_back()

    def _share_with(self, successor: Any, task_id: str) -> None:
        """The application has put another set in the place of Celery's: let both hold the same.

        Celery adds to the new one, and looks into either.
        """
        if self._room is None:
            return
        if successor is not self._successor:
            self._successor = successor
            operators = list(self.ledger.operators)
            for each in operators:
                successor.add(each)
            self._put_back(operators)
        if task_id in successor and task_id not in self._held:
            self._revoked.add(task_id)

    def _task_revoked(self, request: Any = None, expired: bool = False, **_: Any) -> None:
        if not expired:
            return
        try:
            self.ledger.confirmed_expired(request.id)
            message = ExpiredMessage(
                expires=request.expires,
                expiration_ms=(request.properties or {}).get("expiration"),
                eta=request.eta,
                retries=request.retries or 0,
                arrived_now=celery_internals.has_just_arrived(request),
                queue_empty_for_s=self._queues.empty_for_s(),
            )
            self._backfill.add(str(request.task), why_expired(message, datetime.now(timezone.utc)))
        except Exception as exc:  # noqa: BLE001 - reported; the id stays in the set
            self._listener.watch_failed(exc)


class _Noted(NamedTuple):
    """What a guarded worker noted in the statedb when it stopped."""

    operators: dict[str, tuple[float, Way]]
    """Since when (epoch, s), and by which way."""

    unproven: frozenset[str]


def _noted_in_statedb(worker: Any) -> _Noted:
    shelf = celery_internals.statedb(worker)
    note = shelf.get(celery_internals.STATEDB_KEY) if shelf is not None else None
    if not isinstance(note, dict):
        return _Noted({}, frozenset())
    operators, unproven = note.get("operator"), note.get("unproven")
    made = operators.items() if isinstance(operators, dict) else ()
    return _Noted(
        {task_id: _noted_as(how) for task_id, how in made},
        frozenset(unproven if isinstance(unproven, list) else ()),
    )


def _noted_as(how: Any) -> tuple[float, Way]:
    try:
        since, way = how
        return float(since), Way(way)
    except (TypeError, ValueError):  # a later release wrote it: as if it was made now
        return float("inf"), Way.APPLICATION
