"""``celery guard audit`` as operators use it: what it prints, its exit codes, what it reads."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from celery import Celery

from tests.harness.app import CONFIGURATION, UNGUARDED
from tests.harness.audit_app import ENTRY, PERIODIC
from tests.harness.audit_django_settings import CONFIGURATION as DJANGO
from tests.harness.audit_django_settings import DATABASE
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.workers import ROOT
from worker_guard.commands.audit.rules import IDS

SCHEMA = json.loads((ROOT / "docs/reference/audit.schema.json").read_text())

#: Finds something at each level; a time limit beside late acknowledgement is what hurts on Redis.
TROUBLED: dict[str, Any] = {
    "broker_url": "redis://:hunter2@127.0.0.1:1/0",
    "result_backend": "redis://:hunter2@127.0.0.1:1/1",
    "result_expires": 0,
    "task_acks_late": True,
    "task_time_limit": 7200,
    "worker_max_memory_per_child": 200,
    "worker_guard_dry_run": True,
    "worker_guard_child_memory_limit": "400MB",
    "beat_schedule": {
        "report [of/all]": {
            "task": "harness.add",
            "schedule": 60,
            "options": {"expires": 30, "task_id": "fixed"},
        }
    },
}

#: What a lifetime of a minute gets besides.
PREFETCH = {("prefetch-outlasts-expires", "worker_prefetch_multiplier"): "note"}


def environment(conf: dict[str, Any], **environ: str) -> dict[str, str]:
    """An environment for the harness's app with this configuration."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    kept |= {CONFIGURATION: json.dumps(conf), "PYTHONPATH": str(ROOT)}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | environ


def audit(
    *options: str, app: str = "tests.harness.app", conf: Any = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run it, in a pipe."""
    command = [sys.executable, "-m", "celery", "-A", app, "guard", "audit", *options]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(conf or {}, **environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def findings(**arguments: Any) -> dict[tuple[str, str], str]:
    """The level of each finding, by its id and subject; all that it prints fits the schema."""
    done = audit("--json", **arguments)
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    assert sum(report["counts"].values()) == len(report["findings"])
    return {(one["id"], one["subject"]): one["level"] for one in report["findings"]}


# -- what it prints, and how it ends -------------------------------------------------------


def test_celerys_defaults_are_fine() -> None:
    """An app with the guard and nothing else: no findings, exit code 0."""
    done = audit()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"No findings; {len(IDS)} rules on ")
    assert not findings()


@pytest.mark.parametrize(
    ("options", "environ", "code"),
    [
        ((), {UNGUARDED: "1"}, 0),
        (("--fail-on", "note"), {UNGUARDED: "1"}, 1),
        (("--fail-on", "note"), {}, 0),
        ((), {ENTRY: '{"expires": 0.2}'}, 1),
        (("--fail-on", "error"), {ENTRY: '{"expires": 0.2}'}, 0),
        (("--fail-on", "error"), {ENTRY: '{"expires": -30}'}, 1),
        (("--fail-on", "fatal"), {}, 2),
        (("--loud",), {}, 2),
        (("more",), {}, 2),
    ],
    ids=[
        *("note", "fail-on-note", "nothing", "warning"),
        *("fail-on-error", "error", "no-level", "no-option", "no-argument"),
    ],
)
def test_exit_codes(options: tuple[str, ...], environ: dict[str, str], code: int) -> None:
    """1 from the level on that --fail-on names, a warning by default; 2 for wrong usage."""
    done = audit(*options, app="tests.harness.audit_app", **environ)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_no_app() -> None:
    """Without an app Celery makes one up, of which nothing is worth an audit."""
    command = [sys.executable, "-m", "celery", "guard", "audit"]
    done = subprocess.run(
        command, cwd="/", env=environment({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "There is no app to audit. Name it: celery -A proj guard audit\n"


def test_an_app_that_does_not_load() -> None:
    """One line that says what its modules raise."""
    done = audit(conf={"imports": ["tests.harness.no_such_module"]})
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("The app can't be loaded: ModuleNotFoundError: No module named")


def test_no_password_is_shown() -> None:
    """Not of a server's URL, nor of one that stands where it does not belong."""
    url = "amqp://me:hunter2@example.org:5672//"
    entry = {"task": "harness.add", "schedule": 60, "options": {"expires": 60, "task_id": url}}
    conf = {**TROUBLED, "worker_guard_interval": url, "beat_schedule": {f"to {url}": entry}}
    for options in ((), ("--json",)):
        done = audit(*options, conf=conf)
        assert "worker_guard_interval" in done.stdout
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_json_is_all_there_is_on_stdout() -> None:
    """What the app prints while it loads goes to stderr; so does what could not be read."""
    done = audit("--json", app="tests.harness.audit_app", **{PERIODIC: "1"})
    assert "finalized" in done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    assert report["checked"] == {"rules": len(IDS), "beat_entries": 1, "tasks": 9}


def screen(columns: int, *options: str, **environ: str) -> list[str]:
    """The lines that it writes to a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "celery", *options, "-A", "tests.harness.app"]
    written = b""
    with subprocess.Popen(
        [*command, "guard", "audit"],
        cwd=ROOT,
        env=environment(TROUBLED, TERM="xterm-256color", **environ),
        stdout=slave,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(slave)
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
        assert process.wait(60) == 1
    os.close(master)
    return written.decode().splitlines()


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal(columns: int) -> None:
    """No line is wider than the terminal, and names are as they are written, brackets too."""
    lines = screen(columns, NO_COLOR="1")
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert "Beat entry report [of/all]" in text
    for rule in ("memory-limit-unit", "acks-late-without-reject", "guard-changes-nothing"):
        assert rule in text


def test_colours() -> None:
    """A terminal gets them, unless it or the caller says no; a pipe gets none."""
    assert any("\x1b[" in line for line in screen(80))
    assert not any("\x1b[" in line for line in screen(80, NO_COLOR="1"))
    assert not any("\x1b[" in line for line in screen(80, "--no-color"))
    assert "\x1b[" not in audit(conf=TROUBLED).stdout


# -- what it reads -------------------------------------------------------------------------


def test_what_a_troubled_configuration_gets() -> None:
    """Each finding at its level, from a real app."""
    levels = {rule: level for (rule, _), level in findings(conf=TROUBLED).items()}
    assert levels == {
        "expires-shorter-than-interval": "warning",
        "fixed-task-id": "error",
        "acks-late-without-reject": "warning",
        "memory-limit-unit": "error",
        "memory-limit-beside-guard": "warning",
        "result-expires-never": "warning",
        "visibility-timeout-short": "warning",
        "prefetch-outlasts-expires": "note",
        "guard-changes-nothing": "note",
    }


def test_malformed_settings() -> None:
    """Each is named, and the rest is audited as ever."""
    conf = {"worker_prefetch_multiplier": "x", "result_expires": "1 day", "task_acks_late": True}
    assert findings(conf={**conf, "beat_schedule": {"x": 5}}) == {
        ("entry-not-loadable", "Beat entry x"): "error",
        ("setting-not-readable", "result_expires"): "error",
        ("setting-not-readable", "worker_prefetch_multiplier"): "error",
        ("acks-late-without-reject", "task_acks_late"): "warning",
    }


def test_settings_under_a_namespace() -> None:
    """As Django projects have them."""
    app = "tests.harness.django_style_app"
    conf = {"task_acks_late": True, "worker_guard_intervall": 3}
    assert findings(app=app, conf=conf) == {
        ("acks-late-without-reject", "task_acks_late"): "warning",
        ("guard-settings-rejected", "worker_guard settings"): "error",
    }
    assert "change   CELERY_TASK_REJECT_ON_WORKER_LOST = True\n" in audit(app=app, conf=conf).stdout


def test_the_line_to_change_in_a_django_project(tmp_path: Path) -> None:
    """As its settings have it, and where a task is, as Django's applications have those."""
    entry = {"expires": 3600, "entry": {"schedule": {"crontab": "*/10"}}}
    conf = {"task_acks_late": True, "beat_scheduler": "celery.beat:PersistentScheduler"}
    environ = {DATABASE: str(tmp_path / "none"), DJANGO: json.dumps(conf), ENTRY: json.dumps(entry)}
    module = "tests.harness.audit_django_app"
    done = audit(app=module, **environ)
    assert 'CELERY_BEAT_SCHEDULE["entry"]["options"]["expires"] = 600\n' in done.stdout
    assert "schedule <crontab: */10 * * * * (m/h/dM/MY/d)>, interval 10 min," in done.stdout
    assert "CELERY_TASK_REJECT_ON_WORKER_LOST = True\n" in done.stdout
    conf = {"beat_scheduler": "django", "task_reject_on_worker_lost": True}
    environ |= {DJANGO: json.dumps(conf), ENTRY: json.dumps({"time_limit": 9, "expire_seconds": 1})}
    done = audit(app=module, **environ)
    assert "CELERY_TASK_ACKS_LATE = True" in done.stdout
    assert "@shared_task(time_limit=…)" in done.stdout


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"expires": {"at": -60}}, {"expires-absolute": "error"}),
        ({"expires": {"at": 60}}, {"expires-absolute": "warning"}),
        ({"expires": {"timedelta": 3600}}, {"expires-not-a-time": "error"}),
        (
            {"expires": {"at": 60, "naive": True}},
            {"expires-absolute": "warning", "expires-naive": "warning"},
        ),
    ],
    ids=["past", "ahead", "timedelta", "naive"],
)
def test_what_was_computed_at_import(entry: dict[str, Any], expected: dict[str, str]) -> None:
    """An ``expires`` that is an object, as the app's module made it."""
    environ = {ENTRY: json.dumps(entry), "TZ": "XXX-3"}
    found = findings(app="tests.harness.audit_app", **environ)
    assert {rule: level for (rule, _), level in found.items()} == expected


def test_entries_that_are_added_when_the_app_is_ready() -> None:
    """``add_periodic_task`` in a handler of ``on_after_finalize``."""
    assert findings(app="tests.harness.audit_app", **{PERIODIC: "1"}) == {
        ("expires-shorter-than-interval", "Beat entry late"): "warning",
        **PREFETCH,
    }


@pytest.mark.parametrize(("limit", "small"), [(20_000, True), (400_000, False)])
def test_a_newborn_childs_size_is_told_from_here(limit: int, small: bool) -> None:
    """The same limits as in the experiment with a worker."""
    found = findings(conf={"worker_max_memory_per_child": limit})
    assert found == (
        {("memory-limit-below-newborn", "worker_max_memory_per_child"): "error"} if small else {}
    )


# -- schedules in stores -------------------------------------------------------------------


@pytest.fixture
def redbeat_conf(redis_server: RedisServer) -> dict[str, Any]:
    """A schedule of redbeat with a good entry, a bad one, and one that is switched off."""
    from redbeat import RedBeatSchedulerEntry
    from redbeat.schedules import rrule

    url = redis_server.url(3)
    conf: dict[str, Any] = {
        "beat_scheduler": "redbeat.RedBeatScheduler",
        "redbeat_redis_url": url,
        "redbeat_redis_options": {"retry_period": -1},
        "broker_url": "memory://",
    }
    app = Celery("redbeat", set_as_current=False)
    app.conf.update(conf)
    hourly = rrule("HOURLY", app=app)
    for name, expires, enabled in (("good", 3600, True), ("bad", 60, True), ("off", 60, False)):
        RedBeatSchedulerEntry(
            name, "harness.add", hourly, app=app, options={"expires": expires}, enabled=enabled
        ).save()
    app.redbeat_redis.wrapped_connection.close()
    return conf


def test_redbeat(redis_server: RedisServer, redbeat_conf: dict[str, Any]) -> None:
    """Its entries are judged like others, and Redis is only read from."""
    before, calls = redis_server.client.info("keyspace"), redis_server.calls()
    assert findings(conf=redbeat_conf) == {
        ("expires-shorter-than-interval", "Beat entry bad"): "warning",
        **PREFETCH,
    }
    after = redis_server.calls()
    sent = {name for name in after if after[name] > calls.get(name, 0)}
    assert sent - {"hello", "client", "select", "info"} == {"zrange", "hget"}
    assert redis_server.client.info("keyspace") == before


def test_redbeat_that_no_setting_names(
    redis_server: RedisServer, redbeat_conf: dict[str, Any]
) -> None:
    """Beat's command line can: it falls back on the broker. Where that is down nothing is said."""
    conf = {"broker_url": redbeat_conf["redbeat_redis_url"]}
    found = findings(conf=conf)
    assert ("expires-shorter-than-interval", "Beat entry bad") in found
    assert found["stored-entries-not-run", "entries of redbeat"] == "note"
    # With another one chosen its entries are those of nobody.
    found = findings(conf={**conf, "beat_scheduler": "celery.beat:PersistentScheduler"})
    assert found == {("stored-entries-not-run", "entries of redbeat"): "note"}
    redis_server.kill()
    done = audit(conf=conf)
    assert (done.returncode, done.stderr) == (0, "")


def test_redbeat_that_cannot_be_reached(redbeat_conf: dict[str, Any]) -> None:
    """The rest is audited; one line says what is missing, and the exit code that it is."""
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = audit("--json", conf={**redbeat_conf, "redbeat_redis_url": url})
    assert done.returncode == 69
    (line,) = done.stderr.splitlines()
    assert line.startswith("This schedule could not be read, and was not audited: redbeat: ")
    assert "hunter2" not in done.stdout + done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    assert len(report["unread"]) == 1


def test_redbeat_that_hangs(redis_server: RedisServer, redbeat_conf: dict[str, Any]) -> None:
    """It is given up after some seconds, whatever redbeat's own retries."""
    redis_server.pause()
    try:
        assert audit(conf=redbeat_conf).returncode == 69
    finally:
        redis_server.resume()


def test_findings_outweigh_what_could_not_be_read(redbeat_conf: dict[str, Any]) -> None:
    """What was found is found."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    conf = {**redbeat_conf, "redbeat_redis_url": url, "task_acks_late": True}
    assert audit(conf=conf).returncode == 1
    assert audit("--fail-on", "error", conf=conf).returncode == 69


def test_django_celery_beat(tmp_path: Path) -> None:
    """The database's entries are judged like others, and the database stays as it is."""
    database = tmp_path / "db.sqlite3"
    environ = {"WORKER_GUARD_TEST_DATABASE": str(database)}
    module = "tests.harness.audit_django_app"
    made = [sys.executable, "-m", module]
    subprocess.run(made, cwd=ROOT, env=environment({}, **environ), check=True, timeout=60)
    before = database.read_bytes()
    short = audit("--json", app=module, **environ).stdout
    schedules = {one["evidence"].get("schedule") for one in json.loads(short)["findings"]}
    # Its crontabs print themselves on three lines.
    assert "<crontab: 0 4 * * * (m/h/d/dM/MY), UTC>" in schedules
    assert findings(app=module, **environ) == {
        ("expires-shorter-than-interval", "Beat entry short"): "warning",
        ("expires-under-a-day", "Beat entry celery.backend_cleanup"): "note",
        **PREFETCH,
    }
    assert database.read_bytes() == before


def test_a_database_that_cannot_be_read(tmp_path: Path) -> None:
    """One line, and exit code 69."""
    environ = {"WORKER_GUARD_TEST_DATABASE": str(tmp_path / "none" / "db.sqlite3")}
    done = audit(app="tests.harness.audit_django_app", **environ)
    assert done.returncode == 69
    (line,) = done.stderr.splitlines()
    assert "not audited: django-celery-beat: unable to open database file" in line
