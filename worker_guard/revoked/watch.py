"""Keeps the ledger true: hears of each id that enters Celery's revoked set, and why."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from celery import signals
from celery.worker import state

from worker_guard import celery_internals
from worker_guard.revoked.backfill import Backfill, waited_s
from worker_guard.revoked.ledger import Ledger, Origin, Source


class RevokedWatch:
    """Hooks into the ways by which ids enter the set; :meth:`stop` undoes every hook.

    ``on_operator(task_id)`` is called for each operator's revocation, ``on_foreign()`` for each
    id that came from elsewhere. ``on_error`` takes what the guard's own code raised in a hook: it
    never reaches Celery's.
    """

    def __init__(
        self,
        *,
        backfill: Backfill,
        monotonic: Callable[[], float],
        on_operator: Callable[[str], None],
        on_foreign: Callable[[], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.ledger = Ledger()
        self._backfill = backfill
        self._monotonic = monotonic
        self._on_operator = on_operator
        self._on_foreign = on_foreign
        self._on_error = on_error
        self._hooks: list[celery_internals.Hook] = []

    def start(self, worker: Any) -> None:
        """Begin to watch; what is in the set by now came from elsewhere.

        Raises:
            MissingInternalError: this release can't be watched; no hook is left behind.
        """
        self._hooks = celery_internals.watch_revoked_set(worker, self._added)
        signals.task_revoked.connect(self._task_revoked, weak=False)
        operators = _noted_in_statedb(worker)
        for task_id, stamp in state.revoked.as_dict().items():
            source = Source.OPERATOR if task_id in operators else Source.FOREIGN
            self._enter(task_id, source, stamp)

    def stop(self, worker: Any) -> None:
        """Note the operators' ids in the statedb, if there is one, and undo every hook."""
        signals.task_revoked.disconnect(self._task_revoked)
        for hook in reversed(self._hooks):
            hook.undo()
        self._hooks = []
        shelf = celery_internals.statedb(worker)
        if shelf is not None:
            operators = [i for i in self.ledger.ids(Origin.OPERATOR) if i in state.revoked]
            shelf[celery_internals.STATEDB_KEY] = {"operator": operators}

    def _added(self, task_id: str, source: Source, stamp: float | None) -> None:
        try:
            self._enter(task_id, source, self._monotonic() if stamp is None else stamp)
        except Exception as exc:  # noqa: BLE001 - reported; the id stays in the set
            self._on_error(exc)

    def _enter(self, task_id: str, source: Source, stamp: float) -> None:
        self.ledger.added(task_id, source, stamp)
        if source is Source.OPERATOR:
            self._on_operator(task_id)
        elif source is Source.FOREIGN:
            self._on_foreign()

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
            self._on_error(exc)


def _noted_in_statedb(worker: Any) -> frozenset[str]:
    """The operators' ids that a guarded worker noted when it stopped."""
    shelf = celery_internals.statedb(worker)
    note = shelf.get(celery_internals.STATEDB_KEY) if shelf is not None else None
    return frozenset(note["operator"]) if isinstance(note, dict) else frozenset()
