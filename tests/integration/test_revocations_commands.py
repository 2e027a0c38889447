"""``celery guard revoke``, ``unrevoke``, ``revocations``: real workers, servers that are away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.harness.guard_command import guard
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.schemas import faults
from tests.harness.terminal import celery, environ_of, terminal
from tests.harness.workers import ROOT, bare_worker, fleet, wait_for
from worker_guard.commands import revocations
from worker_guard.commands.revocation_list import SORTED
from worker_guard.commands.revocations import CHUNK
from worker_guard.revoked.record import Made, Record
from worker_guard.values.source import Stamp, Way

WEEK_S = 7 * 86_400.0

ID = "5dc72b2f-0b5e-4a2f-a0a3-3a4d2d9c6f6e"

NOBODY = (
    "No worker answered within 1 s; guarded workers read the record when they start or reconnect\n"
)


def conf(server: RedisServer, **values: Any) -> dict[str, Any]:
    return {"broker_url": server.url(0), "result_backend": server.url(1), **values}


def away() -> str:
    """The URL of a Redis that is not there."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture
def record(server: RedisServer, client: Any) -> Record:
    """The record in the result backend of :func:`conf`, which is empty."""
    import redis

    return Record(redis.Redis.from_url(server.url(1)), "", lifetime_s=WEEK_S)


def on_record(record: Record) -> dict[Any, Way]:
    return {each.target: each.way for page in record.pages() for each in page}


def listed(server: RedisServer, **values: Any) -> list[dict[str, Any]]:
    """What ``revocations --json`` prints, as the schema has it."""
    said = guard(conf(server, **values), "revocations", "--json")
    assert (said.returncode, said.stderr) == (0, "")
    document: list[dict[str, Any]] = json.loads(said.stdout)
    assert faults("revocations.schema.json", document) == []
    return document


# -- revoke ------------------------------------------------------------------------------------


def test_a_revoke_with_no_worker_up_is_on_record(server: RedisServer, record: Record) -> None:
    """With until when; an id that is given twice counts once."""
    said = guard(conf(server), "revoke", "a", "b", "a")
    assert (said.returncode, said.stderr) == (0, "")
    first, second = said.stdout.splitlines(keepends=True)
    assert re.fullmatch(r"On record: 2 tasks, until \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", first)
    assert second == NOBODY
    assert on_record(record) == {"a": Way.REVOKE, "b": Way.REVOKE}


def test_the_lifetime_is_the_settings(server: RedisServer, record: Record) -> None:
    """None: for ever. And a command acts, whatever the workers do in their dry run."""
    values = {"worker_guard_revocation_lifetime": None, "worker_guard_dry_run": True}
    said = guard(conf(server, **values), "revoke", "--terminate", "a")
    assert "On record: 1 task, for ever\n" in said.stdout
    (entry,) = listed(server, **values)
    assert (entry["until"], entry["way"]) == (None, "terminate")


def test_every_worker_hears_a_revoke(tmp_path: Path, server: RedisServer, record: Record) -> None:
    """Guarded or not, and one that never heard of the guard; and none runs the task."""
    with fleet(tmp_path, **conf(server)) as workers:
        guarded = workers.start("g", "--pool=solo")
        unguarded = workers.start("u", "--pool=solo", guarded=False)
        with bare_worker("bare@test", server.url(0)):
            wait_for(lambda: workers.app.control.ping(destination=["bare@test"], timeout=1), "bare")
            said = guard(conf(server), "revoke", ID)
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.endswith("Heard by 3 workers: bare@test, g@test, u@test\n")
        assert guarded.revoked() == unguarded.revoked() == {ID}
        assert on_record(record) == {ID: Way.REVOKE}
        workers.send("push", server.url(0), "ran", task_id=ID)
        workers.succeeds("add", 1, 2)
        wait_for(
            lambda: any(
                f"Discarding revoked task: harness.push[{ID}]" in w.text() for w in workers.workers
            ),
            "the task to be discarded",
        )
    assert server.client.exists("ran") == 0


def test_a_task_that_runs_is_terminated(
    tmp_path: Path, server: RedisServer, record: Record
) -> None:
    """And the worker that had it is named."""
    with fleet(tmp_path, **conf(server)) as workers:
        guarded = workers.start("g")
        workers.send("sleep", 600, task_id=ID)
        wait_for(lambda: guarded.ask("active"), "the task to run")
        said = guard(conf(server), "revoke", "--terminate", ID, "another")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.endswith(f"Heard by 1 worker: g@test\ng@test terminates: {ID}\n")
        wait_for(lambda: not guarded.ask("active"), "the task to end")
    assert on_record(record) == {ID: Way.TERMINATE, "another": Way.TERMINATE}


def test_more_ids_than_one_message_holds(
    tmp_path: Path, server: RedisServer, record: Record
) -> None:
    """Each is on record and at the worker."""
    ids = [f"{i:036d}" for i in range(4 * CHUNK + 1)]
    with fleet(tmp_path, **conf(server)) as workers:
        unguarded = workers.start("u", "--pool=solo", guarded=False)
        said = guard(conf(server), "revoke", *ids)
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.startswith(f"On record: {len(ids)} tasks, ")
        assert said.stdout.endswith("Heard by 1 worker: u@test\n")
        assert unguarded.revoked() == set(ids) == set(on_record(record))


@pytest.mark.parametrize("command", ["revoke", "unrevoke"])
@pytest.mark.parametrize(
    ("ids", "line"), [((), "Missing argument"), (("a", " "), "an id is empty")]
)
def test_wrong_usage(
    server: RedisServer, record: Record, command: str, ids: tuple[str, ...], line: str
) -> None:
    """Nothing is done."""
    said = guard(conf(server), command, *ids)
    assert (said.returncode, said.stdout) == (2, "")
    assert line in said.stderr
    assert on_record(record) == {}


def test_a_bad_setting_of_the_guard_is_one_line(server: RedisServer, record: Record) -> None:
    """Nothing is done."""
    for command in (("revoke", "a"), ("unrevoke", "a"), ("revocations",)):
        said = guard(conf(server, worker_guard_revocation_lifetime="long"), *command)
        assert (said.returncode, said.stdout) == (2, "")
        assert said.stderr.startswith("ImproperlyConfigured: worker_guard_revocation_lifetime")
        assert len(said.stderr.splitlines()) == 1
    assert on_record(record) == {}


# -- unrevoke ----------------------------------------------------------------------------------


def test_what_is_taken_back_is_no_more_on_record(server: RedisServer, record: Record) -> None:
    """Also an id that nobody revoked: an older revoke of it that comes late does not stand."""
    record.put({"a": Made(Way.REVOKE, 60.0), "b": Made(Way.REVOKE, 60.0)})
    said = guard(conf(server), "unrevoke", "a", "nobody")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"Taken back: 2 tasks, 1 of them on record\n{NOBODY}"
    assert on_record(record) == {"b": Way.REVOKE}
    assert record.put({"nobody": Made(Way.REVOKE, 60.0)}) == {"nobody"}
    # A new one stands.
    assert guard(conf(server), "revoke", "a").returncode == 0
    assert set(on_record(record)) == {"a", "b"}


def test_what_a_worker_recorded_late_is_taken_back_too(
    monkeypatch: pytest.MonkeyPatch, server: RedisServer, record: Record
) -> None:
    """It was busy, and heard of the revoke after that was taken back, and of this last."""

    def tell(_command: Any, _arguments: Any, *, on_record: bool) -> dict[str, list[str]]:
        assert on_record
        record.put({"a": Made(Way.REVOKE, 0.0)})
        return {"late@test": ["taken back: 1"]}

    monkeypatch.setattr(revocations._RevocationCommand, "tell", tell)
    app = Celery("late", set_as_current=False)
    app.conf.update(conf(server))
    assert revocations.run_unrevoke(app, ["a"], timeout_s=1.0) == 0
    assert on_record(record) == {}


def test_a_worker_without_a_guard_is_named(
    tmp_path: Path, server: RedisServer, record: Record
) -> None:
    """It keeps the id."""
    record.put({ID: Made(Way.REVOKE, 60.0)})
    with fleet(tmp_path, **conf(server)), bare_worker("bare@test", server.url(0)):
        from celery import Celery

        app = Celery("client", broker=server.url(0), set_as_current=False)
        wait_for(lambda: app.control.ping(destination=["bare@test"], timeout=1), "the worker")
        said = guard(conf(server), "unrevoke", ID)
        app.close()
    assert said.returncode == 1
    assert said.stdout == "Taken back: 1 task, 1 of them on record\n"
    assert said.stderr == (
        "bare@test: it has no guard, so it keeps what it holds until it is restarted\n"
    )
    assert on_record(record) == {}


# -- servers that are away ---------------------------------------------------------------------


def test_the_broker_is_away(server: RedisServer, record: Record) -> None:
    """The record is written; the line says which server it is."""
    url = away()
    for command, first in (("revoke", "On record: 1 task, "), ("unrevoke", "Taken back: 1 task, ")):
        said = guard(conf(server, broker_url=url), command, ID)
        assert said.returncode == 69
        assert said.stdout.startswith(first)
        assert said.stdout.count("\n") == 1
        assert said.stderr == (
            f"The broker can't be reached: {url} (broker_url): Connection refused; guarded workers "
            "read the record when they start or reconnect\n"
        )
        assert set(on_record(record)) == ({ID} if command == "revoke" else set())


def test_the_result_backend_is_away(tmp_path: Path, server: RedisServer, record: Record) -> None:
    """A revoke reaches the workers all the same. Nothing is taken back."""
    url = away()
    with fleet(tmp_path, **conf(server)) as workers:
        unguarded = workers.start("u", "--pool=solo", guarded=False)
        said = guard(conf(server, result_backend=url), "revoke", ID)
        assert (said.returncode, said.stdout) == (69, "Heard by 1 worker: u@test\n")
        line = f"The result backend can't be reached: {url} (result_backend): Connection refused; "
        assert said.stderr == f"{line}0 of 1 task is on record\n"
        assert unguarded.revoked() == {ID}
        said = guard(conf(server, result_backend=url), "unrevoke", ID)
        assert (said.returncode, said.stdout) == (69, "")
        assert said.stderr == (
            f"{line}0 of 1 task is taken back on record, and no worker was told\n"
        )
        assert "guard_unrevoke" not in unguarded.text()


def test_a_result_backend_that_refuses(server: RedisServer, record: Record) -> None:
    """As a user that may not write: that is trouble."""
    server.client.execute_command("ACL", "SETUSER", "reader", "on", ">p", "~*", "+@read", "+time")
    url = f"redis://reader:p@127.0.0.1:{server.port}/1"
    for command in ("revoke", "unrevoke"):
        said = guard(conf(server, result_backend=url), command, ID)
        # No worker is there either to hear the revoke.
        assert said.returncode == {"revoke": 69, "unrevoke": 1}[command]
        assert said.stderr.startswith("The result backend refuses: redis://reader:**@127.0.0.1:")
        assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        ("rpc://", "the result backend RPCBackend is not a key-value store"),
        (
            "cache+memory://",
            "the keys of the result backend CacheBackend can't be listed; with Redis they can",
        ),
    ],
)
def test_a_result_backend_without_a_record(
    tmp_path: Path, server: RedisServer, client: Any, backend: str, why: str
) -> None:
    """What the workers hear is all there is: 69 if none does."""
    values = conf(server, result_backend=backend)
    revoke, unrevoke, show = (("revoke", ID), ("unrevoke", ID), ("revocations",))
    told = f"Not on record: {why}; only the workers that hear it now hold it\n"
    nobody = "No worker answered within 1 s; --timeout waits longer\n"
    said = guard(values, *revoke)
    assert (said.returncode, said.stdout, said.stderr) == (69, "", told + nobody)
    said = guard(values, *unrevoke)
    assert (said.returncode, said.stdout) == (69, "")
    assert said.stderr == (
        f"There is no record: {why}; a worker that misses this, or has no guard, can bring a "
        f"revocation back\n{nobody}"
    )
    said = guard(values, *show)
    assert (said.returncode, said.stdout, said.stderr) == (2, "", f"{why}\n")
    with fleet(tmp_path, **conf(server)) as workers:
        workers.start("u", "--pool=solo", guarded=False)
        said = guard(values, *revoke)
        assert (said.returncode, said.stdout) == (0, "Heard by 1 worker: u@test\n")
        assert said.stderr == told


def test_no_app_is_named(server: RedisServer, record: Record) -> None:
    """The line says how to name one."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "guard", "revoke", ID],
        cwd="/",
        env=environ_of({}, PYTHONPATH=str(ROOT), CELERY_BROKER_URL=away()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert done.stderr.endswith("; no app is named: celery -A proj guard revoke\n")


# -- revocations -------------------------------------------------------------------------------


def test_the_table_and_the_json(server: RedisServer, record: Record) -> None:
    """The newest first; stamps as header=value; no id steers the terminal."""
    record.put(
        {
            ID: Made(Way.REVOKE, 86_400.0),
            Stamp("team", "x"): Made(Way.STAMPS, 60.0),
            Stamp("shard", 7): Made(Way.STAMPS, 50.0),
            "\x1b[2J\n=é": Made(Way.APPLICATION, 10.0),
            "ended": Made(Way.REVOKE, WEEK_S + 1),
            "back": Made(Way.REVOKE, 20.0),
        }
    )
    record.take_back(["back"])
    said = guard(conf(server), "revocations")
    assert (said.returncode, said.stderr) == (0, "")
    head, *lines = said.stdout.splitlines()
    assert head == "since (UTC)       until (UTC)       way          task or stamp"
    minute = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    rows = [re.fullmatch(rf"({minute})  ({minute})  (\w+) +(.*)", line) for line in lines]
    assert [(row[3], row[4]) for row in rows if row] == [
        ("application", r"\x1b[2J\n=é"),
        ("stamps", "shard=7"),
        ("stamps", "team=x"),
        ("revoke", ID),
    ]
    document = listed(server)
    assert [(e["id"], e["header"], e["stamp"], e["way"]) for e in document] == [
        ("\x1b[2J\n=é", None, None, "application"),
        (None, "shard", 7, "stamps"),
        (None, "team", "x", "stamps"),
        (ID, None, None, "revoke"),
    ]
    assert all(re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{6}Z", e["since"]) for e in document)
    (entry,) = (e for page in record.pages() for e in page if e.target == ID)
    assert document[-1]["until"] > document[-1]["since"]
    assert lines[-1].startswith(document[-1]["since"][:16].replace("T", " "))
    assert entry.until == pytest.approx(entry.since + WEEK_S, abs=0.001)


def test_nothing_is_on_record(server: RedisServer, record: Record) -> None:
    """An answer as well."""
    said = guard(conf(server), "revocations")
    assert said.stdout == "No revocation is on record in this result backend.\n"
    assert (said.returncode, said.stderr) == (0, "")
    assert listed(server) == []


@pytest.mark.parametrize(
    ("columns", "titles", "left_out"),
    [
        (83, "since (UTC)       until (UTC)       way        task or stamp", ""),
        (80, "since (UTC)      until (UTC)      way       task or stamp", ""),
        (70, "since (UTC)       way        task or stamp", "until (UTC)"),
        (40, "since (UTC)      task or stamp", "until (UTC), way"),
    ],
)
def test_a_narrow_terminal(
    server: RedisServer, record: Record, columns: int, titles: str, left_out: str
) -> None:
    """The table leaves out what has no room, and says so."""
    record.put({ID: Made(Way.TERMINATE, 1.0)})
    command = celery("guard", "revocations")
    with terminal(*command, columns=columns, environ=environ_of(conf(server))) as screen:
        assert screen.ended() == (0, "")
        lines = screen.text().splitlines()
    assert lines[0] == titles
    wrapped = columns < 16 + 1 + len(ID)
    assert "".join(lines[1:3]).endswith(ID) if wrapped else lines[1].endswith(f" {ID}")
    if left_out:
        assert f"Not shown: {left_out}; --json" in " ".join(lines[-2:])


def fill(record: Record, total: int) -> None:
    for start in range(0, total, 10_000):
        ids = (f"{i:036d}" for i in range(start, min(total, start + 10_000)))
        record.put(dict.fromkeys(ids, Made(Way.REVOKE, 1.0)))


def test_many_do_not_fill_the_memory(tmp_path: Path, server: RedisServer, record: Record) -> None:
    """100,000 take little more than 1,000, and none is there twice."""
    peaks = {}
    for total in (1000, 100_000):
        fill(record, total)
        out = tmp_path / "out"
        with out.open("wb") as stdout:
            process = subprocess.Popen(
                celery("guard", "revocations", "--json"),
                cwd=ROOT,
                env=environ_of(conf(server)),
                stdout=stdout,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert len({entry["id"] for entry in json.loads(out.read_text())}) == total
        assert out.read_text().count("\n,{") == total - 1
        peaks[total] = usage.ru_maxrss
    # In KiB. The ids alone, as Python's strings, would take as much again.
    assert peaks[100_000] - peaks[1000] < 30_000, peaks
    (head, *lines) = guard(conf(server), "revocations").stdout.splitlines()
    assert head.startswith("since")
    assert len(lines) == 100_000


def test_a_reader_that_goes_away(server: RedisServer, record: Record) -> None:
    """As ``head``: it is no failure of the result backend."""
    fill(record, 10 * SORTED)
    process = subprocess.Popen(
        celery("guard", "revocations"),
        cwd=ROOT,
        env=environ_of(conf(server)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


def test_a_server_that_goes_away_meanwhile(record: Record, tmp_path: Path) -> None:
    """What was read is printed; the exit code and a line on stderr say that it is not all."""
    with RedisServer() as own:
        fill(Record(own.client, "", lifetime_s=WEEK_S), 30 * SORTED)
        process = subprocess.Popen(
            celery("guard", "revocations", "--json"),
            cwd=ROOT,
            env=environ_of({"broker_url": "memory://", "result_backend": own.url()}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        head = process.stdout.readline()
        own.kill()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 69
    assert err.startswith(f"The result backend can't be reached: {own.url()} (result_backend): ")
    with pytest.raises(json.JSONDecodeError):
        json.loads(head + out)
