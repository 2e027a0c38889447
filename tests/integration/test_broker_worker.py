"""The broker part in real workers, and by hand: killed askers, live ones beside them."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis

from tests.harness.app import CONFIGURATION
from tests.harness.broker import (
    BINDING,
    HOUR_S,
    app_of,
    begin,
    close_all,
    contents,
    reply_list,
    run,
)
from tests.harness.guard_command import guard
from tests.harness.redis_server import RedisServer, free_port
from tests.harness.workers import ROOT, Fleet, Worker, fleet, wait_for

#: The broker and the result backend, in two databases.
BROKER, RESULTS = 0, 1

LISTS = "*.reply.celery.pidbox"

ONLY = ("--only", "broker")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Each connection ends with its test, also if an error still holds it."""
    yield
    close_all()


@pytest.fixture
def workers(tmp_path: Path, server: RedisServer, client: Any) -> Iterator[Fleet]:
    """A fleet that looks each second."""
    with fleet(tmp_path, **conf(server)) as some:
        yield some


def conf(server: RedisServer, **values: Any) -> dict[str, Any]:
    return {
        "broker_url": server.url(BROKER),
        "result_backend": server.url(RESULTS),
        "worker_guard_interval": 0.5,
        "worker_guard_broker_schedule": 1.0,
        **values,
    }


def looks(*workers: Worker) -> list[dict[str, Any]]:
    """Their cleanups of the broker."""
    return [
        event
        for worker in workers
        for event in worker.events("cleanup_completed")
        if event["target"] == "broker"
    ]


def an_hour_ago(server: RedisServer) -> None:
    """A look of a process that is gone."""
    run(begin(app_of(server.url(BROKER)), later_s=-HOUR_S))


def kill_an_asker(asked: Worker, server: RedisServer) -> str:
    """Kill ``celery inspect ping`` before a worker answers it.

    Returns the name of the list that is left.
    """
    asked.process.send_signal(signal.SIGSTOP)
    listening = redis.Redis(port=server.port)
    questions = listening.pubsub(ignore_subscribe_messages=True)
    questions.psubscribe("*celery.pidbox*")
    environ = {CONFIGURATION: json.dumps(asked.app.conf["harness"])}
    command = [sys.executable, "-m", "celery", "-A", "tests.harness.app", "inspect", "ping"]
    asker = subprocess.Popen(
        [*command, "--timeout", "60"],
        cwd=ROOT,
        env={**environ, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    question = wait_for(questions.get_message, "the asker to ask")
    asker.kill()
    asker.wait(10)
    questions.close()
    listening.close()
    asked.process.send_signal(signal.SIGCONT)
    body = json.loads(base64.b64decode(json.loads(question["data"])["body"]))
    name = f"{body['reply_to']['routing_key']}.reply.celery.pidbox"
    wait_for(lambda: server.client.exists(name), "an answer to nobody")
    return name


def test_of_three_workers_one_deletes_what_a_killed_asker_left(
    workers: Fleet, server: RedisServer
) -> None:
    """After two looks an hour apart, the first by a process that is gone; the binding stays."""
    solo = workers.start("solo", "--pool=solo", guarded=False)
    name = kill_an_asker(solo, server)
    solo.stop()
    members = {each for each in server.client.smembers(BINDING) if name.encode() in each}
    assert len(members) == 1
    an_hour_ago(server)
    three = [workers.launch(name) for name in "abc"]
    for worker in three:
        worker.ready()
    # Their mingle may leave lists of its own, which an hour from now would be orphaned.
    wait_for(lambda: not server.client.exists(name), "the list to go")
    wait_for(lambda: sum(e["broker_keys_cleaned"] for e in looks(*three)), "an event")
    status = [worker.ask("guard") for worker in three]
    for worker in three:
        worker.stop()
    assert sum(event["broker_keys_cleaned"] for event in looks(*three)) == 1
    assert {(e["trigger"], e["level"], e["dry_run"]) for e in looks(*three)} == {
        ("schedule", "info", False)
    }
    assert all(worker.events("started")[0]["parts"]["broker"] == "on" for worker in three)
    assert not [event for worker in three for event in worker.events("part_failed")]
    assert sum(each["totals"]["broker_keys_cleaned"] for each in status) == 1
    assert all(each["broker"] is not None for each in status)
    assert members <= server.client.smembers(BINDING)
    (entry,) = [
        entry
        for entry in json.loads(guard(conf(server), "history", "--json").stdout)
        if entry["target"] == "broker"
    ]
    assert (entry["broker_keys_cleaned"], entry["complete"]) == (1, True)


def test_an_asker_that_waits_gets_its_answer(workers: Fleet, server: RedisServer) -> None:
    """Its worker hangs through hours of looks; another asker of the same time was killed."""
    one = workers.start("w")
    one.process.send_signal(signal.SIGSTOP)
    answers: list[Any] = []

    def ask() -> None:
        with app_of(server.url(BROKER)) as asker:
            answers.extend(asker.control.broadcast("ping", reply=True, limit=1, timeout=60))

    before = server.client.smembers(BINDING)
    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: server.client.smembers(BINDING) - before, "the asker to ask")
    killed = reply_list(server.client)
    app = app_of(server.url(BROKER))
    deleted = [run(begin(app, later_s=hours * HOUR_S)).deleted for hours in (-1, 0, 1)]
    one.process.send_signal(signal.SIGCONT)
    thread.join()
    assert answers == [{one.name: {"ok": "pong"}}]
    assert sum(deleted) >= 1
    assert not server.client.exists(killed)


def test_a_dry_run_worker_writes_nothing(workers: Fleet, server: RedisServer) -> None:
    """It logs what it would delete; neither a lease nor a note."""
    name = reply_list(server.client)
    an_hour_ago(server)
    own = {k: v for k, v in contents(server.client).items() if b"worker-guard" in k}
    one = workers.start("w", "--guard-dry-run")
    wait_for(lambda: len(looks(one)) >= 2, "two looks")
    one.stop()
    assert {(e["broker_keys_cleaned"], e["dry_run"]) for e in looks(one)} == {(1, True)}
    after = contents(server.client)
    assert {k: v for k, v in after.items() if b"worker-guard" in k} == own
    assert name.encode() in after


def test_messages_without_an_index_raise_an_alert(workers: Fleet, server: RedisServer) -> None:
    """An eviction took the index; when it is back, the alert is over. Nothing is touched."""
    client = server.client
    client.hset("unacked", "lost", "[]")
    one = workers.start("w")
    wait_for(lambda: one.events("alert_raised"), "the alert")
    (event,) = one.events("alert_raised")
    assert (event["alert"], event["value"], event["threshold"]) == ("unacked_without_index", 1, 0)
    shown = guard(conf(server), "status")
    assert shown.returncode == 1
    assert "1 unacknowledged message in the broker has no index" in shown.stdout
    assert "give each an index" in shown.stdout
    assert client.hgetall("unacked")[b"lost"] == b"[]"
    client.zadd("unacked_index", {"lost": 4_000_000_000})
    wait_for(lambda: one.events("alert_cleared"), "its end")


# -- by hand ---------------------------------------------------------------------------------


def test_by_hand(server: RedisServer, client: Any) -> None:
    """The first look says when the second may delete; both without any worker."""
    values = conf(server)
    names = [reply_list(client) for _ in range(3)]
    first = guard(values, "cleanup", *ONLY)
    assert (first.returncode, first.stderr) == (0, "")
    assert "0 orphaned replies deleted" in first.stdout
    assert "3 unread so far; a look from 20" in first.stdout
    an_hour_ago(server)
    client.rpop(names[0])
    dry = json.loads(guard(values, "cleanup", *ONLY, "--dry-run", "--json").stdout)
    assert (dry["broker_keys_cleaned"], dry["targets"]["broker"]["dry_run"]) == (2, True)
    second = guard(values, "cleanup", *ONLY, "--json")
    document = json.loads(second.stdout)
    schema = json.loads((ROOT / "docs/reference/cleanup.schema.json").read_text())
    for each in (dry, document):
        jsonschema.validate(each, schema)
    assert document["broker_keys_cleaned"] == 2
    target = document["targets"]["broker"]
    assert (target["trigger"], target["complete"], target["replies_unread"]) == ("cli", True, 0)
    assert set(document["targets"]) == {"broker"}
    assert client.keys(LISTS) == []
    head, row = (re.split(r" {2,}", line) for line in guard(values, "history").stdout.splitlines())
    assert row[head.index("deleted")] == "2"
    entries = json.loads(guard(values, "history", "--json").stdout)
    jsonschema.validate(
        entries, json.loads((ROOT / "docs/reference/history.schema.json").read_text())
    )
    assert [(e["target"], e["broker_keys_cleaned"], e["trigger"]) for e in entries] == [
        ("broker", 2, "cli")
    ]


def test_a_cleanup_of_everything_has_the_broker_in_it(server: RedisServer, client: Any) -> None:
    """Beside the results; nobody answers for the revoked sets."""
    reply_list(client)
    an_hour_ago(server)
    done = guard(conf(server), "cleanup", "--timeout", "0.2")
    assert done.returncode == 69
    assert "1 orphaned replies deleted" in done.stdout


def test_a_broker_that_is_not_redis(server: RedisServer) -> None:
    """Wrong usage where it was asked for by name, else one line."""
    values = conf(server, broker_url="memory://")
    only = guard(values, "cleanup", *ONLY)
    assert (only.returncode, only.stdout) == (2, "")
    assert only.stderr == "no Redis broker: it is memory\n"
    rest = guard(values, "cleanup", "--timeout", "0.1")
    assert "The broker is not cleaned: no Redis broker: it is memory" in rest.stderr


def test_a_broker_that_is_away(server: RedisServer) -> None:
    """One line that names it."""
    port = free_port()
    away = guard(conf(server, broker_url=f"redis://:pass@127.0.0.1:{port}/0"), "cleanup", *ONLY)
    assert (away.returncode, away.stdout) == (69, "")
    (line,) = away.stderr.splitlines()
    odd = guard(conf(server, broker_url="redis://h/0/x"), "cleanup", *ONLY)
    assert (odd.returncode, odd.stdout, len(odd.stderr.splitlines())) == (2, "", 1)
    assert "it is not a URL that can be read" in odd.stderr
    assert f"The broker can't be reached: redis://:**@127.0.0.1:{port}/0 (broker_url)" in line
