"""What is read of a process, and how much memory it may use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.harness.workers import wait_for
from worker_guard.memory.policy import Reading, Relative
from worker_guard.memory.reader import MemoryReader, available_bytes
from worker_guard.scheduler import run_to_end

LINUX = sys.platform == "linux"

MACHINE_BYTES = int(psutil.virtual_memory().total)


def cgroup(directory: Path, lines: list[str], limits: dict[str, str]) -> int:
    """What may be used where ``/proc/self/cgroup`` and the mounted limits are these."""
    proc, mount = directory / "cgroup", directory / "mount"
    proc.write_text("\n".join(lines))
    mount.mkdir()
    for path, limit in limits.items():
        (mount / path).parent.mkdir(parents=True, exist_ok=True)
        (mount / path).write_text(f"{limit}\n")
    return available_bytes(proc=proc, mount=mount)


@pytest.mark.parametrize(
    ("lines", "limits", "expected"),
    [
        (["0::/app"], {"app/memory.max": "1000"}, 1000),
        (["0::/app"], {"app/memory.max": "max"}, MACHINE_BYTES),
        (["0::/a/b"], {"a/b/memory.max": "max", "a/memory.max": "2000"}, 2000),
        (["0::/a/b"], {"a/b/memory.max": "3000", "a/memory.max": "2000"}, 2000),
        (["0::/"], {"memory.max": "1000"}, 1000),
        (["0::/host/path"], {"memory.max": "1000"}, 1000),
        (["4:memory:/app"], {"memory/app/memory.limit_in_bytes": "1000"}, 1000),
        (["4:cpu,memory:/host/path"], {"memory/memory.limit_in_bytes": "1000"}, 1000),
        (["4:memory:/"], {"memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE_BYTES),
        (
            ["5:cpu:/app", "4:memory:/app", "0::/"],
            {"memory/app/memory.limit_in_bytes": "1000", "cpu/app/memory.max": "1"},
            1000,
        ),
        (["0::/app"], {}, MACHINE_BYTES),
        ([], {"memory.max": "1000"}, MACHINE_BYTES),
    ],
)
def test_the_tightest_cgroup_limit_holds(
    tmp_path: Path, lines: list[str], limits: dict[str, str], expected: int
) -> None:
    """Version 2 and version 1, the groups above, a container's own root; else the machine's."""
    assert cgroup(tmp_path, lines, limits) == expected


def test_without_cgroups_the_machine_counts(tmp_path: Path) -> None:
    """Not Linux, or no /proc."""
    assert available_bytes(proc=tmp_path / "none", mount=tmp_path) == MACHINE_BYTES


def test_only_what_is_over_the_limit_is_read_exactly() -> None:
    """Below the limit RSS answers; above it the metric does, which is never more."""
    reader = MemoryReader("uss")
    below = reader.read(os.getpid(), 10**15)
    above = reader.read(os.getpid(), 1)
    assert below is not None
    assert above is not None
    assert (below.metric, below.used_bytes) == ("rss", below.rss_bytes)
    assert above.metric == "uss"
    assert 0 < above.used_bytes < above.rss_bytes
    unlimited = reader.read(os.getpid(), None)
    assert unlimited is not None
    assert unlimited.metric == "rss"


@pytest.mark.parametrize("metric", ["uss", "pss", "rss"])
def test_each_metric_is_read(metric: str) -> None:
    """What the setting names is what is compared, where the platform has it."""
    reader = MemoryReader(metric)
    reading = reader.read_exactly(os.getpid())
    assert reading is not None
    assert reading.metric == reader.metric
    if sys.platform == "linux":
        assert reader.metric == metric


def test_a_process_that_has_ended_has_no_reading() -> None:
    """Reaped or not: there is nothing to read, and that is no failure."""
    reader = MemoryReader("uss")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert reader.read(process.pid, 1) is not None
        process.kill()
    assert reader.read(process.pid, 1) is None
    assert reader.read(process.pid, 1) is None


@pytest.mark.parametrize("module", ["worker_guard", "worker_guard.cli", "worker_guard.settings"])
def test_what_every_celery_command_loads_is_light(module: str) -> None:
    """psutil and redis are imported by a worker that needs them, not by ``celery --version``."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"psutil", "redis", "structlog"} & set(done.stdout.split())


@pytest.mark.parametrize("module", ["policy", "suspension", "suspects"])
def test_the_core_imports_nothing_that_it_could_act_by(module: str) -> None:
    """No celery, no psutil, no clock, no operating system: what it is told is all it knows."""
    import ast

    import worker_guard.memory

    path = Path(worker_guard.memory.__path__[0]) / f"{module}.py"
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= {
        "__future__",
        "collections",
        "collections.abc",
        "dataclasses",
        "re",
        "worker_guard.events",
        "worker_guard.memory.suspension",
    }


@contextmanager
def family(megabytes: int) -> Iterator[tuple[int, int]]:
    """A process and one that it started, which holds so much."""
    grandchild = f"held = bytearray(b'x') * {megabytes} * 10**6; print(flush=True); input()"
    child = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {grandchild!r}], stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\n"
        "print(p.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            yield process.pid, pid
        finally:
            psutil.Process(pid).kill()
            process.kill()


def other_reader(metric: str, *, kernel_tells: bool) -> MemoryReader:
    reader = MemoryReader(metric)
    reader._kernel_tells = reader._kernel_tells and kernel_tells
    return reader


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_a_process_is_read_with_those_that_it_started(kernel_tells: bool) -> None:
    """RSS of all where that is within the limit, else PSS of all; those that live on are told."""
    reader = other_reader("uss", kernel_tells=kernel_tells)
    with family(80) as (pid, relative_pid):
        for _ in reader.survey():
            pass
        below = reader.read(pid, 10**9)
        above = reader.read(pid, 50 * 10**6)
        assert below is not None
        assert above is not None
        assert (below.metric, below.processes) == ("rss", 2)
        assert below.used_bytes == below.rss_bytes > 80 * 10**6
        assert (above.metric, above.processes) == ("pss" if LINUX else "uss", 2)
        assert 80 * 10**6 < above.used_bytes <= above.rss_bytes
        (relative,) = reader.relatives(pid)
        assert relative.pid == relative_pid
        assert above.relatives[relative] > 80 * 10**6
        assert reader.living([relative]) == [relative]
        again = Relative(pid=relative_pid, started_at=relative.started_at - 60)
        assert reader.living([again]) == []
    wait_for(lambda: not reader.living([relative]), "its end")
    assert reader.relatives(pid) == set()


def test_by_rss_a_process_is_read_alone() -> None:
    """As it always was; what it started is known all the same."""
    reader = MemoryReader("rss")
    with family(80) as (pid, _):
        reading = reader.read(pid, 10)
    assert reading is not None
    assert reading.used_bytes == reading.rss_bytes < 80 * 10**6
    assert reading.processes == 2
    assert list(reading.relatives.values()) == [0]


@pytest.mark.skipif(not LINUX, reason="how the kernel cuts a name differs")
def test_a_command_is_named_without_its_arguments(tmp_path: Path) -> None:
    """A long name, too, of which psutil takes the rest from the command line."""
    program = tmp_path / "a-name-that-the-kernel-cuts"
    sleep = shutil.which("sleep")
    assert sleep is not None
    program.symlink_to(sleep)
    arguments = [f"{program.name} --token=hunter2", "600"]
    with subprocess.Popen(arguments, executable=program) as process:
        wait_for(
            lambda: program.name in psutil.Process(process.pid).name(), "it to be this program"
        )
        assert "hunter2" in psutil.Process(process.pid).name()
        reading = MemoryReader("uss").read(os.getpid(), None)
        process.kill()
    assert reading is not None
    (relative,) = [each for each in reading.relatives if each.pid == process.pid]
    assert relative.command == "a-name-that-the"
    assert [each.pid for each, _ in reading.biggest(1)] != []
    assert 0 < relative.rss_bytes == reading.relatives[relative]


def test_a_relative_that_ends_or_may_not_be_read_is_no_failure() -> None:
    """It ends between two steps of the reading."""
    reader = MemoryReader("uss")
    with family(80) as (pid, relative_pid):
        steps = reader.steps(pid, 1)
        next(steps)
        os.kill(relative_pid, signal.SIGKILL)
        wait_for(lambda: psutil.Process(relative_pid).status() == "zombie", "its end")
        read: list[Reading | None] = []

        def rest() -> Iterator[None]:
            read.append((yield from steps))

        run_to_end(rest())
        assert read[0] is not None
        assert read[0].used_bytes < 80 * 10**6


def test_the_main_process_is_read_alone_and_by_rss() -> None:
    """Whatever the metric."""
    reading = MemoryReader("uss").read_rss(os.getpid())
    assert reading is not None
    assert (reading.metric, reading.processes) == ("rss", 1)
    assert MemoryReader("uss").read_rss(2**22 + 1) is None


def test_the_age_of_a_process() -> None:
    """From its fork on; unknown where there is none."""
    reader = MemoryReader("uss")
    before = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        youngest_s = reader.age_s(process.pid)
        oldest_s = time.monotonic() - before
        process.kill()
    assert youngest_s is not None
    assert -0.02 <= youngest_s <= oldest_s + 0.02  # the kernel counts in hundredths
    assert reader.age_s(2**22 + 1) is None
