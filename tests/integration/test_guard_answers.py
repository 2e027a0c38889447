"""What the commands of ``celery guard`` have in common: their answers, and when they have none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import MakeFleet
from tests.harness.guard_command import RESULTS, guard
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.results import encoded
from tests.harness.terminal import celery, environ_of, terminal
from tests.harness.workers import ROOT, wait_for

REFERENCE = ROOT / "docs" / "reference"

#: What the plugin must not bring to every celery command.
HEAVY = {"rich", "redis", "psutil", "structlog", "prometheus_client"}


@pytest.fixture(scope="module")
def cleaned() -> Iterator[dict[str, Any]]:
    """The configuration of an app whose results were cleaned twice."""
    with RedisServer() as server:
        conf = {"broker_url": "memory://", "result_backend": server.url()}
        for i in range(50):
            value = encoded().replace(b'"2027-', b'"2001-')
            server.client.set(f"celery-task-meta-{i}", value)
        for _ in range(2):
            assert guard(conf, "cleanup", *RESULTS).returncode == 0
        yield conf


def valid(name: str, document: object) -> bool:
    """Whether the document is as this schema says; what is not is raised."""
    jsonschema.validate(document, json.loads((REFERENCE / f"{name}.schema.json").read_text()))
    return True


# -- history -------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "complete"), [(80, False), (140, True)])
def test_the_history_on_a_terminal(cleaned: dict[str, Any], columns: int, complete: bool) -> None:
    """One line for each cleanup; what has no room is named, and seconds are rounded."""
    command = celery("guard", "history")
    with terminal(*command, columns=columns, environ=environ_of(cleaned)) as screen:
        assert screen.ended() == (0, "")
        head, *rows = screen.text().splitlines()
    assert ("unreadable" in head.split()) is complete
    assert [row.split()[-1] for row in rows[:2]] == ["yes", "yes"]
    assert all(re.search(r" \d+\.\d\d ", row) for row in rows[:2])
    assert "50" in rows[1].split()
    said = ["Not shown: by, scanned, unreadable, longer TTL; --json has them."]
    assert rows[2:] == ([] if complete else said)


def test_the_history_in_a_pipe(cleaned: dict[str, Any]) -> None:
    """All of it, however wide."""
    head, *rows = guard(cleaned, "history").stdout.splitlines()
    assert {"by", "unreadable", "longer"} <= set(head.split())
    assert len(rows) == 2


def test_the_json_of_cleanups(cleaned: dict[str, Any]) -> None:
    """It is as the schemas say, which know each field."""
    history = json.loads(guard(cleaned, "history", "--json").stdout)
    assert len(history) >= 2
    assert valid("history", history)
    dry = json.loads(guard(cleaned, "cleanup", *RESULTS, "--dry-run", "--json").stdout)
    assert valid("cleanup", dry)
    purging = ("cleanup", *RESULTS, "--dry-run", "--purge-queues", "--json")
    assert valid("cleanup", json.loads(guard(cleaned, *purging).stdout))
    with pytest.raises(jsonschema.ValidationError):
        valid("cleanup", {**dry, "more": 1})
    with pytest.raises(jsonschema.ValidationError):
        valid("history", [{**history[0], "complete": "yes"}])


# -- no app, no room -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"), [("status", 69), ("history", 2), ("cleanup --only results", 2)], ids=str
)
def test_no_app_is_named(tmp_path: Path, command: str, code: int) -> None:
    """The line of trouble says how to name one; with an app it does not."""
    broker = ("-b", f"redis://127.0.0.1:{free_port()}/0")
    done = subprocess.run(
        [sys.executable, "-m", "celery", *broker, "guard", *command.split()],
        cwd=tmp_path,
        env=environ_of({}, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"; no app is named: celery -A proj guard {command.split(' ', 1)[0]}")
    assert done.returncode == code
    named = guard({"broker_url": broker[1]}, *command.split())
    assert "celery -A proj" not in named.stderr
    assert named.returncode == code


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit",),
        ("audit", "--json"),
        ("history",),
        ("history", "--json"),
        ("cleanup", *RESULTS, "--dry-run"),
    ],
    ids=" ".join,
)
def test_stdout_that_is_full(cleaned: dict[str, Any], arguments: tuple[str, ...]) -> None:
    """One line on stderr, and exit code 1."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            celery("guard", *arguments),
            cwd=ROOT,
            env=environ_of(cleaned),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr == "The answer can't be written: No space left on device\n"
    assert done.returncode == 1


def test_no_line_ends_in_blanks(cleaned: dict[str, Any]) -> None:
    """In a pipe."""
    for arguments in (("audit",), ("history",), ("cleanup", *RESULTS, "--dry-run")):
        lines = guard({**cleaned, "task_acks_late": True}, *arguments).stdout.splitlines()
        assert lines
        assert [line for line in lines if line != line.rstrip()] == []


# -- alerts, and what the plugin brings along ------------------------------------------------


def test_status_shows_an_active_alert(make_fleet: MakeFleet) -> None:
    """Of a real worker; and the exit code says that something is the matter."""
    with RedisServer() as results:
        fleet = make_fleet(result_backend=results.url(), worker_guard_revoked_grace=3.0)
        fleet.expire(*(f"expired-{n}" for n in range(15)))
        worker = fleet.start("w", "--without-mingle")
        wait_for(lambda: worker.ask("guard")["revoked"]["expired"] == 15, "the ids to expire")
        # Nothing is cleared until the result backend answers, so that the alert stays.
        results.kill()
        wait_for(lambda: worker.ask("guard")["alerts"], "the alert")
        # The answer of one that is named ends the wait.
        patiently = ("--destination", worker.name, "--timeout", "60")
        done = guard(fleet.app.conf["harness"], "status", *patiently)
    assert "the guard will not clear 15 ids, the threshold is 10" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [("--version",), ("-b", "memory://", "inspect", "ping")])
def test_the_plugin_is_light(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Every celery command loads it; what only the guard's own commands need is not loaded."""
    done = subprocess.run(
        [sys.executable, "-v", "-m", "celery", *arguments],
        cwd=tmp_path,
        env=environ_of({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    loaded = set(re.findall(r"^import '([^']+)'", done.stderr, re.MULTILINE))
    assert "worker_guard.cli" in loaded
    assert HEAVY & loaded == set()
