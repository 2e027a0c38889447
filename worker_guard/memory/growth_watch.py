"""The job that follows how the processes grow, and foresees when one reaches its limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from worker_guard.backoff import Backoff
from worker_guard.events import Event, Trigger
from worker_guard.memory.growth import Forecast, Growth
from worker_guard.memory.policy import Reading
from worker_guard.memory.roster import Reader, Roster
from worker_guard.scheduler import SLICE_S

#: Seconds between two readings that are kept of each process.
SAMPLE_S = 30.0

#: Seconds for which it is taken for known how much of its memory a child shares.
SHARED_S = 600.0


@dataclass
class _Process:
    """What is known of one process. ``shared_bytes`` of its RSS don't count towards its limit."""

    growth: Growth = field(default_factory=Growth)
    reading: Reading | None = None
    shared_bytes: int = 0
    shared_mono: float = -math.inf
    forecast: Forecast | None = None
    unreadable: Backoff | None = None


@dataclass(kw_only=True)
class GrowthWatch:
    """Keeps a reading of each process now and then; :meth:`limit_in_s` is what they come to.

    It takes the watchdog's readings. Below the limit these are RSS, so RSS is what it follows. Only
    if that grows towards the limit, it reads once how much of it the child shares with others.
    """

    name: ClassVar[str] = "memory_growth"

    roster: Roster
    reader: Reader
    parent: Callable[[], Reading | None]
    parent_limit_bytes: int | None
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    _processes: dict[int, _Process] = field(default_factory=dict)

    @property
    def interval_s(self) -> float:
        """Seconds between two runs."""
        return SAMPLE_S

    def limit_in_s(self, pid: int) -> float | None:
        """Seconds until this process reaches its limit; None: nothing says that it will."""
        process = self._processes.get(pid)
        if process is None or process.forecast is None:
            return None
        in_s = process.forecast.at_mono - self.monotonic()
        return round(in_s, 1) if in_s > 0 else None

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look at all processes once."""
        slice_started = self.monotonic()
        for _ in self._steps():
            if self.monotonic() - slice_started >= SLICE_S:
                yield
                slice_started = self.monotonic()

    def _steps(self) -> Iterator[None]:
        """One run, with a ``yield`` after each step that takes time."""
        parent, limit_bytes = self.parent(), self.roster.limit_bytes
        readings = dict(self.roster.readings) if limit_bytes is not None else {}
        here = readings.keys() | ({parent.pid} if parent is not None else set())
        self._processes = {pid: self._processes.get(pid, _Process()) for pid in here}
        if parent is not None and self.parent_limit_bytes is not None:
            process = self._processes[parent.pid]
            if self._take(process, parent):
                process.forecast = process.growth.forecast(self.parent_limit_bytes)
            yield
        for pid, reading in readings.items():
            process = self._processes[pid]
            if limit_bytes is not None and self._take(process, reading):
                process.forecast = yield from self._child(process, reading, limit_bytes)
            yield

    def _take(self, process: _Process, reading: Reading) -> bool:
        """Keep a reading; False: it is the same one as before."""
        if process.reading is reading:
            return False
        process.reading = reading
        process.growth.add(reading.rss_bytes, self.monotonic())
        return True

    def _child(
        self, process: _Process, reading: Reading, limit_bytes: int
    ) -> Generator[None, None, Forecast | None]:
        """When a child reaches its limit: its RSS, less what it shares."""
        exact: Reading | None = reading
        if reading.metric == "rss" and self.reader.metric != "rss":
            if self.monotonic() - process.shared_mono <= SHARED_S:
                return process.growth.forecast(limit_bytes + process.shared_bytes)
            if process.growth.forecast(limit_bytes) is None:
                return None
            yield
            exact = yield from self._exactly(process, reading.pid)
            yield
        if exact is None:
            return None
        process.shared_bytes = exact.rss_bytes - exact.used_bytes
        process.shared_mono = self.monotonic()
        return process.growth.forecast(limit_bytes + process.shared_bytes)

    def _exactly(self, process: _Process, pid: int) -> Generator[None, None, Reading | None]:
        """Read a child by the metric. If that raises, report it; the others are still looked at."""
        unreadable = process.unreadable
        if unreadable is not None and not unreadable.ready(self.monotonic()):
            return None
        try:
            return (yield from self.reader.steps(pid, 0))
        except Exception as exc:  # noqa: BLE001 - reported, and tried again later
            if unreadable is None:
                unreadable = process.unreadable = Backoff(
                    self.name, first_pause_s=self.interval_s, report=self.report
                )
            unreadable.failed(exc, self.monotonic())
            return None
