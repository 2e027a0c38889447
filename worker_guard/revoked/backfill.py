"""How many tasks expired since the last sweep, which ones, how long they waited, and why."""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import datetime, timezone

from worker_guard.events import BackfillCauses, ExpiredBackfillDetected

#: Fewer are no backfill.
THRESHOLD = 10

#: Tasks named in the event.
_TASKS_NAMED = 10

#: Waiting times kept for the median; beyond them only counts are kept.
_WAITS_KEPT = 10_000


def waited_s(
    *, expires: str | datetime | None, expiration_ms: object, now: datetime
) -> float | None:
    """How long a message that expired had been in the queue, in seconds; None: born expired.

    ``expires`` is the task's header (absolute), ``expiration_ms`` the message's property, the
    time that it was given to live. Their difference is the time at which it was sent; without
    an ``expiration``, or with 0, ``expires`` had passed when it was sent
    (``celery/app/amqp.py`` and ``kombu/messaging.py`` write the two).
    """
    if isinstance(expires, str):
        try:
            expires = datetime.fromisoformat(expires.replace("Z", "+00:00"))
        except ValueError:
            return None
    try:
        lifetime_s = float(str(expiration_ms)) / 1000.0
    except ValueError:
        return None
    if expires is None or not lifetime_s > 0:
        return None
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=timezone.utc)
    return max(0.0, (now - expires).total_seconds() + lifetime_s)


class Backfill:
    """The tasks that expired here since they were last asked for."""

    def __init__(self) -> None:
        self._causes_before = BackfillCauses()
        self._start_anew()

    def causes_in_all(self) -> BackfillCauses:
        """Why tasks expired, since the start, whatever was drained meanwhile."""
        return BackfillCauses(
            waited_in_queue=self._causes_before.waited_in_queue + self._waited,
            born_expired=self._causes_before.born_expired + self._born_expired,
        )

    def _start_anew(self) -> None:
        self._tasks: Counter[str] = Counter()
        self._waits: list[float] = []
        self._waited = 0
        self._longest_s = 0.0
        self._born_expired = 0

    def add(self, task_name: str, waited: float | None) -> None:
        """A task expired after ``waited`` seconds; None: its message was born expired."""
        self._tasks[task_name] += 1
        if waited is None:
            self._born_expired += 1
            return
        self._waited += 1
        self._longest_s = max(self._longest_s, waited)
        if len(self._waits) < _WAITS_KEPT:
            self._waits.append(waited)

    def drain(self) -> ExpiredBackfillDetected | None:
        """The event where enough tasks expired, else None; starts anew either way."""
        total = self._waited + self._born_expired
        event = None
        if total >= THRESHOLD:
            event = ExpiredBackfillDetected(
                expired_tasks=total,
                tasks=dict(self._tasks.most_common(_TASKS_NAMED)),
                waited_s_p50=round(statistics.median(self._waits), 3) if self._waits else None,
                waited_s_max=round(self._longest_s, 3) if self._waits else None,
                causes=BackfillCauses(
                    waited_in_queue=self._waited, born_expired=self._born_expired
                ),
            )
        self._causes_before = self.causes_in_all()
        self._start_anew()
        return event
