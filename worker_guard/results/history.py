"""What cleanups came to, and when the last one by schedule was, kept beside the results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from worker_guard.events import CleanupCompleted, Trigger
from worker_guard.results.strategy import CleanupCounts

#: The cleanups that are kept.
KEPT = 100

#: The clocks of two hosts may be so far apart.
CLOCKS_APART_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One cleanup. ``at`` (epoch, s) is its start; ``complete`` is False where it was cut short.

    ``strategy`` is how the server let it be done: see :mod:`worker_guard.results.cleanup_run`.
    """

    at: float
    by: str
    trigger: Trigger
    dry_run: bool
    complete: bool
    strategy: str
    max_age_s: float
    duration_s: float
    counts: CleanupCounts

    def statistics(self) -> dict[str, Any]:
        """Everything as one flat object, for JSON."""
        flat = asdict(self)
        return {"revoked_tasks_cleared": 0, **flat.pop("counts"), **flat}

    def event(self) -> CleanupCompleted:
        """What is logged of it."""
        return CleanupCompleted(
            **asdict(self.counts), trigger=self.trigger, duration_s=self.duration_s
        )


class History:
    """The list of cleanups in Redis, the newest first. Errors are redis-py's."""

    def __init__(self, client: Any, own_prefix: str) -> None:
        self._client = client
        self._list = f"{own_prefix}history"
        self._last_run = f"{own_prefix}results-last-run"

    def add(self, outcome: Outcome) -> None:
        """Put one on top; the oldest beyond :data:`KEPT` goes."""
        with self._client.pipeline() as pipe:
            pipe.lpush(self._list, json.dumps(outcome.statistics()))
            pipe.ltrim(self._list, 0, KEPT - 1)
            pipe.execute()

    def entries(self) -> list[dict[str, Any]]:
        """The statistics of each, the newest first; what is no such entry is left out."""
        found = []
        for line in self._client.lrange(self._list, 0, KEPT - 1):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    def last_run(self, now: float) -> float | None:
        """When the last scheduled sweep began (epoch, s); None where that is not known."""
        return _moment(self._client.get(self._last_run), now)

    def ran(self, at: float) -> None:
        """Count from here: a scheduled sweep began at this moment, or nobody knows of one."""
        self._client.set(self._last_run, repr(at))


class PrivateHistory:
    """In a dry run, which writes nothing: this process's own memory."""

    def __init__(self) -> None:
        self._last_run: float | None = None

    def add(self, outcome: Outcome) -> None:
        """Keep nothing: nothing was done."""

    def last_run(self, now: float) -> float | None:
        """When this process last looked."""
        return None if self._last_run is None else _moment(repr(self._last_run).encode(), now)

    def ran(self, at: float) -> None:
        """This process looked at this moment."""
        self._last_run = at


def _moment(held: bytes | None, now: float) -> float | None:
    """The moment that the key says, not after ``now``; None where it can't be true.

    A moment of the far future comes from a clock that was wrong: believed, it would stop the
    sweeps until then.
    """
    try:
        at = float(held or "nan")
    except ValueError:
        return None
    return min(at, now) if 0 <= at <= now + CLOCKS_APART_S else None
