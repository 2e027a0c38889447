"""Frees a main loop that hangs in a read of a dead connection, by SIGALRM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar

from worker_guard.events import Event, Stalled, StallEnded, Trigger
from worker_guard.stall.blocked import BlockedRead

#: Seconds between two alarms.
ALARM_S = 2.0

#: Seconds between two signs of life of the main loop.
BEAT_S = 5.0

#: The connection that the interrupted code uses, or None; and how long it has been silent.
Sample = Callable[[FrameType | None], "tuple[int | None, float]"]


class Unblocker:
    """An alarm every two seconds, whose handler looks what the main loop does.

    Python runs signal handlers between two attempts of a blocking read, so this needs no thread.
    The handler takes samples, and closes sockets if they say that the loop hangs; what it did is
    reported later, by the job, since nothing may be logged in a signal handler.

    The application may install a handler of its own at any time; then this one leaves it alone.
    """

    name: ClassVar[str] = "unblock"
    interval_s: ClassVar[float] = BEAT_S

    def __init__(
        self,
        blocked: BlockedRead,
        *,
        sample: Sample,
        free: Callable[[FrameType | None], None],
        report: Callable[[Event], None],
        displaced: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._blocked, self._sample, self._free = blocked, sample, free
        self._report, self._displaced, self._monotonic = report, displaced, monotonic
        self._pid = os.getpid()
        self._before: Any = signal.SIG_DFL
        self._freed_after_s: float | None = None
        self._installed = False

    def start(self) -> None:
        """Install the handler, and begin."""
        self._before = signal.signal(signal.SIGALRM, self._on_alarm)
        self._installed = True
        self._arm()

    def stop(self) -> None:
        """Stop, and put the handler of before back, unless another one has taken its place."""
        if not self._installed:
            return
        self._installed = False
        if self._is_ours():
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, self._before)

    def leave_child(self) -> None:
        """In a child, which inherits the handler but not the timer: put the one of before back."""
        if self._is_ours():
            signal.signal(signal.SIGALRM, self._before)

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Give a sign of life, and report what the handler did."""
        self._blocked.beat()
        freed_after_s, self._freed_after_s = self._freed_after_s, None
        if freed_after_s is not None:
            for event in (Stalled, StallEnded):
                self._report(
                    event(
                        queue=None,
                        waiting_messages=None,
                        idle_s=round(freed_after_s, 1),
                        action="unblock",
                    )
                )
        if self._installed and not self._is_ours():
            self._installed = False
            if signal.getitimer(signal.ITIMER_REAL)[1] == ALARM_S:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            self._displaced()
        elif self._installed and not any(signal.getitimer(signal.ITIMER_REAL)):
            self._arm()  # the application has used the timer, and put the handler back
        yield

    def _arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, ALARM_S, ALARM_S)

    def _is_ours(self) -> bool:
        return signal.getsignal(signal.SIGALRM) == self._on_alarm

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A child that has not put the handler of before back yet.
            signal.signal(signum, self._before)
            os.kill(os.getpid(), signum)
            return
        try:
            connection, silent_s = self._sample(frame)
            hung_s = self._blocked.sample(connection, silent_s, self._monotonic())
            if hung_s is not None:
                self._blocked.beat()
                self._free(frame)
                self._freed_after_s = hung_s
        except Exception:  # noqa: BLE001 - an error here would end up in whatever runs now
            self._blocked.beat()
