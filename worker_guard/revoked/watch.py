"""Keeps the ledger true: hears of each id that enters Celery's revoked set, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timezone
from typing import Any, Protocol

from celery import signals
from celery.worker import state

from worker_guard import celery_internals
from worker_guard.revoked.backfill import Backfill, waited_s
from worker_guard.revoked.ledger import Ledger, Origin, Source


class Listener(Protocol):
    """Who is told what the watch sees. None of these may raise."""

    def operator_revoked(self, task_id: str) -> None:
        """An operator revoked this id, here and now or before a restart."""

    def proof_lost(self, task_id: str) -> None:
        """An id from elsewhere expired here before it was asked for; its record proves nothing."""

    def foreign_came(self) -> None:
        """An id came in from elsewhere."""

    def peer_came(self, operators: Collection[str]) -> None:
        """A peer that starts took our ids over; these of them are an operator's."""

    def watch_failed(self, error: Exception) -> None:
        """The guard's own code raised in a hook; Celery was not touched by it."""


class RevokedWatch:
    """Hooks into the ways by which ids enter the set; :meth:`unhook` undoes every hook."""

    def __init__(
        self, *, backfill: Backfill, monotonic: Callable[[], float], listener: Listener
    ) -> None:
        self.ledger = Ledger()
        self._backfill = backfill
        self._monotonic = monotonic
        self._listener = listener
        self._hooks: list[celery_internals.Hook] = []

    def start(self, worker: Any) -> None:
        """Begin to watch; what is in the set by now came from elsewhere.

        Raises:
            MissingInternalError: this release can't be watched; no hook is left behind.
        """
        self._hooks = celery_internals.watch_revoked_set(
            worker, self._added, self._hello, self.ledger.changing
        )
        signals.task_revoked.connect(self._task_revoked, weak=False)
        operators = _noted_in_statedb(worker)
        for task_id in state.revoked.as_dict():
            self._added(task_id, Source.OPERATOR if task_id in operators else Source.FOREIGN)

    def unhook(self) -> None:
        """Undo every hook."""
        signals.task_revoked.disconnect(self._task_revoked)
        for hook in reversed(self._hooks):
            hook.undo()
        self._hooks = []

    def note_in_statedb(self, worker: Any) -> None:
        """Note which ids are an operator's in the statedb, if there is one."""
        shelf = celery_internals.statedb(worker)
        if shelf is not None:
            operators = [i for i in self.ledger.ids(Origin.OPERATOR) if i in state.revoked]
            shelf[celery_internals.STATEDB_KEY] = {"operator": operators}

    def _added(self, task_id: str, source: Source) -> None:
        try:
            # The time of arrival, not the set's own stamp: in Celery 5.6 and before that can be
            # another host's monotonic clock, or this one's from before a reboot.
            proof_lost = self.ledger.added(task_id, source, self._monotonic())
            if proof_lost:
                self._listener.proof_lost(task_id)
            elif source is Source.OPERATOR:
                self._listener.operator_revoked(task_id)
            elif source is Source.FOREIGN:
                self._listener.foreign_came()
        except Exception as exc:  # noqa: BLE001 - reported; the id stays in the set
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
            self.ledger.confirmed_expired(request.id, self._monotonic())
            self._backfill.add(
                str(request.task),
                waited_s(
                    expires=request.expires,
                    expiration_ms=(request.properties or {}).get("expiration"),
                    now=datetime.now(timezone.utc),
                ),
            )
        except Exception as exc:  # noqa: BLE001 - reported; the id stays in the set
            self._listener.watch_failed(exc)


def _noted_in_statedb(worker: Any) -> frozenset[str]:
    """The operators' ids that a guarded worker noted when it stopped."""
    shelf = celery_internals.statedb(worker)
    note = shelf.get(celery_internals.STATEDB_KEY) if shelf is not None else None
    operators = note.get("operator") if isinstance(note, dict) else None
    return frozenset(operators) if isinstance(operators, list) else frozenset()
