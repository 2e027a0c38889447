"""How much memory a process uses, and how much it may. The one module that uses psutil."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker_guard.memory import cgroups
from worker_guard.memory.policy import Reading, Relative

#: Two readings of a process's start time differ if the clock was set meanwhile; up to this much
#: counts as the same.
_SAME_START_S = 2.0


#: Links of ``/proc/PID/task`` for a process with one thread: it holds a directory for each.
_LINKS_OF_ONE_THREAD = 3

#: Longest name of a command, in characters; the kernel cuts what is longer.
_COMMAND = 15


class MemoryReader:
    """Reads processes of this machine by ``worker_guard_memory_metric``.

    RSS takes microseconds. The other metrics walk the process's page tables (under a millisecond
    for a small process, a few for a large one). None of them is above RSS, so they are read only if
    RSS is over the limit.

    A process that has started others is read with them, by the PSS of all: if it forked a helper,
    its USS is next to nothing, since the two share their pages. ``"rss"`` reads the process alone,
    unless ``with_relatives``.
    """

    def __init__(self, metric: str, *, with_relatives: bool = False) -> None:
        import psutil  # not at the top: `celery --version` and the command line need no psutil

        self._psutil = psutil
        # psutil's own answer to which metrics the platform has.
        has = psutil.Process().memory_full_info()
        self.metric = metric if metric == "rss" or hasattr(has, metric) else "rss"
        self._shared_metric = "pss" if hasattr(has, "pss") else self.metric
        self._alone = self.metric == "rss" and not with_relatives
        self._ended = (psutil.NoSuchProcess, ProcessLookupError)
        self._unreadable = (*self._ended, psutil.AccessDenied, PermissionError)
        self._processes: dict[int, Any] = {}
        # Linux lists a process's children in microseconds; elsewhere, ask all processes.
        self._kernel_tells = Path("/proc/thread-self/children").exists()
        self._children: dict[int, list[int]] = {}

    def survey(self) -> Iterator[None]:
        """Find out which process started which, in steps; call this before the readings.

        If the kernel lists the children itself, there is nothing to do.
        """
        if self._kernel_tells:
            return
        children: dict[int, list[int]] = {}
        for pid in self._psutil.pids():
            with suppress(*self._unreadable):
                children.setdefault(self._psutil.Process(pid).ppid(), []).append(pid)
            yield
        self._children = children

    def steps(self, pid: int, limit_bytes: int | None) -> Generator[None, None, Reading | None]:
        """Read a process, with a ``yield`` after each step that takes time.

        Returns its memory, exact only if RSS is over the limit; None: it has ended.
        """
        try:
            process = self._processes.get(pid)
            if process is None:
                process = self._processes[pid] = self._psutil.Process(pid)
            own_bytes = int(process.memory_info().rss)
            if not own_bytes:
                self.forget(pid)
                return None  # it has ended, and was not reaped yet
            relatives: dict[Relative, int] = {}
            for relative in self._relatives_of(pid):
                with suppress(*self._unreadable):
                    used_bytes = int(relative.memory_info().rss)
                    if used_bytes:  # else it has ended, and was not reaped yet
                        relatives[self._described(relative, used_bytes)] = used_bytes
                yield
            if self._alone:
                relatives = dict.fromkeys(relatives, 0)
            rss_bytes = own_bytes + sum(relatives.values())
            metric = "rss"
            if self.metric != "rss" and limit_bytes is not None and rss_bytes > limit_bytes:
                metric = self._shared_metric if relatives else self.metric
                own_bytes = self._exactly(process, metric)
                for relative in relatives:
                    yield
                    relatives[relative] = self._of_relative(relative, metric)
        except self._ended:
            # psutil.ZombieProcess is one of these: it ended, and was not reaped yet.
            self.forget(pid)
            return None
        return Reading(
            pid=pid,
            rss_bytes=rss_bytes,
            used_bytes=own_bytes + sum(relatives.values()),
            metric=metric,
            relatives=relatives,
        )

    def read(self, pid: int, limit_bytes: int | None) -> Reading | None:
        """Run :meth:`steps` at once."""
        read: list[Reading | None] = []

        def run() -> Iterator[None]:
            read.append((yield from self.steps(pid, limit_bytes)))

        for _ in run():
            pass
        return read[0]

    def read_exactly(self, pid: int) -> Reading | None:
        """The process's memory by the metric, whatever its RSS; None: it has ended."""
        return self.read(pid, 0)

    def read_rss(self, pid: int) -> Reading | None:
        """The RSS of a process alone; None: it has ended."""
        try:
            rss_bytes = int(self._psutil.Process(pid).memory_info().rss)
        except self._ended:
            return None
        return Reading(pid=pid, rss_bytes=rss_bytes, used_bytes=rss_bytes, metric="rss")

    def relatives(self, pid: int) -> set[Relative]:
        """The processes that this one has started, directly or not."""
        found = set()
        for relative in self._relatives_of(pid):
            with suppress(*self._unreadable):
                found.add(_identity(relative))
        return found

    def living(self, relatives: Iterable[Relative]) -> list[Relative]:
        """Those of them that have not ended."""
        return [relative for relative in relatives if self._same(relative) is not None]

    def age_s(self, pid: int) -> float | None:
        """How long ago a process was forked; None: it has ended, or may not be read."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
            return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
        except (OSError, AttributeError, IndexError, ValueError):
            pass  # not Linux, where psutil's figure is up to a second off
        try:
            return float(time.time() - self._psutil.Process(pid).create_time())
        except self._unreadable:
            return None

    def forget(self, pid: int) -> None:
        """The process has ended; its pid may be used again."""
        self._processes.pop(pid, None)

    def _described(self, process: Any, rss_bytes: int) -> Relative:
        command = ""
        with suppress(*self._unreadable):
            # Of a name that the kernel cut, psutil takes the rest from the command line, where a
            # process can write anything.
            command = process.name()[:_COMMAND]
        return replace(_identity(process), command=command, rss_bytes=rss_bytes)

    def _exactly(self, process: Any, metric: str) -> int:
        if metric == "rss":
            return int(process.memory_info().rss)
        return int(getattr(process.memory_full_info(), metric))

    def _of_relative(self, relative: Relative, metric: str) -> int:
        """What it uses; 0 if it has ended, or may not be read."""
        with suppress(*self._unreadable):
            process = self._same(relative)
            return 0 if process is None else self._exactly(process, metric)
        return 0

    def _same(self, relative: Relative) -> Any:
        """The process, unless it has ended; its pid may be another's by now."""
        with suppress(*self._unreadable):
            process = self._psutil.Process(relative.pid)
            same = abs(process.create_time() - relative.started_at) <= _SAME_START_S
            if same and process.status() != self._psutil.STATUS_ZOMBIE:
                return process
        return None

    def _relatives_of(self, pid: int) -> Iterator[Any]:
        seen, todo = {pid}, [(pid, child) for child in self._children_of(pid)]
        while todo:
            parent, child = todo.pop()
            if child in seen:
                continue
            seen.add(child)
            todo += [(child, grandchild) for grandchild in self._children_of(child)]
            try:
                process = self._psutil.Process(child)
                if not self._kernel_tells and process.ppid() != parent:
                    continue  # it ended after the survey, and its pid was used again
            except self._unreadable:
                continue
            yield process

    def _children_of(self, pid: int) -> list[int]:
        if not self._kernel_tells:
            return list(self._children.get(pid, ()))
        found: list[int] = []
        with suppress(OSError):  # it has ended
            tasks = f"/proc/{pid}/task"
            # The link count tells the number of threads, much faster than a listing.
            alone = os.stat(tasks).st_nlink == _LINKS_OF_ONE_THREAD
            for task in (pid,) if alone else os.listdir(tasks):
                with suppress(OSError):
                    found += map(int, _content(f"{tasks}/{task}/children").split())
        return found


def _identity(process: Any) -> Relative:
    return Relative(pid=process.pid, started_at=process.create_time())


def _content(path: str) -> bytes:
    """Read a file, in half the time that a file object takes."""
    content = b""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while chunk := os.read(descriptor, 65536):
            content += chunk
    finally:
        os.close(descriptor)
    return content


def available_bytes(*, proc: Path = cgroups.PROC, mount: Path = cgroups.MOUNT) -> int:
    """The memory that this process may use: the tightest cgroup limit, else the machine's."""
    import psutil  # not at the top, see above

    machine_bytes = int(psutil.virtual_memory().total)
    return min([machine_bytes, *cgroups.limits(proc, mount)])
