"""What the commands say where something is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import redis_server
from tests.harness.workers import ROOT, Worker


def test_without_any_redis_the_error_says_how_to_install_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither on PATH nor from the wheel."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(redis_server, "__file__", str(tmp_path / "a/b/c/redis_server.py"))
    with pytest.raises(RuntimeError, match="apt-get install redis-server"):
        redis_server.server_program()


def test_valkey_serves_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``valkey-server`` on PATH is taken where there is no ``redis-server``."""
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.server_program() == str(program)


def test_a_line_that_is_still_being_written_is_no_event_yet(tmp_path: Path) -> None:
    """A worker writes its log while a test reads it."""
    worker = Worker.__new__(Worker)
    worker.log = tmp_path / "worker.log"
    line = json.dumps({"event": "worker_guard.started", "worker": "wörker@test"}) + "\n"
    raw = (line + line.replace("w\\u00f6rker", "wörker")).encode()
    for written in range(len(raw)):
        worker.log.write_bytes(raw[:written])
        assert len(worker.events("started")) == (written >= len(line))
    worker.log.write_bytes(raw)
    assert [event["worker"] for event in worker.events()] == ["wörker@test"] * 2


def test_make_help_lists_the_targets() -> None:
    """All that a newcomer can run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    names = {line.split()[0] for line in listed.splitlines()}
    assert {"demo", "test", "lint", "type", "check", "bench", "docs", "clean"} <= names
