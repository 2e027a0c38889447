"""The job that writes the worker's sweeps into the history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from worker_guard.events import CleanupCompleted, Trigger
from worker_guard.results.history import KEPT, History, Outcome, PrivateHistory


@dataclass(frozen=True, kw_only=True)
class HistoryWriter:
    """Writes each sweep that cleared ids of this worker's revoked set into the history.

    It has to be told of real sweeps only. In a dry run the history is a
    :class:`~worker_guard.results.history.PrivateHistory`, which writes nothing.
    """

    name: ClassVar[str] = "history"

    interval_s: float
    history: History | PrivateHistory
    by: str
    now: Callable[[], float]

    #: Not written yet, the oldest first. The history would drop what is beyond its length.
    _pending: deque[Outcome] = field(default_factory=lambda: deque(maxlen=KEPT), init=False)

    def note(self, event: CleanupCompleted) -> None:
        """A sweep or cleanup has just ended. Asks no server."""
        if event.target == "revoked" and event.revoked_tasks_cleared:
            at = self.now() - event.duration_s
            self._pending.append(Outcome(at=at, by=self.by, event=event))

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write what is pending, one entry in each slice; what can't be written stays pending."""
        while self._pending:
            self.history.add(self._pending[0])
            self._pending.popleft()
            yield
