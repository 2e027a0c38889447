"""How much memory a process uses, and how much it may. The one module that uses psutil."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker_guard.memory.policy import Reading


class MemoryReader:
    """Reads processes of this machine by ``worker_guard_memory_metric``.

    RSS costs microseconds, the other metrics walk the process's page tables (under a millisecond
    for a small process, some for a large one). None of them is above RSS, so that they are read
    only where RSS is over the limit.
    """

    def __init__(self, metric: str) -> None:
        import psutil  # not at the top: `celery --version` and the command line need no psutil

        self._psutil = psutil
        # psutil's own answer to which metrics the platform has.
        has = metric == "rss" or hasattr(psutil.Process().memory_full_info(), metric)
        self.metric = metric if has else "rss"
        self._processes: dict[int, Any] = {}

    def read(self, pid: int, limit_bytes: int | None) -> Reading | None:
        """The process's memory, exact only where RSS is over the limit; None: it has ended."""
        try:
            process = self._processes.get(pid)
            if process is None:
                process = self._processes[pid] = self._psutil.Process(pid)
            rss_bytes = used_bytes = int(process.memory_info().rss)
            metric = "rss"
            if self.metric != "rss" and limit_bytes is not None and rss_bytes > limit_bytes:
                used_bytes = int(getattr(process.memory_full_info(), self.metric))
                metric = self.metric
        except (self._psutil.NoSuchProcess, ProcessLookupError):
            # psutil.ZombieProcess is one of these: it ended, and was not reaped yet.
            self.forget(pid)
            return None
        return Reading(pid=pid, rss_bytes=rss_bytes, used_bytes=used_bytes, metric=metric)

    def read_exactly(self, pid: int) -> Reading | None:
        """The process's memory by the metric, whatever its RSS; None: it has ended."""
        return self.read(pid, 0)

    def forget(self, pid: int) -> None:
        """The process has ended; its id may come again."""
        self._processes.pop(pid, None)


def available_bytes(
    *, proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int:
    """The memory that this process may use: the tightest cgroup limit, else the machine's."""
    import psutil  # as above

    machine_bytes = int(psutil.virtual_memory().total)
    return min([machine_bytes, *_cgroup_limits(proc, mount)])


def _cgroup_limits(proc: Path, mount: Path) -> Iterator[int]:
    """The limits of this process's cgroup and of those above it, version 2 and version 1."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path can be the host's, of which only the root is mounted.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            try:
                limit = (directory / name).read_text().strip()
            except OSError:
                limit = ""
            if limit.isdecimal():  # not "max"
                yield int(limit)
            if directory == root:
                break
