"""The heartbeat file: it is replaced whole, and a failure leaves it as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from worker_guard.health.heartbeat import (
    SLOW_S,
    Heartbeat,
    NotAHeartbeatError,
    SlowDiskError,
)
from worker_guard.scheduler import run_to_end


class Disk:
    """A heartbeat in a folder, with a clock that passes by so much with each look."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "w.json"
        self.now, self.step_s = 100.0, 0.0
        self.beats = 0
        self.heartbeat = Heartbeat(
            path=str(self.path),
            interval_s=5.0,
            record=self.record,
            monotonic=self.monotonic,
        )

    def monotonic(self) -> float:
        self.now += self.step_s
        return self.now

    def record(self) -> dict[str, object]:
        self.beats += 1
        return {"worker": self.beats}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_each_run_replaces_the_file(disk: Disk) -> None:
    """By another file, which has one line of JSON; no other file stays, and others may read it."""
    for beat in (1, 2):
        run_to_end(disk.heartbeat.run())
        assert json.loads(disk.path.read_text()) == {"worker": beat}
    assert os.listdir(disk.path.parent) == ["w.json"]
    assert disk.path.stat().st_mode & 0o444


def test_one_who_reads_sees_the_file_whole(disk: Disk) -> None:
    """An open file stays as it was."""
    disk.heartbeat.write()
    with open(disk.path) as reader:
        disk.heartbeat.write()
        assert json.loads(reader.read()) == {"worker": 1}


def test_a_left_over_of_a_kill_is_used_up(disk: Disk) -> None:
    """And a link in its place is not followed."""
    disk.path.with_name("victim").write_text("mine")
    disk.path.with_name(".w.json.tmp").symlink_to("victim")
    disk.heartbeat.write()
    assert sorted(os.listdir(disk.path.parent)) == ["victim", "w.json"]
    assert disk.path.with_name("victim").read_text() == "mine"
    assert not disk.path.is_symlink()


@pytest.mark.parametrize("failing", ["write", "short", "replace"])
def test_a_full_disk_leaves_the_old_file(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Also if a part of the text was written; nothing else is left."""
    disk.heartbeat.write()

    def full(*_: Any) -> int:
        if failing == "short":
            return 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write" if failing == "short" else failing, full)
        with pytest.raises(OSError, match="No space left"):
            disk.heartbeat.write()
    assert json.loads(disk.path.read_text()) == {"worker": 1}
    assert os.listdir(disk.path.parent) == ["w.json"]
    disk.heartbeat.write()
    assert json.loads(disk.path.read_text()) == {"worker": 3}


def test_a_slow_write_is_told(disk: Disk) -> None:
    """It was written all the same."""
    disk.step_s = SLOW_S + 0.1
    with pytest.raises(SlowDiskError, match=r"w\.json: a write took 0\.6 s"):
        disk.heartbeat.write()
    assert json.loads(disk.path.read_text()) == {"worker": 1}


def test_a_folder_that_is_missing_is_not_made(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(FileNotFoundError, match="none"):
        Disk(tmp_path / "none").heartbeat.write()


def test_it_removes_its_own_file_alone(disk: Disk) -> None:
    """Not that of a worker that has taken over, and not twice."""
    disk.heartbeat.write()
    successor = Disk(disk.path.parent)
    successor.heartbeat.write()
    disk.heartbeat.remove()
    assert disk.path.exists()
    successor.heartbeat.remove()
    successor.heartbeat.remove()
    assert os.listdir(disk.path.parent) == []


def test_what_is_no_heartbeat_is_left_alone(disk: Disk) -> None:
    """A pid file, or a device, whose path was given by mistake."""
    disk.path.write_text("4711\n")
    with pytest.raises(NotAHeartbeatError, match="is no heartbeat file"):
        disk.heartbeat.write()
    disk.heartbeat.remove()
    assert disk.path.read_text() == "4711\n"
    disk.path.unlink()
    os.mkfifo(disk.path)
    with pytest.raises(NotAHeartbeatError):
        disk.heartbeat.write()
    assert disk.path.is_fifo()
    assert os.listdir(disk.path.parent) == ["w.json"]


@pytest.mark.parametrize("left", ["", '{"worker": "w@host", "state": "ready"}\n'])
def test_what_a_worker_before_left_is_replaced(disk: Disk, left: str) -> None:
    """So is a file that is empty."""
    disk.path.write_text(left)
    disk.heartbeat.write()
    assert json.loads(disk.path.read_text()) == {"worker": 1}
