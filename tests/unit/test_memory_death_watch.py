"""What is reported of children that were killed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker_guard.events import ChildKilled, Event
from worker_guard.memory.death_watch import DeathWatch

TASK = SimpleNamespace(task_id="id", task_name="mail.send")


class Kernel:
    """Its count, and the children that were killed since the last look."""

    def __init__(self) -> None:
        self.count: int | None = 0
        self.dead: list[Any] = []
        self.told: list[Event] = []
        self.watch = DeathWatch(
            deaths=self,
            read_count=lambda: self.count,
            report=self.told.append,
            monotonic=lambda: 0.0,
        )
        self.watch.start()

    def killed(self) -> list[Any]:
        dead, self.dead = self.dead, []
        return dead

    def look(self, *signals: str, count: int | None) -> list[bool | None]:
        """The ``oom`` of children that ended by these signals, if the count is this by now."""
        self.count = count
        self.dead = [SimpleNamespace(pid=7, signal=name, task=None) for name in signals]
        self.told.clear()
        assert list(self.watch.run()) == [None]
        return [event.oom for event in self.told if isinstance(event, ChildKilled)]


@pytest.mark.parametrize(
    ("signals", "count", "expected"),
    [
        ((), 0, []),
        (("SIGKILL",), 0, [False]),
        (("SIGKILL",), 1, [True]),
        (("SIGKILL", "SIGKILL"), 2, [True, True]),
        (("SIGKILL", "SIGKILL"), 1, [None, None]),
        # The kernel sends SIGKILL, and no other signal.
        (("SIGSEGV", "SIGKILL"), 1, [False, True]),
        (("SIGKILL",), None, [None]),
        (("SIGSEGV",), None, [False]),
    ],
)
def test_the_count_rose_or_not(
    signals: tuple[str, ...], count: int | None, expected: list[bool | None]
) -> None:
    """Differences count, and a rise explains as many children as it is high."""
    assert Kernel().look(*signals, count=count) == expected


def test_what_was_counted_before_explains_nothing() -> None:
    """Neither before the start nor before the look at which the child was found dead."""
    kernel = Kernel()
    assert kernel.look("SIGKILL", count=3) == [True]
    kernel.watch._count._unclaimed.clear()  # as after half a minute
    assert kernel.look("SIGKILL", count=3) == [False]
    assert kernel.look("SIGKILL", count=4) == [True]


def test_the_task_and_the_last_reading_are_named() -> None:
    """Once: a reused process id has no reading of the child before it."""
    kernel = Kernel()
    kernel.watch.used_bytes[7] = 123
    for used_bytes in (123, None):
        kernel.dead = [SimpleNamespace(pid=7, signal="SIGKILL", task=TASK)]
        kernel.watch.look()
        assert kernel.told[-1] == ChildKilled(
            child_pid=7,
            signal="SIGKILL",
            oom=False,
            task_id="id",
            task_name="mail.send",
            used_bytes=used_bytes,
        )
