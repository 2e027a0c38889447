"""What the commands about revocations and the guards of the workers do together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.guard_command import guard
from tests.harness.redis_server import RedisServer
from tests.harness.workers import Fleet, Worker, fleet, wait_for
from worker_guard.commands.revocations import CHUNK

ID = "5dc72b2f-0b5e-4a2f-a0a3-3a4d2d9c6f6e"


def conf(server: RedisServer) -> dict[str, Any]:
    return {"broker_url": server.url(0), "result_backend": server.url(1)}


@pytest.fixture
def clean(server: RedisServer, client: Any) -> Any:
    """A client of an empty Redis; where a task that ran leaves its trace."""
    return client


def push(workers: Fleet, server: RedisServer, task_id: str) -> None:
    """Send a task that leaves a trace."""
    workers.send("push", server.url(0), "ran", task_id=task_id)


def discarded(worker: Worker, task_id: str) -> bool:
    return f"Discarding revoked task: harness.push[{task_id}]" in worker.text()


def ran(client: Any, *, times: int) -> None:
    wait_for(lambda: client.llen("ran") >= times, "the task to run")
    assert client.llen("ran") == times


def test_a_revoke_with_no_worker_up_holds(tmp_path: Path, server: RedisServer, clean: Any) -> None:
    """The first guarded worker that starts discards the task."""
    assert guard(conf(server), "revoke", ID).returncode == 0
    with fleet(tmp_path, **conf(server)) as workers:
        push(workers, server, ID)
        worker = workers.start("g")
        workers.succeeds("add", 1, 2)
        wait_for(lambda: discarded(worker, ID), "the task to be discarded")
    assert clean.llen("ran") == 0


def test_what_was_taken_back_with_no_worker_up_runs(
    tmp_path: Path, server: RedisServer, clean: Any
) -> None:
    """The first guarded worker that starts runs it."""
    assert guard(conf(server), "revoke", ID).returncode == 0
    assert guard(conf(server), "unrevoke", ID).returncode == 0
    with fleet(tmp_path, **conf(server)) as workers:
        push(workers, server, ID)
        workers.start("g")
        ran(clean, times=1)


def test_what_was_taken_back_leaves_every_worker_and_does_not_come_back(
    tmp_path: Path, server: RedisServer, clean: Any
) -> None:
    """Not by a restart with a statedb, and not by the mingle with one that missed it."""
    options = ("--pool=solo", "--statedb", str(tmp_path / "state"))
    with fleet(tmp_path, **conf(server)) as workers:
        one, two = workers.start("one", *options), workers.start("two", "--pool=solo")
        assert guard(conf(server), "revoke", ID, "another").returncode == 0
        assert one.revoked() == two.revoked() == {ID, "another"}
        said = guard(conf(server), "unrevoke", ID, "nobody")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout == (
            "Taken back: 2 tasks, 1 of them on record\n"
            "Taken out of the sets of 2 workers: one@test (1), two@test (1)\n"
        )
        assert one.revoked() == two.revoked() == {"another"}
        assert one.stop() == 0
        assert workers.start("one", *options).revoked() == {"another"}
        push(workers, server, ID)
        ran(clean, times=1)
    listed = json.loads(guard(conf(server), "revocations", "--json").stdout)
    assert [entry["id"] for entry in listed] == ["another"]


def test_what_was_taken_back_can_be_revoked_again(
    tmp_path: Path, server: RedisServer, clean: Any
) -> None:
    """By the command, and by Celery's own."""
    with fleet(tmp_path, **conf(server)) as workers:
        worker = workers.start("g", "--pool=solo")
        for again in range(2):
            assert guard(conf(server), "revoke", ID).returncode == 0
            assert guard(conf(server), "unrevoke", ID).returncode == 0
            assert worker.revoked() == set(), again
        worker.ask("revoke", task_id=[ID])
        assert worker.revoked() == {ID}
        wait_for(
            lambda: json.loads(guard(conf(server), "revocations", "--json").stdout), "the record"
        )
        push(workers, server, ID)
        wait_for(lambda: discarded(worker, ID), "the task to be discarded")
    assert clean.llen("ran") == 0


def test_a_worker_without_a_guard_keeps_it(tmp_path: Path, server: RedisServer, clean: Any) -> None:
    """And is named; the guarded one beside it drops the id."""
    with fleet(tmp_path, **conf(server)) as workers:
        guarded = workers.start("g", "--pool=solo")
        unguarded = workers.start("u", "--pool=solo", guarded=False)
        assert guard(conf(server), "revoke", ID).returncode == 0
        said = guard(conf(server), "unrevoke", ID)
        assert said.returncode == 1
        assert said.stdout.endswith("Taken out of the sets of 1 worker: g@test (1)\n")
        assert said.stderr.startswith("u@test: ")
        assert guarded.revoked() == set()
        assert unguarded.revoked() == {ID}


def test_more_ids_than_one_message_holds(tmp_path: Path, server: RedisServer, clean: Any) -> None:
    """All are taken back, and the count is that of all messages."""
    ids = [f"{i:036d}" for i in range(4 * CHUNK + 1)]
    with fleet(tmp_path, **conf(server)) as workers:
        worker = workers.start("g", "--pool=solo")
        assert guard(conf(server), "revoke", *ids).returncode == 0
        assert worker.revoked() == set(ids)
        said = guard(conf(server), "unrevoke", *ids)
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.endswith(f"Taken out of the sets of 1 worker: g@test ({len(ids)})\n")
        assert worker.revoked() == set()
