"""The alerts of one worker's guard, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker_guard import celery_internals
from worker_guard.alerts.alert_watch import AlertWatch, WatchedValue
from worker_guard.alerts.thresholds import Alert, LastHour, used_share
from worker_guard.errors import WorkerGuardError
from worker_guard.events import AlertName, Event
from worker_guard.scheduler import Part
from worker_guard.settings import PREFIX, Settings
from worker_guard.values.masking import reason_of

#: Values that the guard has at hand are looked at this often, or each interval where that is less.
LOOK_S = 5.0

#: Seconds for a connect, and for an answer: a Redis that hangs costs twice this at most.
REDIS_TIMEOUT_S = 0.4

_ON = "on"


class NoRedisMemoryError(WorkerGuardError):
    """Results are not kept in Redis, so that there is no memory to look at; the message says where.

    Set ``worker_guard_alert_redis_memory`` to None to switch the alert off on purpose.
    """


class Alerts:
    """The alerts that are switched on.

    :attr:`parts` are for the scheduler; :attr:`states` maps each part's name to ``"on"`` or to
    the reason why it is off. Connects to nothing yet.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        app: Any,
        revoked_tasks: Callable[[], int],
        report: Callable[[Event], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._settings, self._app = settings, app
        self._report, self._monotonic = report, monotonic
        self._recycles = LastHour()
        self.all: list[Alert] = []
        self.parts: list[Part] = []
        self.states: dict[str, str] = {}
        self._watch(
            "alerts",
            min(LOOK_S, settings.interval),
            self._watched("revoked_tasks", settings.alert_revoked, lambda _now: revoked_tasks()),
            self._watched(
                "recycles_per_hour", settings.alert_recycles_per_hour, self._recycles.count
            ),
            off=f"{PREFIX}alert_revoked and {PREFIX}alert_recycles_per_hour are None",
        )
        self._watch_redis_memory()

    def recycled(self) -> None:
        """A child was recycled; in a dry run: would have been."""
        self._recycles.add(self._monotonic())

    def describe(self) -> list[dict[str, Any]]:
        """The alerts that are active now."""
        now = self._monotonic()
        return [
            {
                "alert": alert.name,
                "value": alert.value,
                "threshold": alert.threshold,
                "since_s": round(now - since_mono, 1),
            }
            for alert in self.all
            if (since_mono := alert.since_mono) is not None
        ]

    def _watch_redis_memory(self) -> None:
        threshold = self._settings.alert_redis_memory
        off, watched = f"{PREFIX}alert_redis_memory is None", None
        if threshold is not None:
            try:
                watched = self._watched("redis_memory", threshold, _redis_memory(self._app.backend))
            except Exception as exc:  # noqa: BLE001 - the reason stands in the start event
                off = reason_of(exc)
        self._watch("redis_memory", self._settings.interval, watched, off=off)

    def _watched(
        self, name: AlertName, threshold: float | None, read: Callable[[float], float]
    ) -> WatchedValue | None:
        if threshold is None:
            return None
        alert = Alert(name, threshold)
        self.all.append(alert)
        return WatchedValue(alert, read)

    def _watch(self, part: str, interval_s: float, *found: WatchedValue | None, off: str) -> None:
        watched = [each for each in found if each is not None]
        self.states[part] = _ON if watched else off
        if watched:
            self.parts.append(
                AlertWatch(
                    name=part,
                    interval_s=interval_s,
                    watched=watched,
                    report=self._report,
                    monotonic=self._monotonic,
                )
            )


def _redis_memory(backend: Any) -> Callable[[float], float]:
    """What reads the used share of the memory of this result backend's server.

    Raises:
        NoRedisMemoryError: it is not Redis.
    """
    if not celery_internals.is_redis(backend):
        raise NoRedisMemoryError(f"no Redis result backend: it is {type(backend).__name__}")
    client = celery_internals.redis_client(backend, REDIS_TIMEOUT_S)
    return lambda _now: used_share(client.info("memory"))
