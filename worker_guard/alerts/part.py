"""The part that raises alerts when a value crosses its threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from celery.worker import state

from worker_guard import celery_internals
from worker_guard.alerts.alert_watch import AlertWatch, WatchedValue
from worker_guard.alerts.thresholds import Alert, used_share
from worker_guard.events import AlertName
from worker_guard.part import ON, Context, Part, PartOff
from worker_guard.settings import PREFIX
from worker_guard.status_model import AlertStatus
from worker_guard.values.masking import reason_of

#: Seconds between two readings of values that need no server, or the interval if it is shorter.
LOOK_S = 5.0


class AlertsPart(Part):
    """Raises the alerts that are switched on."""

    name: ClassVar[str] = "alerts"
    also: ClassVar[tuple[str, ...]] = ("redis_memory",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = context.settings
        self._alerts: list[Alert] = []
        self._watch(
            "alerts",
            min(LOOK_S, settings.interval),
            self._watched("revoked_tasks", settings.alert_revoked, self._revoked_tasks),
            self._watched(
                "recycles_per_hour",
                settings.alert_recycles_per_hour,
                context.activity.recycled_in_last_hour,
            ),
            self._watched_broker(),
            off=f"{PREFIX}alert_revoked and {PREFIX}alert_recycles_per_hour are None",
        )
        self._watch_redis_memory()

    def status(self, *, quick: bool) -> dict[str, Any]:  # noqa: ARG002
        """The alerts that are active, and the thresholds of all that are switched on."""
        now = self.context.monotonic()
        values = {alert.name: alert.value for alert in self._alerts}
        return {
            "alerts": tuple(
                AlertStatus(
                    alert=alert.name,
                    value=alert.value,
                    threshold=alert.threshold,
                    since_s=round(now - alert.since_mono, 1),
                )
                for alert in self._alerts
                if alert.since_mono is not None
            ),
            "alert_thresholds": {alert.name: alert.threshold for alert in self._alerts},
            "redis_memory_share": values.get("redis_memory"),
        }

    def _revoked_tasks(self, _now: float) -> float:
        revoked = self.context.status_of("revoked").get("revoked")
        # Without that part nobody knows anything of the ids, and none is cleared.
        return len(state.revoked) if revoked is None else revoked.lingering or 0

    def _watched_broker(self) -> WatchedValue | None:
        # The broker part is made before this one.
        is_off = self.context.status_of("broker").get("broker") is None
        return self._watched("unacked_without_index", None if is_off else 0, self._without_index)

    def _without_index(self, _now: float) -> float:
        broker = self.context.status_of("broker").get("broker")
        return 0 if broker is None else broker.unacked_without_index or 0

    def _watch_redis_memory(self) -> None:
        settings = self.context.settings
        off, watched = f"{PREFIX}alert_redis_memory is None", None
        if settings.alert_redis_memory is not None:
            try:
                read = _redis_memory(self.context.worker.app.backend)
                watched = self._watched("redis_memory", settings.alert_redis_memory, read)
            except Exception as exc:  # noqa: BLE001 - the start event gives the reason
                off = reason_of(exc)
        self._watch("redis_memory", settings.interval, watched, off=off)

    def _watched(
        self, name: AlertName, threshold: float | None, read: Callable[[float], float]
    ) -> WatchedValue | None:
        if threshold is None:
            return None
        alert = Alert(name, threshold)
        self._alerts.append(alert)
        return WatchedValue(alert, read)

    def _watch(self, job: str, interval_s: float, *found: WatchedValue | None, off: str) -> None:
        watched = [each for each in found if each is not None]
        self.states[job] = ON if watched else off
        if watched:
            self.jobs.append(
                AlertWatch(
                    name=job,
                    interval_s=interval_s,
                    watched=watched,
                    report=self.context.report,
                    monotonic=self.context.monotonic,
                )
            )


def _redis_memory(backend: Any) -> Callable[[float], float]:
    """A function that reads the used share of the memory of this result backend's server.

    Raises:
        PartOff: it is not Redis.
    """
    if not celery_internals.is_redis(backend):
        raise PartOff(f"no Redis result backend: it is {type(backend).__name__}")
    client = celery_internals.redis_client(backend, celery_internals.REDIS_TIMEOUT_S)
    return lambda _now: used_share(client.info("memory"))
