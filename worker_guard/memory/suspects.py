"""Which task makes the children grow: an estimate from what each child ran between two readings.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from worker_guard.events import Suspect

#: How many tasks are shown.
SHOWN = 3

#: How many tasks are kept; beyond that the one with the least growth is forgotten.
KEPT = 40

#: What a child's first tasks cost once (imports, connections) is attributed to this, not to them.
_WARM_UP = ""

#: The most multiplications that one solution takes: a few milliseconds.
_MULTIPLICATIONS = 20_000

#: Damps the estimate of a task that has hardly run.
_RIDGE = 0.5


@dataclass
class Suspects:
    """Attributes the growth of each child to the tasks that it ran between two readings.

    Each reading is one equation: the growth is the sum, over the tasks, of runs times growth per
    run. Their least-squares solution, with no task below zero, is the estimate. It needs the mix of
    tasks to vary: two tasks that always run together can't be told apart, and share the growth.
    Only the sums of the equations are kept; their size depends on the number of tasks alone.
    """

    _rss_bytes: dict[int, int] = field(default_factory=dict)
    _runs: dict[int, Counter[str]] = field(default_factory=dict)
    _running: dict[int, str] = field(default_factory=dict)
    _total_runs: Counter[str] = field(default_factory=Counter)
    _products: dict[str, dict[str, float]] = field(default_factory=dict)
    _growth: dict[str, float] = field(default_factory=dict)
    _per_run: dict[str, float] = field(default_factory=dict)

    def began(self, pid: int, task: str) -> None:
        """A child began to run a task."""
        runs = self._runs.setdefault(pid, Counter())
        if pid not in self._running:
            runs[_WARM_UP] = 1
        runs[task] += 1
        self._running[pid] = task

    def ran_nothing(self, pid: int) -> bool:
        """Whether this child, as far as is known, has run no task yet."""
        return pid not in self._running

    def read(self, pid: int, rss_bytes: int, *, busy: bool) -> None:
        """A child was read; ``busy``: the task that it began last still runs."""
        before_bytes = self._rss_bytes.get(pid)
        self._rss_bytes[pid] = rss_bytes
        runs = self._runs.pop(pid, None)
        if runs:
            self._total_runs.update(runs)
            if before_bytes is not None:
                self._add(runs, rss_bytes - before_bytes)
        if busy and pid in self._running:
            # A task that keeps running can keep growing, but this is no further run.
            self._runs[pid] = Counter({self._running[pid]: 0})

    def children(self) -> set[int]:
        """The children about which something is kept."""
        return self._rss_bytes.keys() | self._running.keys() | self._runs.keys()

    def gone(self, pid: int) -> None:
        """A child has left."""
        for known in (self._rss_bytes, self._runs, self._running):
            known.pop(pid, None)

    def top(self) -> tuple[Suspect, ...]:
        """The tasks with the most growth per run, the worst first."""
        self._solve()
        worst = sorted(self._per_run.items(), key=lambda item: item[1], reverse=True)
        return tuple(
            Suspect(
                task=task,
                runs=self._total_runs[task],
                growth_bytes=round(per_run * self._total_runs[task]),
            )
            for task, per_run in worst
            if per_run >= 1 and task != _WARM_UP
        )[:SHOWN]

    def _add(self, runs: Mapping[str, int], grew_bytes: int) -> None:
        counts = [(task, max(1, count)) for task, count in runs.items()]
        for task, count in counts:
            row = self._products.setdefault(task, defaultdict(float))
            for other, other_count in counts:
                row[other] += count * other_count
            self._growth[task] = self._growth.get(task, 0.0) + count * grew_bytes
        while len(self._products) > KEPT:
            self._forget(min(self._growth, key=self._growth.__getitem__))

    def _solve(self) -> None:
        """Improve the estimate, task by task, from where it was left."""
        names = list(self._products)
        per_run = self._per_run
        for _ in range(min(100, _MULTIPLICATIONS // (len(names) ** 2 + 1))):
            for task in names:
                row = self._products[task]
                others = sum(
                    times * per_run.get(other, 0.0) for other, times in row.items() if other != task
                )
                per_run[task] = max(0.0, (self._growth[task] - others) / (row[task] + _RIDGE))

    def _forget(self, task: str) -> None:
        for known in (self._products, self._growth, self._per_run, self._total_runs):
            known.pop(task, None)
        for row in self._products.values():
            row.pop(task, None)
