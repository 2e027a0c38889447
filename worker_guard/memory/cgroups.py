"""The cgroup of this process: its limits, and the kernel's count of its out-of-memory kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

#: Which cgroups this process is in, and where they are mounted.
PROC, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def limits(proc: Path = PROC, mount: Path = MOUNT) -> Iterator[int]:
    """The memory limits of this process's cgroup and of those above it, version 2 and version 1."""
    for path in _files(proc, mount, version_2="memory.max", version_1="memory.limit_in_bytes"):
        limit = _content(path).strip()
        if limit.isdecimal():  # not "max"
            yield int(limit)


def oom_kills(proc: Path = PROC, mount: Path = MOUNT) -> int | None:
    """How many processes of this cgroup the kernel has killed for memory; None: not known.

    The kernel counts a kill in the cgroup of the killed process, whichever limit was reached: that
    of the cgroup, that of one above it, or the machine's memory.
    """
    for path in _files(proc, mount, version_2="memory.events", version_1="memory.oom_control"):
        for line in _content(path).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdecimal():
                return int(value)
    return None


def _files(proc: Path, mount: Path, *, version_2: str, version_1: str) -> Iterator[Path]:
    """The file in this process's cgroup and in those above it, the nearest first."""
    for line in _content(proc).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, name = mount, version_2
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", version_1
        else:
            continue
        # In a container the path can be the host's, while only its root is mounted.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            yield directory / name
            if directory == root:
                break


def _content(path: Path) -> str:
    """What a file holds; empty if it can't be read, or on platforms other than Linux."""
    try:
        return path.read_text()
    except OSError:
        return ""
