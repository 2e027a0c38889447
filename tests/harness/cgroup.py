"""A real cgroup with a memory limit, for a worker that is to run out of memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.workers import wait_for
from worker_guard.memory.cgroups import MOUNT, PROC


class Group:
    """A cgroup below the one that the tests run in, so that any limit of theirs holds there too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pid: int) -> None:
        """Put a process there, and with it all that it forks from now on."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        """The processes that are there."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]


@contextlib.contextmanager
def limited_group(limit_bytes: int) -> Iterator[Group]:
    """A group with this limit, of version 1; skips the test if the machine does not allow one.

    In version 2 the tests' own group would have to be emptied first, since one with processes can't
    limit the groups below it. All processes of the group must have ended with the block.
    """
    paths = dict(line.split(":")[1:] for line in PROC.read_text().splitlines())
    if "memory" not in paths:
        pytest.skip("no memory controller of cgroup version 1 here")
    path = MOUNT / "memory" / paths["memory"].lstrip("/") / f"worker_guard_tests_{os.getpid()}"
    try:
        path.mkdir()
    except OSError as exc:
        pytest.skip(f"no cgroup can be made here: {exc}")
    group = Group(path)
    try:
        try:
            (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
        except OSError as exc:
            pytest.skip(f"a cgroup can't be limited here: {exc}")
        yield group
    finally:
        wait_for(lambda: not group.pids(), "the cgroup to be empty")
        path.rmdir()
