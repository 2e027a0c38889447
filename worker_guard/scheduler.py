"""Runs the jobs of the parts on the worker's timer, in slices, so that tasks never wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol

from worker_guard.backoff import LONGEST_PAUSE_S, Backoff
from worker_guard.events import Event, Trigger

#: A job gives the event loop back when it has held it for this long. The promise is 5 ms; the
#: rest is room for the one step that was under way.
SLICE_S = 0.002

#: Without an event loop the consumer looks for ticks only between two waits for messages, which
#: take seconds where none comes; so it runs slices for this long each time.
BURST_S = 0.1

#: What the other greenlets get between two slices of such a tick.
REST_S = 0.001

#: The event loop's own time between two slices of one run.
PAUSE_S = 0.01

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds, on the thread that runs the consumer."""


class Job(Protocol):
    """Something that the guard repeats.

    A job may also have ``longest_pause_s``, the longest pause in seconds after failures.
    """

    @property
    def name(self) -> str:
        """How the job is called in the events."""

    @property
    def interval_s(self) -> float:
        """Seconds between two runs."""

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:
        """Do the job once. Each ``yield`` gives the event loop back for a moment."""


class _Scheduled:
    """A job with what the scheduler knows of it."""

    def __init__(self, job: Job, backoff: Backoff, now: float, first_s: float) -> None:
        self.job = job
        self.backoff = backoff
        self.due_mono = now + first_s
        #: Until the first connection is there: how long after it the first run is.
        self.first_s: float | None = first_s
        self.slices: Iterator[None] | None = None
        self.waiting: list[Iterator[None]] = []
        self.ticket = 0


class Scheduler:
    """Starts each job's runs on time, resumes their slices, and contains what they raise.

    It survives the loss of the broker connection: :meth:`arm` is called for each new one.
    """

    def __init__(
        self,
        *,
        report: Callable[[Event], None],
        monotonic: Callable[[], float],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._report = report
        self._monotonic = monotonic
        self._uniform = uniform
        self._later: Later | None = None
        self._burst_s = 0.0
        self._rest: Callable[[], None] = _no_rest
        self._jobs: dict[str, _Scheduled] = {}
        self._backoffs: dict[str, Backoff] = {}
        #: When the connection to the broker was last lost, or given up.
        self.disconnected_mono: float | None = None

    def add(self, job: Job) -> None:
        """Repeat this job, from the next connection on."""
        backoff = self.backoff(
            job.name,
            first_pause_s=job.interval_s,
            longest_pause_s=getattr(job, "longest_pause_s", LONGEST_PAUSE_S),
        )
        # Jitter, so that workers started together don't sweep together. At least half an interval,
        # so that messages that expired while the worker was down are reported as one backfill.
        first_s = self._uniform(0.5, 1.0) * job.interval_s
        self._jobs[job.name] = _Scheduled(job, backoff, self._monotonic(), first_s)

    def backoff(
        self, name: str, *, first_pause_s: float, longest_pause_s: float = LONGEST_PAUSE_S
    ) -> Backoff:
        """A backoff whose failures :meth:`failures` counts, also of what is no job."""
        made = self._backoffs[name] = Backoff(
            name,
            first_pause_s=first_pause_s,
            longest_pause_s=longest_pause_s,
            report=self._report,
        )
        return made

    def arm(
        self, later: Later, *, burst_s: float = 0.0, rest: Callable[[], None] | None = None
    ) -> None:
        """Tick from now on by this timer; a timer armed before ticks no more.

        Each tick runs slices until ``burst_s`` is over, and one at least, with ``rest`` between.
        """
        self._later, self._burst_s, self._rest = later, burst_s, rest or _no_rest
        for scheduled in self._jobs.values():
            if scheduled.first_s is not None:
                scheduled.due_mono, scheduled.first_s = self._monotonic() + scheduled.first_s, None
            under_way = scheduled.slices is not None
            self._call(scheduled, PAUSE_S if under_way else scheduled.due_mono - self._monotonic())

    def arm_by(self, consumer: Any) -> None:
        """Tick by the timer of this consumer, which has a connection, on the consumer's thread."""
        timer = consumer.timer
        if consumer.hub is not None:
            self.arm(timer.call_after)
            return

        # Without an event loop the timer is a thread or a greenlet of its own, and the revoked set
        # is not made for two threads.
        def later(delay_s: float, tick: Callable[[], None]) -> None:
            timer.call_after(delay_s, consumer.call_soon, (tick,))

        self.arm(later, burst_s=BURST_S, rest=lambda: time.sleep(REST_S))

    def disarm(self) -> None:
        """Tick no more until armed again; a run that is under way is resumed then."""
        self._later = None
        self.disconnected_mono = self._monotonic()
        for scheduled in self._jobs.values():
            scheduled.ticket += 1

    def drop(self, name: str) -> None:
        """Run a job no more. What its runs clear up at their end is done now."""
        self._backoffs.pop(name, None)
        scheduled = self._jobs.pop(name, None)
        if scheduled is None:
            return
        scheduled.ticket += 1
        runs, scheduled.slices, scheduled.waiting = [scheduled.slices, *scheduled.waiting], None, []
        for slices in runs:
            if isinstance(slices, Generator):
                slices.close()

    def run_soon(self, name: str, *, within_s: float = 0.0, anyway: bool = False) -> None:
        """Have a job's next run at a moment of the next ``within_s`` if it is due later.

        A job that failed is left alone until its pause is over; ``anyway`` tries it once.
        """
        scheduled = self._jobs.get(name)
        if scheduled is None or scheduled.slices is not None:
            return
        now = self._monotonic()
        if scheduled.due_mono > now + within_s and (anyway or scheduled.backoff.ready(now)):
            scheduled.due_mono, scheduled.first_s = now + self._uniform(0.0, within_s), None
            self._call(scheduled, scheduled.due_mono - now)

    def resume(self, name: str, slices: Iterator[None]) -> None:
        """Run the rest of a run of this job that was begun outside the schedule."""
        scheduled = self._jobs[name]
        if scheduled.slices is None:
            scheduled.slices = slices
        else:
            scheduled.waiting.append(slices)
        self._call(scheduled, PAUSE_S)

    def failures(self) -> dict[str, int]:
        """Consecutive failures, by name."""
        return {name: each.consecutive_failures for name, each in self._backoffs.copy().items()}

    def due_in_s(self, name: str) -> float:
        """Seconds until a job's next run begins; 0 while one is under way, or without a job."""
        scheduled = self._jobs.get(name)
        if scheduled is None or scheduled.slices is not None:
            return 0.0
        return max(0.0, scheduled.due_mono - self._monotonic())

    def _call(self, scheduled: _Scheduled, delay_s: float) -> None:
        """Set the one next tick of this job.

        A ticket tells it from those set before: timers of a lost connection are gone on some
        Celery releases and go on ticking on others, and gevent's can't be cancelled.
        """
        scheduled.ticket += 1
        if self._later is not None:
            self._later(max(0.0, delay_s), partial(self._tick, scheduled, scheduled.ticket))

    def _tick(self, scheduled: _Scheduled, ticket: int) -> None:
        """Run one slice; never raises, whatever a job does (a timer callback must not)."""
        if ticket != scheduled.ticket:
            return
        try:
            if scheduled.slices is None:
                scheduled.slices = (
                    scheduled.waiting.pop(0) if scheduled.waiting else scheduled.job.run()
                )
            until = self._monotonic() + self._burst_s
            slices = scheduled.slices
            next(slices)
            while self._monotonic() < until:
                self._rest()
                if scheduled.slices is not slices:
                    return  # closed meanwhile
                next(slices)
        except StopIteration:
            scheduled.slices = None
            scheduled.backoff.succeeded()
            if scheduled.waiting:
                self._call(scheduled, PAUSE_S)
                return
            scheduled.due_mono = self._monotonic() + scheduled.job.interval_s * self._uniform(
                0.9, 1.1
            )
        except Exception as exc:  # noqa: BLE001 - contained: reported, and tried again later
            scheduled.slices = None
            scheduled.due_mono = self._monotonic() + scheduled.backoff.failed(
                exc, self._monotonic()
            )
        else:
            self._call(scheduled, PAUSE_S)
            return
        self._call(scheduled, scheduled.due_mono - self._monotonic())


def _no_rest() -> None:
    """With an event loop there is one slice a tick."""


def run_to_end(slices: Iterator[None], *, until: Callable[[], bool] = lambda: False) -> bool:
    """Run a job without pauses, or for as long as ``until`` is false; True: it is done."""
    return all(not until() for _ in slices)
