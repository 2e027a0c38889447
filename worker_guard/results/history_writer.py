"""The job that adds the worker's sweeps, and its cleanups of the broker, to the history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from worker_guard.events import CleanupCompleted, Event, Trigger
from worker_guard.results.history import KEPT, History, Outcome


@dataclass(frozen=True, kw_only=True)
class HistoryWriter:
    """Adds each sweep that cleared ids, and each cleanup of the broker that deleted something.

    The caller tells it only of real ones, not of dry runs.
    """

    name: ClassVar[str] = "history"

    interval_s: float
    history: History
    by: str
    now: Callable[[], float]

    #: Not written yet, the oldest first. The history would drop more than it can keep.
    _pending: deque[Outcome] = field(default_factory=lambda: deque(maxlen=KEPT), init=False)

    def note(self, event: Event) -> None:
        """Note what just ended. Asks no server."""
        if not isinstance(event, CleanupCompleted):
            return
        if event.revoked_tasks_cleared or event.broker_keys_cleaned:
            at = self.now() - event.duration_s
            self._pending.append(Outcome(at=at, by=self.by, event=event))

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write the pending entries, one in each slice. After an error the rest stays pending."""
        while self._pending:
            self.history.add(self._pending[0])
            self._pending.popleft()
            yield
