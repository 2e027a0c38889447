"""The history of sweeps and cleanups, and the time of the last scheduled cleanup, in Redis."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from worker_guard.events import CleanupCompleted

#: How many sweeps the history keeps, and how many cleanups.
KEPT = 100

#: By how much the clocks of two hosts may differ.
CLOCKS_APART_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A sweep or cleanup, and who did it. ``at`` (epoch, s) is its start.

    ``complete`` is False if it was cut short. A sweep of a revoked set has no ``max_age_s``.
    """

    at: float
    by: str
    dry_run: bool = False
    complete: bool = True
    max_age_s: float | None = None
    event: CleanupCompleted

    def statistics(self) -> dict[str, Any]:
        """Everything as one flat object, for JSON."""
        flat = asdict(self)
        return {**flat.pop("event"), **flat}


class History:
    """The sweeps and cleanups in Redis, the newest first. Errors are redis-py's.

    Sweeps and cleanups of the broker have a list of their own: they are so many that the daily
    cleanups of the results would soon be gone.
    """

    def __init__(self, client: Any, own_prefix: str) -> None:
        self._client = client
        self._list = f"{own_prefix}history"
        self._list_of_sweeps = f"{own_prefix}history-revoked"
        self._last_run = f"{own_prefix}results-last-run"

    def add(self, outcome: Outcome) -> None:
        """Add one, and drop what is beyond :data:`KEPT`."""
        key = self._list if outcome.event.target == "results" else self._list_of_sweeps
        with self._client.pipeline() as pipe:
            pipe.lpush(key, json.dumps(outcome.statistics()))
            pipe.ltrim(key, 0, KEPT - 1)
            pipe.execute()

    def entries(self) -> list[dict[str, Any]]:
        """The statistics of each, the newest first; skips what it can't read."""
        found = []
        for key in (self._list, self._list_of_sweeps):
            for line in self._client.lrange(key, 0, KEPT - 1):
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        entries = [entry for entry in found if isinstance(entry, dict)]
        return sorted(entries, key=_began_at, reverse=True)

    def last_run(self, now: float) -> float | None:
        """When the last scheduled cleanup began (epoch, s); None if that is not known."""
        return _moment(self._client.get(self._last_run), now)

    def ran(self, at: float) -> None:
        """Record this moment as the last run. It begins the count if there was no run yet."""
        self._client.set(self._last_run, repr(at))


class PrivateHistory:
    """The history of a dry run: it keeps the last run in memory, and writes nothing."""

    def __init__(self) -> None:
        self._last_run: float | None = None

    def add(self, outcome: Outcome) -> None:
        """Do nothing: a dry run changed nothing."""

    def last_run(self, now: float) -> float | None:
        """The last run of this process."""
        return None if self._last_run is None else _moment(repr(self._last_run).encode(), now)

    def ran(self, at: float) -> None:
        """Record this moment as the last run."""
        self._last_run = at


def _began_at(entry: dict[str, Any]) -> float:
    at = entry.get("at")
    return float(at) if isinstance(at, int | float) else 0.0


def _moment(held: bytes | None, now: float) -> float | None:
    """The stored moment, not after ``now``; None if it can't be true.

    A moment in the far future comes from a wrong clock, and would stop all cleanups until then.
    """
    try:
        at = float(held or "nan")
    except ValueError:
        return None
    return min(at, now) if 0 <= at <= now + CLOCKS_APART_S else None
