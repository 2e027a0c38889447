"""Runs the jobs of the parts on the worker's timer, in slices, so that tasks never wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol

from worker_guard.backoff import LONGEST_PAUSE_S, Backoff
from worker_guard.events import Event, Trigger

#: Seconds after which a job gives the event loop back. The promise is 5 ms; the rest is room for
#: the step that is under way.
SLICE_S = 0.002

#: Without an event loop, ticks run only between two waits for messages, and such a wait can take
#: seconds. So each tick runs slices for this long.
BURST_S = 0.1

#: Seconds between two slices of such a tick, for other greenlets.
REST_S = 0.001

#: Seconds between two slices of a run, for the event loop.
PAUSE_S = 0.01

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after this many seconds, on the thread that runs the consumer."""


class Job(Protocol):
    """Something that the guard repeats.

    A job may also have ``first_pause_s`` and ``longest_pause_s``, the first and the longest pause
    in seconds after failures. If its ``without_broker`` is True, it also runs while the worker has
    no broker, by :meth:`Scheduler.turn`.
    """

    @property
    def name(self) -> str:
        """The job's name in events."""

    @property
    def interval_s(self) -> float:
        """Seconds between two runs."""

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:
        """Do the job once. Each ``yield`` gives the event loop back for a moment."""


class _Scheduled:
    """A job and its place in the schedule."""

    def __init__(self, job: Job, backoff: Backoff, now: float, first_s: float) -> None:
        self.job = job
        self.backoff = backoff
        self.due_mono = now + first_s
        #: Delay from the first connection to the first run; None once ``due_mono`` is final.
        self.first_s: float | None = first_s
        self.slices: Iterator[None] | None = None
        self.waiting: list[Iterator[None]] = []
        self.ticket = 0
        self.without_broker = bool(getattr(job, "without_broker", False))


class Scheduler:
    """Starts each job's runs on time, resumes their slices, and reports what they raise.

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

    @property
    def is_armed(self) -> bool:
        """Whether the worker is connected, so that all jobs run."""
        return self._later is not None

    def add(self, job: Job) -> None:
        """Repeat this job, from the next connection on."""
        backoff = self.backoff(
            job.name,
            first_pause_s=min(job.interval_s, getattr(job, "first_pause_s", job.interval_s)),
            longest_pause_s=getattr(job, "longest_pause_s", LONGEST_PAUSE_S),
        )
        # Jitter, so that workers started together don't sweep together. At least half an interval,
        # so that messages that expired while the worker was down are reported as one backfill.
        first_s = self._uniform(0.5, 1.0) * job.interval_s
        self._jobs[job.name] = _Scheduled(job, backoff, self._monotonic(), first_s)

    def backoff(
        self, name: str, *, first_pause_s: float, longest_pause_s: float = LONGEST_PAUSE_S
    ) -> Backoff:
        """Make a backoff whose failures :meth:`failures` counts, for a job or anything else."""
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
        """Tick on this timer from now on, and no longer on an earlier one.

        Each tick runs slices for ``burst_s``, at least one, and calls ``rest`` between them.
        """
        self._later, self._burst_s, self._rest = later, burst_s, rest or _no_rest
        for scheduled in self._jobs.values():
            if scheduled.first_s is not None:
                scheduled.due_mono, scheduled.first_s = self._monotonic() + scheduled.first_s, None
            under_way = scheduled.slices is not None
            self._call(scheduled, PAUSE_S if under_way else scheduled.due_mono - self._monotonic())

    def arm_by(self, consumer: Any) -> None:
        """Tick on the timer of this connected consumer, on the consumer's thread."""
        timer = consumer.timer
        if consumer.hub is not None:
            self.arm(timer.call_after)
            return

        # Without an event loop the timer is a thread or a greenlet of its own, and the revoked set
        # is not thread-safe.
        def later(delay_s: float, tick: Callable[[], None]) -> None:
            timer.call_after(delay_s, consumer.call_soon, (tick,))

        self.arm(later, burst_s=BURST_S, rest=lambda: time.sleep(REST_S))

    def disarm(self) -> None:
        """Stop ticking until armed again. A run that is under way is resumed then.

        The jobs that need no broker are due now, and run in :meth:`turn`.
        """
        self._later = None
        self.disconnected_mono = self._monotonic()
        for scheduled in self._jobs.values():
            scheduled.ticket += 1
            if scheduled.without_broker:
                scheduled.due_mono, scheduled.first_s = self.disconnected_mono, None

    def turn(self) -> None:
        """Run the jobs that need no broker, if they are due. For the main loop without a broker."""
        if self.is_armed:
            return
        now = self._monotonic()
        for scheduled in list(self._jobs.values()):
            under_way = scheduled.slices is not None
            if scheduled.without_broker and (under_way or now >= scheduled.due_mono):
                self._tick(scheduled, scheduled.ticket)

    def drop(self, name: str) -> None:
        """Stop repeating a job. Its unfinished runs are closed now, so that they clean up."""
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
        """Run a job at a random moment within ``within_s``, unless it is due by then anyway.

        A job that failed waits until its pause is over, unless ``anyway``.
        """
        scheduled = self._jobs.get(name)
        if scheduled is None or scheduled.slices is not None:
            return
        now = self._monotonic()
        if scheduled.due_mono > now + within_s and (anyway or scheduled.backoff.ready(now)):
            scheduled.due_mono, scheduled.first_s = now + self._uniform(0.0, within_s), None
            self._call(scheduled, scheduled.due_mono - now)

    def begin(self, name: str, *, until: Callable[[], bool]) -> None:
        """Begin a run of this job now, and go on until ``until`` is true; the rest is in slices.

        A run that is under way is given up. A failure counts as one of the job, and is not raised.
        """
        scheduled = self._jobs.get(name)
        if scheduled is None:
            return
        if isinstance(scheduled.slices, Generator):
            scheduled.slices.close()
        scheduled.slices = slices = scheduled.job.run()
        scheduled.first_s = None
        try:
            ended = run_to_end(slices, until=until)
        except Exception as exc:  # noqa: BLE001 - reported, and tried again later
            scheduled.slices = None
            self._due_after(scheduled, scheduled.backoff.failed(exc, self._monotonic()))
        else:
            if ended:
                scheduled.slices = None
                scheduled.backoff.succeeded()
                self._due_after(scheduled, scheduled.job.interval_s * self._uniform(0.9, 1.1))
            else:
                self._call(scheduled, PAUSE_S)

    def run_now(self, name: str) -> None:
        """Run a job to its end now, unless it failed and its pause is not over. Never raises."""
        scheduled = self._jobs.get(name)
        if scheduled is not None and scheduled.backoff.ready(self._monotonic()):
            self.begin(name, until=lambda: False)

    def _due_after(self, scheduled: _Scheduled, pause_s: float) -> None:
        scheduled.due_mono = self._monotonic() + pause_s
        self._call(scheduled, pause_s)

    def resume(self, name: str, slices: Iterator[None]) -> None:
        """Finish a run of this job that began outside the schedule."""
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
        """Seconds until a job's next run begins; 0 if one is under way or there is no such job."""
        scheduled = self._jobs.get(name)
        if scheduled is None or scheduled.slices is not None:
            return 0.0
        return max(0.0, scheduled.due_mono - self._monotonic())

    def _call(self, scheduled: _Scheduled, delay_s: float) -> None:
        """Schedule the next tick of this job, in place of earlier ones.

        The ticket makes earlier ticks do nothing. Some Celery releases drop the timers of a lost
        connection, others keep them, and gevent's can't be cancelled.
        """
        scheduled.ticket += 1
        if self._later is not None:
            self._later(max(0.0, delay_s), partial(self._tick, scheduled, scheduled.ticket))

    def _tick(self, scheduled: _Scheduled, ticket: int) -> None:
        """Run a tick. It never raises, whatever the job does: a timer callback must not."""
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
                    return  # dropped during the rest
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
        except Exception as exc:  # noqa: BLE001 - reported, and tried again later
            scheduled.slices = None
            scheduled.due_mono = self._monotonic() + scheduled.backoff.failed(
                exc, self._monotonic()
            )
        else:
            self._call(scheduled, PAUSE_S)
            return
        self._call(scheduled, scheduled.due_mono - self._monotonic())


def _no_rest() -> None:
    """Do nothing: with an event loop, each tick runs one slice."""


def run_to_end(slices: Iterator[None], *, until: Callable[[], bool] = lambda: False) -> bool:
    """Run slices without pauses until ``until`` is true. True: they ran to the end."""
    return all(not until() for _ in slices)
