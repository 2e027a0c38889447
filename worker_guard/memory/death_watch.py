"""The job that reports children that were killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from worker_guard.events import ChildKilled, Event, Trigger
from worker_guard.memory.oom_count import OomCount
from worker_guard.memory.watchdog import Task

#: Seconds between two looks at the kernel's count. After a child was killed there is one at once.
LOOK_S = 1.0

_KILL = "SIGKILL"


class Killed(Protocol):
    """A child that was killed, by a signal of this name, while it ran this task."""

    @property
    def pid(self) -> int: ...
    @property
    def signal(self) -> str: ...
    @property
    def task(self) -> Task | None: ...


class Deaths(Protocol):
    """The children that ended by a signal that the worker did not send."""

    def killed(self) -> Sequence[Killed]:
        """Those since the last call, each once."""


@dataclass(kw_only=True)
class DeathWatch:
    """Reports each child that was killed, and whether the kernel did it for memory.

    ``used_bytes`` is filled with what each child that was killed used when it was last read, by
    process id; the job takes out those that it has looked at.
    """

    name: ClassVar[str] = "killed_children"
    interval_s: ClassVar[float] = LOOK_S

    deaths: Deaths
    read_count: Callable[[], int | None]
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    used_bytes: dict[int, int] = field(default_factory=dict)
    _count: OomCount = field(default_factory=OomCount)

    def start(self) -> None:
        """Read the kernel's count for the first time: only what it rises by from now on matters."""
        self._count.read(self.read_count(), self.monotonic())

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look once."""
        self.look()
        yield

    def look(self) -> None:
        """Report the children that were killed since the last look."""
        # The count after the deaths: the kernel counts a kill before the child ends.
        deaths = self.deaths.killed()
        self._count.read(self.read_count(), self.monotonic())
        kills = sum(death.signal == _KILL for death in deaths)
        for_memory = self._count.killed(kills) if kills else None
        for death in deaths:
            self.report(
                ChildKilled(
                    child_pid=death.pid,
                    signal=death.signal,
                    oom=for_memory if death.signal == _KILL else False,
                    task_id=death.task.task_id if death.task else None,
                    task_name=death.task.task_name if death.task else None,
                    used_bytes=self.used_bytes.pop(death.pid, None),
                )
            )
