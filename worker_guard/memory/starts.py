"""The part that looks how long children take to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from worker_guard.events import Trigger
from worker_guard.memory.roster import Roster
from worker_guard.memory.watchdog import Children

#: Between two looks while a child starts. A start is known to within two of them.
STARTING_S = 0.25

#: Between two looks where none does.
IDLE_S = 5.0


@dataclass(kw_only=True)
class StartWatch:
    """Notes that the event loop turns while a child starts.

    A child says that it is up, and is heard when the event loop next turns. That can be long after,
    where the broker is away; so a start is known to have taken long only where nothing was heard
    although the loop turned.
    """

    name: ClassVar[str] = "child_starts"

    children: Children
    roster: Roster
    monotonic: Callable[[], float]

    @property
    def interval_s(self) -> float:
        """Short while a child starts."""
        starting = {child.pid for child in self.children.listed()} - self.roster.heard_up
        return STARTING_S if starting else IDLE_S

    def round(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look once."""
        self.roster.looked(self.monotonic())
        yield from ()
