"""Runs the guard's parts on the worker's timer, in slices, so that tasks never wait for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from worker_guard.backoff import LONGEST_PAUSE_S, Backoff
from worker_guard.events import Event, Trigger

#: A part gives the event loop back when it has held it for this long. The promise is 5 ms; the
#: rest is room for the one step that was under way.
SLICE_S = 0.002

#: Without an event loop the consumer looks for ticks only between two waits for messages, which
#: take seconds where none comes; so it runs slices for this long each time.
BURST_S = 0.1

#: What the other greenlets get between two slices of such a tick.
REST_S = 0.001

#: The event loop's own time between two slices of one round.
PAUSE_S = 0.01

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds, on the thread that runs the consumer."""


class Part(Protocol):
    """One job of the guard."""

    @property
    def name(self) -> str:
        """How the part is called in the events."""

    @property
    def interval_s(self) -> float:
        """Seconds between two rounds."""

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:
        """Do the job once. Each ``yield`` gives the event loop back for a moment."""


class _Run:
    """A part with what the scheduler knows of it."""

    def __init__(self, part: Part, backoff: Backoff, now: float, first_s: float) -> None:
        self.part = part
        self.backoff = backoff
        self.due_mono = now + first_s
        #: Until the first connection is there: how long after it the first round is.
        self.first_s: float | None = first_s
        self.slices: Iterator[None] | None = None
        self.waiting: list[Iterator[None]] = []
        self.ticket = 0


class Scheduler:
    """Starts each part's rounds on time, resumes their slices, and contains what they raise.

    ``longest_pauses_s`` bounds the pause after failures of the parts that it names.
    It survives the loss of the broker connection: :meth:`arm` is called for each new one.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        report: Callable[[Event], None],
        monotonic: Callable[[], float],
        longest_pauses_s: Mapping[str, float] | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._monotonic = monotonic
        self._uniform = uniform
        self._later: Later | None = None
        self._burst_s = 0.0
        self._rest: Callable[[], None] = _no_rest
        now = monotonic()
        self._runs = {
            part.name: _Run(
                part,
                Backoff(
                    part.name,
                    first_pause_s=part.interval_s,
                    longest_pause_s=(longest_pauses_s or {}).get(part.name, LONGEST_PAUSE_S),
                    report=report,
                ),
                now,
                # Jitter, so that workers started together don't sweep together. At least half an
                # interval, so that messages that expired while the worker was down are reported
                # as one backfill.
                uniform(0.5, 1.0) * part.interval_s,
            )
            for part in parts
        }

    def arm(
        self, later: Later, *, burst_s: float = 0.0, rest: Callable[[], None] | None = None
    ) -> None:
        """Tick from now on by this timer; a timer armed before ticks no more.

        Each tick runs slices until ``burst_s`` is over, and one at least, with ``rest`` between.
        """
        self._later, self._burst_s, self._rest = later, burst_s, rest or _no_rest
        for run in self._runs.values():
            if run.first_s is not None:
                run.due_mono, run.first_s = self._monotonic() + run.first_s, None
            under_way = run.slices is not None
            self._call(run, PAUSE_S if under_way else run.due_mono - self._monotonic())

    def disarm(self) -> None:
        """Tick no more until armed again; a round that is under way is resumed then."""
        self._later = None
        for run in self._runs.values():
            run.ticket += 1

    def drop(self, name: str) -> None:
        """Run a part no more."""
        run = self._runs.pop(name, None)
        if run is not None:
            run.ticket += 1

    def close(self, name: str) -> None:
        """End a part's rounds where they are; what they clear up at their end is done now."""
        run = self._runs.get(name)
        if run is None:
            return
        rounds, run.slices, run.waiting = [run.slices, *run.waiting], None, []
        for slices in rounds:
            if isinstance(slices, Generator):
                slices.close()

    def run_soon(self, name: str, *, within_s: float = 0.0, anyway: bool = False) -> None:
        """Have a part's next round at a moment of the next ``within_s`` if it is due later.

        A part that failed is left alone until its pause is over; ``anyway`` tries it once.
        """
        run = self._runs.get(name)
        if run is None or run.slices is not None:
            return
        now = self._monotonic()
        if run.due_mono > now + within_s and (anyway or run.backoff.ready(now)):
            run.due_mono, run.first_s = now + self._uniform(0.0, within_s), None
            self._call(run, run.due_mono - now)

    def resume(self, name: str, slices: Iterator[None]) -> None:
        """Run the rest of a round of this part that was begun outside the schedule."""
        run = self._runs[name]
        if run.slices is None:
            run.slices = slices
        else:
            run.waiting.append(slices)
        self._call(run, PAUSE_S)

    def failures(self) -> dict[str, int]:
        """Consecutive failures of each part."""
        return {name: run.backoff.consecutive_failures for name, run in self._runs.items()}

    def due_in_s(self, name: str) -> float:
        """Seconds until a part's next round begins; 0 while one is under way, or without a part."""
        run = self._runs.get(name)
        if run is None or run.slices is not None:
            return 0.0
        return max(0.0, run.due_mono - self._monotonic())

    def _call(self, run: _Run, delay_s: float) -> None:
        """Set the one next tick of this part.

        A ticket tells it from those set before: timers of a lost connection are gone on some
        Celery releases and go on ticking on others, and gevent's can't be cancelled.
        """
        run.ticket += 1
        if self._later is not None:
            self._later(max(0.0, delay_s), partial(self._tick, run, run.ticket))

    def _tick(self, run: _Run, ticket: int) -> None:
        """Run one slice; never raises, whatever a part does (a timer callback must not)."""
        if ticket != run.ticket:
            return
        try:
            if run.slices is None:
                run.slices = run.waiting.pop(0) if run.waiting else run.part.run()
            until = self._monotonic() + self._burst_s
            slices = run.slices
            next(slices)
            while self._monotonic() < until:
                self._rest()
                if run.slices is not slices:
                    return  # closed meanwhile
                next(slices)
        except StopIteration:
            run.slices = None
            run.backoff.succeeded()
            if run.waiting:
                self._call(run, PAUSE_S)
                return
            run.due_mono = self._monotonic() + run.part.interval_s * self._uniform(0.9, 1.1)
        except Exception as exc:  # noqa: BLE001 - contained: reported, and tried again later
            run.slices = None
            run.due_mono = self._monotonic() + run.backoff.failed(exc, self._monotonic())
        else:
            self._call(run, PAUSE_S)
            return
        self._call(run, run.due_mono - self._monotonic())


def _no_rest() -> None:
    """With an event loop there is one slice a tick."""


def run_to_end(slices: Iterator[None], *, until: Callable[[], bool] = lambda: False) -> bool:
    """Run a round without pauses, or for as long as ``until`` is false; True: it is done."""
    return all(not until() for _ in slices)
