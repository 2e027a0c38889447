"""A look at full speed, for the command line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from worker_guard.broker.look import Found
from worker_guard.broker.server import Broker
from worker_guard.events import CleanupCompleted
from worker_guard.values.moments import rfc3339


class LookByHand:
    """One look at the broker, in a process that does nothing else.

    It needs no lease: two looks at once do no harm.
    """

    def __init__(self, broker: Broker, *, by: str, dry_run: bool, schedule_s: float | None) -> None:
        notes = broker.notes(by=by, dry_run=dry_run, schedule_s=schedule_s)
        self._look = broker.look(notes, dry_run=dry_run)
        self._by, self.dry_run = by, dry_run
        self._duration_s = 0.0
        #: When it began (epoch, s).
        self.at = time.time()

    def run(self) -> None:
        """Look to the end. After an error the rest of this object says what was done before it."""
        self.at, started = time.time(), time.monotonic()
        try:
            for _ in self._look.run():
                pass
        finally:
            self._duration_s = round(time.monotonic() - started, 6)

    @property
    def found(self) -> Found:
        """What it has found and done so far."""
        return self._look.found

    @property
    def complete(self) -> bool:
        """Whether it looked at everything."""
        return self._look.finished

    @property
    def event(self) -> CleanupCompleted:
        """What it did, as the fields of an event."""
        return self.found.event(trigger="cli", duration_s=self._duration_s)

    def document(self) -> Mapping[str, Any]:
        """For JSON."""
        found = self.found
        # A dry run notes nothing, so it brings no later one nearer.
        next_at = None if self.dry_run else found.next_delete_at
        return {
            **asdict(self.event),
            "at": self.at,
            "by": self._by,
            "dry_run": self.dry_run,
            "complete": self.complete,
            "replies_unread": found.unread,
            "next_delete_at": None if next_at is None else rfc3339(next_at),
            "unacked_without_index": found.without_index,
        }
