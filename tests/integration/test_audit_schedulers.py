"""What the audit says of an entry, held against what the Beat of each scheduler really sends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.harness.app import CONFIGURATION
from tests.harness.audit_django_settings import CONFIGURATION as DJANGO
from tests.harness.audit_django_settings import DATABASE, NAIVE
from tests.harness.audit_entry import ENTRY
from tests.harness.redis_server import RedisServer
from tests.harness.workers import ROOT, wait_for

DJANGO_APP, PLAIN_APP = "tests.harness.audit_django_app", "tests.harness.audit_app"

PERSISTENT = "celery.beat:PersistentScheduler"
DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
REDBEAT = "redbeat.RedBeatScheduler"

#: An entry that runs each second and is good: Beat goes on with it, whatever it says of others.
GOOD_ROW = {"name": "good", "expire_seconds": 1, "kwargs": '{"x": 1, "y": 2}'}


@dataclass
class Project:
    """An app with one Beat entry, its broker, and its database if it has one."""

    directory: Path
    redis: RedisServer
    module: str
    entry: dict[str, Any]
    conf: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    #: What the audit said, once for each schedule.
    _found: dict[tuple[str, str], dict[tuple[str, str], str]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """What the app reads."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CELERY")}
        conf = {"broker_url": self.redis.url(0), "task_default_queue": "work", **self.conf}
        kept |= {ENTRY: json.dumps(self.entry), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        kept |= {CONFIGURATION: json.dumps(conf), DJANGO: json.dumps(conf)}
        kept |= {DATABASE: str(self.database), "PYTHONDONTWRITEBYTECODE": "1"}
        return kept | self.environ

    @property
    def database(self) -> Path:
        """Where the entries of django-celery-beat are."""
        return self.directory / "db.sqlite3"

    @property
    def log(self) -> str:
        """What Beat has logged."""
        return (self.directory / "beat.log").read_text()

    def do(self, *arguments: str) -> None:
        """Have the project's app change its database."""
        command = [sys.executable, "-m", DJANGO_APP, *arguments]
        subprocess.run(command, cwd=ROOT, env=self.environment(), check=True, timeout=60)

    @contextlib.contextmanager
    def beat(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A real ``celery beat``."""
        command = [sys.executable, "-m", "celery", "-A", self.module, "beat", "--pidfile", ""]
        command += ["--loglevel", "INFO", "-s", str(self.directory / "schedule"), *options]
        with (self.directory / "beat.log").open("ab") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(), stdout=out, stderr=out
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                # How Beat ends is not what is tested; its messages are out.
                process.kill()
                process.wait(30)

    def messages(self, entry: str = "") -> list[dict[str, Any]]:
        """What is in the queue; of one entry where one is named that its messages name."""
        raw = self.redis.client.lrange("work", 0, -1)
        found = [json.loads(one) for one in reversed(raw)]
        named = [m for m in found if m["headers"].get("periodic_task_name") == entry]
        return named if entry else found

    def findings(self) -> dict[tuple[str, str], str]:
        """The level of each finding of the audit, by its rule and subject."""
        command = [sys.executable, "-m", "celery", "-A", self.module, "guard", "audit", "--json"]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)["findings"]
        return {(one["id"], one["subject"]): one["level"] for one in found}

    def of_entry(self, name: str = "entry") -> dict[str, str]:
        """The level of each finding about this entry, by its rule."""
        given = (json.dumps(self.entry), json.dumps(self.conf))
        if given not in self._found:
            self._found[given] = self.findings()
        found = self._found[given].items()
        return {rule: level for (rule, where), level in found if where == f"Beat entry {name}"}


MakeProject = Callable[..., Project]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with django-celery-beat's tables, and a good entry."""
    path = tmp_path_factory.mktemp("django") / "db.sqlite3"
    environ = {**os.environ, DATABASE: str(path), "PYTHONPATH": str(ROOT)}
    for arguments in (["migrate"], ["row", json.dumps(GOOD_ROW)]):
        command = [sys.executable, "-m", DJANGO_APP, *arguments]
        subprocess.run(command, cwd=ROOT, env=environ, check=True, timeout=60)
    return path


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer, empty_database: Path) -> MakeProject:
    """Makes a Django project with this entry in its settings."""

    def make(entry: dict[str, Any], *, naive: bool = False, **conf: Any) -> Project:
        environ = {NAIVE: "1"} if naive else {}
        made = Project(tmp_path, redis_server, DJANGO_APP, entry, conf, environ)
        shutil.copy(empty_database, made.database)
        return made

    return make


@pytest.fixture
def plain(tmp_path: Path, redis_server: RedisServer) -> MakeProject:
    """Makes an app without Django, with this entry and scheduler."""

    def make(entry: dict[str, Any], scheduler: str) -> Project:
        conf = {"beat_scheduler": scheduler, "redbeat_redis_url": redis_server.url(3)}
        return Project(tmp_path, redis_server, PLAIN_APP, {"every_s": 1, **entry}, conf)

    return make


def expires_within(messages: list[dict[str, Any]], since: datetime, seconds: float) -> bool:
    """Whether each message expires so many seconds after a moment between ``since`` and now."""
    moments = [datetime.fromisoformat(m["headers"]["expires"]) for m in messages]
    lives = timedelta(seconds=seconds)
    return all(since <= moment - lives <= datetime.now(timezone.utc) for moment in moments)


# -- django-celery-beat's DatabaseScheduler --------------------------------------------------

IGNORED = {"expires-ignored-by-scheduler": "warning"}
PILE = {"runs-pile-up": "note"}
#: What the task gets that has an expiry of its own.
PREFETCH = {("prefetch-outlasts-expires", "worker_prefetch_multiplier"): "note"}


SHORT = {"expires-shorter-than-interval": "warning"}
DROPPED = {"options-ignored-by-scheduler": "warning"}

#: Options of an entry, what the audit says of it, and after how many seconds its runs expire.
DATABASE_TAKES: list[tuple[dict[str, Any], dict[str, str], float | None]] = [
    ({"expires": 3600}, IGNORED, None),
    ({"expires": 1}, IGNORED, None),
    ({"expires": -5}, IGNORED, None),
    ({"expires": {"at": -60}}, IGNORED, None),
    ({"expires": {"at": 60}}, IGNORED, None),
    ({"expires": {"at": 60, "naive": True}}, IGNORED, None),
    ({"expires": {"timedelta": 60}}, IGNORED, None),
    ({"expires": "3600"}, IGNORED, None),
    ({"expire_seconds": 0}, IGNORED, None),
    ({"entry": {"expire_seconds": 1}}, IGNORED, None),
    ({}, PILE, None),
    ({"expire_seconds": 60}, PILE, 60),
    ({"expire_seconds": 1}, {}, 1),
    ({"expire_seconds": 1, "expires": 3600}, {}, 1),
    ({"every_s": 2, "expire_seconds": 1}, SHORT, 1),
    ({"entry": {"task": "harness.fleeting"}, "expires": 3600}, {**IGNORED, **PILE}, 30),
    ({"entry": {"task": "harness.fleeting"}}, PILE, 30),
    ({"expire_seconds": 1, "countdown": 60, "task_id": "same", "time_limit": 9}, DROPPED, 1),
    ({"expire_seconds": 1, "eta": {"at": 60}, "countdown": {"timedelta": 5}}, DROPPED, 1),
]


def test_what_the_database_scheduler_takes_as_an_expiry(project: MakeProject) -> None:
    """``expire_seconds`` among the options, or the task's own; each other option is dropped."""
    made = project({"entries": {json.dumps(entry): entry for entry, _, _ in DATABASE_TAKES}})
    names = [json.dumps(entry) for entry, _, _ in DATABASE_TAKES]
    expected = {json.dumps(entry): rules for entry, rules, _ in DATABASE_TAKES}
    assert {name: made.of_entry(name) for name in names} == expected
    since = datetime.now(timezone.utc)
    with made.beat():
        wait_for(
            lambda: all(len(made.messages(name)) >= 2 for name in names), "two runs of each entry"
        )
    for name, (_, _, expires_s) in zip(names, DATABASE_TAKES, strict=True):
        sent = made.messages(name)
        if expires_s is None:
            assert {m["headers"]["expires"] for m in sent} == {None}, name
        else:
            assert expires_within(sent, since, expires_s), name
        assert {m["headers"]["eta"] for m in sent} == {None}, name
        assert {tuple(m["headers"]["timelimit"]) for m in sent} == {(None, None)}, name
        assert len({m["headers"]["id"] for m in sent}) == len(sent), name


def test_an_expires_beside_the_options_ends_the_entry(project: MakeProject) -> None:
    """A fixed time there is the database's own field: it is what is meant."""
    made = project({"entry": {"expires": {"at": 3600}}})
    assert made.of_entry() == PILE
    with made.beat():
        wait_for(lambda: len(made.messages("entry")) >= 2, "two runs of the entry")
    assert len({m["headers"]["expires"] for m in made.messages("entry")}) == 1


DATABASE_REFUSES: dict[str, dict[str, Any]] = {
    "negative": {"expire_seconds": -1},
    "timedelta": {"expire_seconds": {"timedelta": 60}},
    "both": {"expire_seconds": 60, "entry": {"expires": {"at": 3600}}},
    "seconds-as-an-end": {"entry": {"expires": 60}},
    "unknown-key": {"entry": {"jitter": 5}},
    "no-task": {"entry": {"task": None}},
    "text": {"entry": {"schedule": "60"}},
    "datetime": {"entry": {"schedule": {"at": 60}}},
    "options": {"entry": {"options": 5}},
    "start": {"entry": {"start_time": "soon"}},
}


def test_an_entry_that_the_database_does_not_take(project: MakeProject) -> None:
    """Beat says so at its start, leaves it out, and goes on with the others."""
    made = project({"entries": DATABASE_REFUSES})
    unloadable = {"entry-not-loadable": "error"}
    found = {name: made.of_entry(name) for name in DATABASE_REFUSES}
    assert found == dict.fromkeys(DATABASE_REFUSES, unloadable)
    with made.beat():
        wait_for(lambda: len(made.messages("good")) >= 2, "two runs of the good entry")
    for name in DATABASE_REFUSES:
        assert f"Cannot add entry {name!r} to database schedule" in made.log
        assert made.messages(name) == []


def test_without_time_zones_an_aware_expires_cannot_be_saved(project: MakeProject) -> None:
    """USE_TZ = False: the entry is left out; ``expire_seconds`` is as good as ever."""
    made = project({"entry": {"expires": {"at": 3600}}}, naive=True)
    assert made.of_entry() == {"entry-not-loadable": "error"}
    with made.beat():
        wait_for(lambda: len(made.messages("good")) >= 2, "two runs of the good entry")
    assert "does not support timezone-aware datetimes when USE_TZ is False" in made.log
    assert made.messages("entry") == []
    made.entry = {"expire_seconds": 1}
    assert made.of_entry() == {}
    since = datetime.now(timezone.utc)
    with made.beat():
        wait_for(lambda: len(made.messages("entry")) >= 2, "two runs of the entry")
    assert expires_within(made.messages("entry"), since, 1)


def test_an_entry_that_is_switched_off_is_not_sent(project: MakeProject) -> None:
    """In the configuration, or in the database under the same name."""
    made = project({"expires": 3600, "entry": {"enabled": False}})
    assert made.of_entry() == {}
    with made.beat():
        wait_for(lambda: len(made.messages("good")) >= 2, "two runs of the good entry")
    assert made.messages("entry") == []
    # It is in the database now, switched off, and stays so.
    made.entry = {"expires": 3600}
    assert made.of_entry() == {}
    before = len(made.messages("good"))
    with made.beat():
        wait_for(lambda: len(made.messages("good")) >= before + 2, "two more of the good entry")
    assert made.messages("entry") == []


@pytest.mark.parametrize(
    ("every_s", "kept", "level"), [(0.5, 0, "error"), (1.5, 1, "warning")], ids=["half", "more"]
)
def test_an_interval_is_kept_in_whole_seconds(
    project: MakeProject, every_s: float, kept: int, level: str
) -> None:
    """Half a second is none, and Beat sends without a pause once it has read its database."""
    made = project({"every_s": every_s, "expire_seconds": 2})
    assert made.of_entry() == {"interval-rounded-down": level}
    with made.beat():
        wait_for(lambda: made.messages("entry"), "a run of the entry")
        made.do("read-anew")
        if not kept:
            # At two in a second it would take minutes, which is beyond the deadline.
            wait_for(lambda: made.redis.client.llen("work") > 500, "a flood of runs")
    with sqlite3.connect(made.database) as database:
        rows = database.execute(
            "SELECT every FROM django_celery_beat_periodictask AS task "
            "JOIN django_celery_beat_intervalschedule AS own ON own.id = task.interval_id "
            "WHERE task.name = 'entry'"
        ).fetchall()
    assert rows == [(kept,)]


@pytest.mark.parametrize(
    "scheduler",
    [DATABASE_SCHEDULER, "django", "tests.harness.audit_django_scheduler:Own"],
)
def test_each_name_of_the_database_scheduler(project: MakeProject, scheduler: str) -> None:
    """By its path, by its entry point, and by a class derived from it."""
    made = project({"expires": 3600}, beat_scheduler=scheduler)
    assert made.of_entry() == IGNORED
    with made.beat():
        wait_for(lambda: made.messages("entry"), "a run of the entry")
    assert made.messages("entry")[0]["headers"]["expires"] is None


def test_stored_entries_are_sent_by_their_own_scheduler_alone(project: MakeProject) -> None:
    """Where no setting names it the audit takes it that the command line does, and says so."""
    note = ("stored-entries-not-run", "entries of django-celery-beat")
    made = project({"expires": 1}, beat_scheduler=PERSISTENT)
    assert made.findings() == {note: "note", **PREFETCH}
    with made.beat():
        wait_for(lambda: len(made.messages()) >= 2, "two runs of the entry")
    assert all("periodic_task_name" not in m["headers"] for m in made.messages())
    assert all(m["headers"]["expires"] for m in made.messages())
    made.redis.client.delete("work")
    made.conf = {"beat_scheduler": None}
    rule = ("expires-ignored-by-scheduler", "Beat entry entry")
    assert made.findings() == {note: "note", rule: "warning", **PREFETCH}
    with made.beat("-S", "django"):
        wait_for(lambda: made.messages("good") and made.messages("entry"), "a run of each")
    assert made.messages("entry")[0]["headers"]["expires"] is None
    # Named, there is nothing to be said of them.
    made.conf = {"beat_scheduler": DATABASE_SCHEDULER}
    assert note not in made.findings()
    assert made.of_entry() == IGNORED


# -- Celery's own, and redbeat's -------------------------------------------------------------


OTHERS_TAKE: dict[str, tuple[dict[str, Any], dict[str, str], float | None]] = {
    "seconds": ({"expire_seconds": 60}, IGNORED, None),
    "good": ({"expires": 1}, {}, 1),
    "long": ({"expires": 60}, PILE, 60),
    "both": ({"expires": 1, "expire_seconds": 60}, {}, 1),
}


@pytest.mark.parametrize("scheduler", [PERSISTENT, REDBEAT])
def test_what_other_schedulers_take_as_an_expiry(plain: MakeProject, scheduler: str) -> None:
    """``expires``; ``expire_seconds`` becomes a property of the message that nobody reads."""
    entries = {
        name: {"every_s": 1, "headers": {"periodic_task_name": name}, **options}
        for name, (options, _, _) in OTHERS_TAKE.items()
    }
    made = plain({"entries": entries}, scheduler)
    expected = {name: rules for name, (_, rules, _) in OTHERS_TAKE.items()}
    assert {name: made.of_entry(name) for name in OTHERS_TAKE} == expected
    since = datetime.now(timezone.utc)
    with made.beat():
        wait_for(
            lambda: all(len(made.messages(name)) >= 2 for name in OTHERS_TAKE), "two runs of each"
        )
    for name, (options, _, expires_s) in OTHERS_TAKE.items():
        sent = made.messages(name)
        if expires_s is None:
            assert {m["headers"]["expires"] for m in sent} == {None}
        else:
            assert expires_within(sent, since, expires_s)
        meant = {m["properties"].get("expire_seconds") for m in sent}
        assert meant == {options.get("expire_seconds")}


@pytest.mark.parametrize("scheduler", [PERSISTENT, REDBEAT])
def test_a_fixed_id_is_sent_as_it_is(plain: MakeProject, scheduler: str) -> None:
    """By each scheduler but the database's."""
    made = plain({"expires": 1, "task_id": "same"}, scheduler)
    assert made.of_entry() == {"fixed-task-id": "warning"}
    with made.beat():
        wait_for(lambda: len(made.messages()) >= 2, "two runs of the entry")
    assert {m["headers"]["id"] for m in made.messages()} == {"same"}


@pytest.mark.parametrize(
    ("entry", "ends", "says"),
    [
        ({"entry": {"jitter": 5}}, False, "unexpected keyword argument 'jitter'"),
        ({"expires": {"timedelta": 60}}, True, "Object of type timedelta is not JSON serializable"),
    ],
    ids=["unknown-key", "not-json"],
)
def test_an_entry_that_redbeat_does_not_take(
    plain: MakeProject, entry: dict[str, Any], ends: bool, says: str
) -> None:
    """It is left out; over one that can't be stored Beat ends."""
    made = plain(entry, REDBEAT)
    assert made.of_entry() == {"entry-not-loadable": "error"}
    with made.beat() as process:
        wait_for(lambda: says in made.log, f"{says!r} in Beat's log")
        if ends:
            wait_for(lambda: process.poll() is not None, "Beat's end")
        else:
            wait_for(lambda: "Acquired lock" in made.log, "Beat to go on")
    assert made.messages() == []
