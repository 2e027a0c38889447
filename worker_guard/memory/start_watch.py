"""The job that measures how long children take to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from worker_guard.events import Trigger
from worker_guard.memory.roster import Roster
from worker_guard.memory.watchdog import Children

#: Seconds between two looks while a child starts; a start is known to within two of them.
STARTING_S = 0.25

#: Seconds between two looks if none does.
IDLE_S = 5.0


@dataclass(kw_only=True)
class StartWatch:
    """Looks whether children that start have said that they are up.

    The pool hears that when the event loop next turns, which can be much later if the broker is
    down. So a start counts as slow only if a look found the child not yet up.
    """

    name: ClassVar[str] = "child_starts"

    children: Children
    said_more: Callable[[int], bool]
    roster: Roster
    monotonic: Callable[[], float]

    @property
    def interval_s(self) -> float:
        """Short while a child starts."""
        return STARTING_S if self._starting() else IDLE_S

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look once."""
        for pid in self._starting():
            spoke = self.said_more(pid)
            self.roster.starts(pid, self.monotonic(), spoke=spoke)
            yield

    def _starting(self) -> set[int]:
        return {child.pid for child in self.children.listed()} - self.roster.heard_up
