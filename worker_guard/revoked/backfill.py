"""How many tasks expired since the last sweep, which ones, how long they waited, and why. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, NamedTuple

from worker_guard.events import BackfillCauses, ExpiredBackfillDetected

#: Fewer expired tasks are not reported as a backfill.
THRESHOLD = 10

#: Tasks named in the event.
_TASKS_NAMED = 10

#: Waiting times kept for the median; beyond them only counts are kept.
_WAITS_KEPT = 10_000

#: Seconds by which a message's timestamps may differ from what this worker saw: on its way to the
#: queue it takes one or two trips over the network.
CLOCK_SLACK_S = 1.0

#: The fields of :class:`~worker_guard.events.BackfillCauses`.
Cause = Literal["waited_in_queue", "held_until_eta", "born_expired", "clock_differs"]


class Expiry(NamedTuple):
    """Why a message expired. ``waited_s`` is None unless it waited in the queue."""

    cause: Cause
    waited_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExpiredMessage:
    """An expired message: what its headers say, and what this worker knows of it.

    ``expires`` and ``eta`` are the task's headers (absolute). ``expiration_ms`` is the message's
    property ``expiration``, its TTL. ``expires`` minus ``expiration`` is when it was sent. If
    ``expiration`` is missing or 0, ``expires`` had passed by then (``celery/app/amqp.py`` and
    ``kombu/messaging.py`` write the two).

    ``arrived_now``: this worker sees it for the first time, and no other worker gave it back.
    ``queue_empty_for_s``: how long ago the queue was last empty; None: not known.
    """

    expires: str | datetime | None
    expiration_ms: object
    eta: str | datetime | None = None
    retries: int = 0
    arrived_now: bool = False
    queue_empty_for_s: float | None = None


def why_expired(message: ExpiredMessage, now: datetime) -> Expiry:
    """Why this message expired; what this worker saw overrides the message's timestamps."""
    expires, eta = _moment(message.expires), _moment(message.eta)
    ttl_s = _seconds(message.expiration_ms)
    if expires is None or not ttl_s > 0:
        # A retry keeps the ``expires`` of its task, which may have passed when the retry is sent.
        return Expiry("held_until_eta" if message.retries else "born_expired")
    if eta is not None and eta >= expires:
        return Expiry("held_until_eta")
    waited_s = max(0.0, (now - expires).total_seconds() + ttl_s)
    empty_s = message.queue_empty_for_s
    if message.arrived_now and empty_s is not None and waited_s > empty_s + CLOCK_SLACK_S:
        return Expiry("clock_differs")
    if eta is not None:
        # Before its ETA it was not due.
        waited_s = min(waited_s, max(0.0, (now - eta).total_seconds()))
    return Expiry("waited_in_queue", waited_s)


def _moment(value: str | datetime | None) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return None
    if value is not None and value.tzinfo is None:
        value = value.replace(tzinfo=timezone.utc)
    return value


def _seconds(milliseconds: object) -> float:
    try:
        return float(str(milliseconds)) / 1000.0
    except ValueError:
        return 0.0


class _Tally:
    """How many tasks expired, by name and by cause."""

    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.waits: list[float] = []
        self.longest_s = 0.0

    def add(self, task_name: str, expiry: Expiry) -> None:
        self.tasks[task_name] += 1
        self.causes[expiry.cause] += 1
        if expiry.waited_s is not None:
            self.longest_s = max(self.longest_s, expiry.waited_s)
            if len(self.waits) < _WAITS_KEPT:
                self.waits.append(expiry.waited_s)

    def merge(self, other: _Tally) -> None:
        self.tasks.update(other.tasks)
        self.causes.update(other.causes)
        self.waits = (self.waits + other.waits)[:_WAITS_KEPT]
        self.longest_s = max(self.longest_s, other.longest_s)

    def event(self) -> ExpiredBackfillDetected:
        return ExpiredBackfillDetected(
            expired_tasks=self.tasks.total(),
            tasks=dict(self.tasks.most_common(_TASKS_NAMED)),
            waited_s_p50=round(statistics.median(self.waits), 3) if self.waits else None,
            waited_s_max=round(self.longest_s, 3) if self.waits else None,
            causes=BackfillCauses(**self.causes),
        )


class BackfillCounter:
    """Counts the tasks that expired here since the last :meth:`drain`.

    ``last`` sums up the last sweeps in a row that found any, however few; the status shows it.
    ``last_mono`` is when the last of these sweeps was.
    """

    def __init__(self) -> None:
        self._in_all: Counter[str] = Counter()
        self._since_sweep = _Tally()
        self._in_a_row = _Tally()
        self._last_found_any = False
        self.last: ExpiredBackfillDetected | None = None
        self.last_mono = 0.0

    def causes_in_all(self) -> BackfillCauses:
        """Why tasks expired since the start, whether drained or not."""
        return BackfillCauses(**self._in_all)

    def add(self, task_name: str, expiry: Expiry) -> None:
        """A task expired."""
        self._since_sweep.add(task_name, expiry)
        self._in_all[expiry.cause] += 1

    def drain(self, now: float) -> ExpiredBackfillDetected | None:
        """The event if enough tasks expired, else None; counting starts again from zero."""
        drained, self._since_sweep = self._since_sweep, _Tally()
        total = drained.tasks.total()
        if total:
            if not self._last_found_any:
                self._in_a_row = _Tally()
            self._in_a_row.merge(drained)
            self.last, self.last_mono = self._in_a_row.event(), now
        self._last_found_any = total > 0
        return drained.event() if total >= THRESHOLD else None
