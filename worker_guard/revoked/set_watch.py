"""Sees each id that enters Celery's revoked set, and tells the ledger why."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

from celery import signals

from worker_guard import celery_internals
from worker_guard.revoked.backfill import BackfillCounter, ExpiredMessage, why_expired
from worker_guard.revoked.ledger import Confirmation, Ledger, Origin
from worker_guard.values.source import Source


class Listener(Protocol):
    """Called with what the watch sees. No method may raise."""

    def operator_revoked(self, task_id: str) -> None:
        """An operator revoked this id, now or before a restart."""

    def confirmation_lost(self, task_id: str) -> None:
        """An inherited id expired here before it was looked up; its record confirms nothing."""

    def inherited_came(self) -> None:
        """An inherited id came in."""

    def peer_came(self, operators: Collection[str]) -> None:
        """A peer that starts took over this worker's ids; these of them are an operator's."""

    def watch_failed(self, error: Exception) -> None:
        """The guard's own code raised in a hook; Celery is not affected."""


class Queues(Protocol):
    """The queues that this worker takes messages from."""

    def empty_for_s(self) -> float | None:
        """Seconds within which each of them was empty; None: not known."""


class RevokedWatch:
    """Hooks into each place where ids enter the set; :meth:`unhook` undoes every hook."""

    def __init__(
        self,
        *,
        queues: Queues,
        backfill: BackfillCounter,
        monotonic: Callable[[], float],
        listener: Listener,
    ) -> None:
        self.ledger = Ledger()
        self._queues = queues
        self._backfill = backfill
        self._monotonic = monotonic
        self._listener = listener
        self._hooks: list[celery_internals.Hook] = []
        self._revoked: Any = None

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
        inherited -= noted.operators.union(before_statedb)
        self._hooks = celery_internals.watch_revoked_set(
            worker, revoked, self._added, self._dropped, self._hello, self.ledger.changing
        )
        signals.task_revoked.connect(self._task_revoked, weak=False)
        # An id that a full set has dropped meanwhile is revoked all the same.
        dropped = noted.operators.union(before_statedb) - celery_internals.held_ids(revoked)
        for task_id in [*celery_internals.held_ids(revoked), *dropped]:
            self._added(task_id, Source.INHERITED if task_id in inherited else Source.OPERATOR)
        for task_id in inherited & noted.unproven:
            self.ledger.record_confirmation(
                task_id, Confirmation.UNCONFIRMED, self._monotonic(), 0.0
            )
        # Last: what a start that failed knows of the ids is not to be compared, or noted.
        self._revoked = revoked

    def compare(self) -> None:
        """Bring the ledger in line with the set; an id that no hook saw is an operator's.

        Raises:
            ReplacedSetError: the application has put another set in its place.
        """
        if self._revoked is not None and celery_internals.the_revoked_set() is not self._revoked:
            raise celery_internals.ReplacedSetError(
                "the application replaced celery.worker.state.revoked after the start"
            )
        if self._revoked is not None:
            for task_id in self.ledger.compare(celery_internals.held_ids(self._revoked)):
                self._added(task_id, Source.OPERATOR)

    def unhook(self) -> None:
        """Undo every hook."""
        signals.task_revoked.disconnect(self._task_revoked)
        hooks, self._hooks = self._hooks, []
        with ExitStack() as undoing:  # each, from the last one on, though another raises
            for hook in hooks:
                undoing.callback(hook.undo)

    def note_in_statedb(self, worker: Any, *, unmarked: Collection[str]) -> None:
        """Write the ids that must not be cleared into the statedb, if there is one.

        Of the ids that Celery has dropped, only the ``unmarked``: nothing else records them.
        """
        shelf = celery_internals.statedb(worker)
        if shelf is not None and self._revoked is not None:
            self.compare()
            shelf[celery_internals.STATEDB_KEY] = {
                "operator": list({*self.ledger.ids(Origin.OPERATOR), *unmarked}),
                "unproven": self.ledger.ids(Origin.UNCONFIRMED),
            }

    def _added(self, task_id: str, source: Source) -> None:
        try:
            # The time of arrival, not the set's own stamp: in Celery 5.6 and before that can be
            # another host's monotonic clock, or this one's from before a reboot.
            confirmation_lost = self.ledger.added(task_id, source, self._monotonic())
            if confirmation_lost:
                self._listener.confirmation_lost(task_id)
            elif source is Source.OPERATOR:
                self._listener.operator_revoked(task_id)
            elif source is Source.INHERITED:
                self._listener.inherited_came()
        except Exception as exc:  # noqa: BLE001 - reported; the id stays in the set
            self._listener.watch_failed(exc)

    def _dropped(self, task_id: str) -> None:
        try:
            self.ledger.dropped(task_id)
        except Exception as exc:  # noqa: BLE001 - reported; the next sweep compares
            self._listener.watch_failed(exc)

    def _hello(self) -> None:
        try:
            self._listener.peer_came(self.ledger.ids(Origin.OPERATOR))
        except Exception as exc:  # noqa: BLE001 - reported; the peer has its reply
            self._listener.watch_failed(exc)

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

    operators: frozenset[str]
    unproven: frozenset[str]


def _noted_in_statedb(worker: Any) -> _Noted:
    shelf = celery_internals.statedb(worker)
    note = shelf.get(celery_internals.STATEDB_KEY) if shelf is not None else None
    kept = [note.get(name) if isinstance(note, dict) else None for name in ("operator", "unproven")]
    return _Noted(*(frozenset(ids if isinstance(ids, list) else ()) for ids in kept))
