"""What happened so far: a fold over the events of one guard. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from worker_guard.events import (
    AlertRaised,
    ChildKilled,
    ChildRecycled,
    ChildRecycleRequested,
    CleanupCompleted,
    Event,
    PartFailed,
    StallAction,
    Stalled,
    Trigger,
)
from worker_guard.status_model import KilledStatus, PastCleanup, Totals

#: Seconds for which a recycle counts.
WINDOW_S = 3600.0

#: Recycles are counted in steps of this length, which bounds what is kept.
_STEP_S = 10.0

#: What can begin a sweep or cleanup in a worker's main process; the task runs in the pool.
_TRIGGERS: tuple[Trigger, ...] = ("timer", "schedule", "control")

#: The values of ``child_killed.oom``, as labels.
_OOM: dict[bool | None, str] = {True: "true", False: "false", None: "unknown"}

_STATISTICS = (
    "revoked_tasks_cleared",
    "expired_results_deleted",
    "task_states_cleaned",
    "broker_keys_cleaned",
)

_CLEANUP_FIELDS = {f.name for f in fields(CleanupCompleted)} & {f.name for f in fields(PastCleanup)}


@dataclass(frozen=True)
class _Past:
    """A cleanup, and when it ended, by the wall clock and by the monotonic one."""

    event: CleanupCompleted
    at: float
    ended_mono: float

    def status(self, now_mono: float) -> PastCleanup:
        values = {name: getattr(self.event, name) for name in _CLEANUP_FIELDS}
        age_s = round(now_mono - self.ended_mono, 1)
        return PastCleanup(**values, at=round(self.at, 3), age_s=age_s)


@dataclass(frozen=True)
class _PastKill:
    """A child that was killed, and when."""

    event: ChildKilled
    at: float
    noted_mono: float

    def status(self, now_mono: float) -> KilledStatus:
        return KilledStatus(
            **asdict(self.event),
            at=round(self.at, 3),
            age_s=round(now_mono - self.noted_mono, 1),
        )


class Activity:
    """Totals, counters and the last cleanups, all from the events that were reported.

    In a dry run a child counts as recycled when that is requested, since nothing follows.
    ``listeners`` are called with each event.
    """

    def __init__(
        self, *, dry_run: bool, monotonic: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self._monotonic, self._now = monotonic, now
        self._recycled: type[Event] = ChildRecycleRequested if dry_run else ChildRecycled
        self._recycled_steps: deque[tuple[float, int]] = deque()
        self._last: dict[str, _Past | _PastKill] = {}
        self.listeners: list[Callable[[Event], None]] = []
        self.totals = Totals()
        self.part_failures: Counter[str] = Counter()
        self.cleanups: Counter[str] = Counter(dict.fromkeys(_TRIGGERS, 0))
        self.alerts_raised: Counter[str] = Counter()
        self.stall_actions: Counter[str] = Counter(dict.fromkeys(get_args(StallAction), 0))
        #: Killed children, by whether the kernel killed them for memory.
        self.killed: Counter[str] = Counter(dict.fromkeys(_OOM.values(), 0))

    def note(self, event: Event) -> None:
        """Take in an event that was reported."""
        if isinstance(event, CleanupCompleted):
            self._note_cleanup(event)
        elif isinstance(event, PartFailed):
            self.part_failures[event.part] += 1
        elif isinstance(event, AlertRaised):
            self.alerts_raised[event.alert] += 1
        elif isinstance(event, Stalled):
            self.stall_actions[event.action] += 1
        elif isinstance(event, ChildKilled):
            self._note_killed(event)
        elif isinstance(event, self._recycled):
            self._note_recycled()
        for listener in self.listeners:
            listener(event)

    def recycled_in_last_hour(self, now_mono: float) -> int:
        """How many children were recycled in the last hour, to within ten seconds."""
        steps = self._recycled_steps
        while steps and steps[0][0] + _STEP_S <= now_mono - WINDOW_S:
            steps.popleft()
        return sum(times for _began, times in steps)

    def status(self) -> dict[str, Any]:
        """Its share of :class:`~worker_guard.status_model.GuardStatus`."""
        now_mono = self._monotonic()
        last = {name: past.status(now_mono) for name, past in self._last.copy().items()}
        return {"totals": self.totals, **last}

    def _note_cleanup(self, event: CleanupCompleted) -> None:
        past = _Past(event, at=self._now(), ended_mono=self._monotonic())
        self._last["last_cleanup"] = past
        if event.revoked_tasks_cleared:
            self._last["last_clearing"] = past
        if event.target == "results":
            self._last["last_results_cleanup"] = past
        self.cleanups[event.trigger] += 1
        done = asdict(self.totals)
        for name in _STATISTICS:
            done[name] += getattr(event, name)
        done["sweeps"] += event.target == "revoked"
        self.totals = Totals(**done)

    def _note_killed(self, event: ChildKilled) -> None:
        self._last["last_killed"] = _PastKill(event, self._now(), self._monotonic())
        self.killed[_OOM[event.oom]] += 1
        killed = self.totals.children_killed + 1
        self.totals = replace(self.totals, children_killed=killed)

    def _note_recycled(self) -> None:
        recycled = self.totals.children_recycled + 1
        self.totals = replace(self.totals, children_recycled=recycled)
        now_mono = self._monotonic()
        began, times = now_mono - now_mono % _STEP_S, 1
        if self._recycled_steps and self._recycled_steps[-1][0] == began:
            times += self._recycled_steps.pop()[1]
        self._recycled_steps.append((began, times))
