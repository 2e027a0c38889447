"""A cleanup by a user who may not do everything, and one whose connection ends, on a real Redis."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.harness.fronts import AnswerLost
from tests.harness.guard_command import RESULTS, guard
from tests.harness.redis_server import RedisServer
from tests.harness.results import record
from tests.harness.workers import Worker, fleet, wait_for
from worker_guard.results.backend import ResultBackend, open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup, open_history, open_lease
from worker_guard.results.cleanup_run import CleanupCounts, CleanupImpossibleError
from worker_guard.scheduler import run_to_end
from worker_guard.settings import read_settings

DAY_S = 86_400
#: Celery 5.3 puts an underscore behind any prefix, later releases behind one that ends in no sign.
GLOBAL, PREFIX = "shop", "shop_"


def result(task_id: str, age_s: float, **more: Any) -> bytes:
    """A result of this age, now."""
    done = datetime.now(timezone.utc) - timedelta(seconds=age_s)
    return json.dumps({**record(task_id), "date_done": done.isoformat(), **more}).encode()


def fill(client: Any, prefix: str = "", *, old: int = 40, forgotten: int = 10) -> None:
    """Old results, and groups without a TTL."""
    for i in range(old):
        client.set(f"{prefix}celery-task-meta-{i}", result(str(i), 2 * DAY_S))
    for i in range(forgotten):
        client.set(f"{prefix}celery-taskset-meta-{i}", b'{"result": []}')


def user(client: Any, *commands: str, keys: str = "~*") -> str:
    """A user of the server who may do this, as the first part of a URL."""
    client.execute_command(
        "ACL", "SETUSER", "u", "reset", "on", ">x", "allchannels", keys, *commands
    )
    return "u:x@"


def application(port: int, user: str = "", **values: Any) -> Celery:
    app = Celery("test", set_as_current=False, broker="memory://")
    app.conf.update(result_backend=f"redis://{user}127.0.0.1:{port}/0", **values)
    return app


def opened(app: Celery) -> ResultBackend:
    return open_result_backend(app, read_settings(app.conf), timeout_s=10.0)


def cleanup(backend: ResultBackend, **values: Any) -> FullSpeedCleanup:
    return FullSpeedCleanup(
        backend, max_age_s=None, dry_run=False, by="test", trigger="cli", **values
    )


# -- a TTL of a result's own ---------------------------------------------------------------


def test_a_result_with_a_ttl_of_its_own_is_left_alone(server: RedisServer, client: Any) -> None:
    """Stored by Celery for 3 s, and given 30 days by the application: not deleted after 10 s."""
    app = application(server.port, user(client, "+@all"), result_expires=3)
    for name in ("kept", "plain"):
        app.backend.store_result(name, 1, "SUCCESS")
        client.set(f"celery-task-meta-{name}", result(name, 10), keepttl=True)
    client.expire("celery-task-meta-kept", 30 * DAY_S)
    client.persist("celery-task-meta-plain")
    job = cleanup(opened(app))
    job.run()
    assert job.counts == CleanupCounts(2, expired_results_deleted=1, keys_with_longer_ttl=1)
    assert client.ttl("celery-task-meta-kept") > 29 * DAY_S
    by_hand = cleanup(opened(app), ignore_ttl=True)
    by_hand.run()
    assert by_hand.counts == CleanupCounts(1, expired_results_deleted=1)
    assert not client.dbsize()


def test_an_age_below_result_expires_is_what_it_was_set_for(
    server: RedisServer, client: Any
) -> None:
    """What has the TTL that Celery gave it goes at the age; what the application keeps, stays."""
    app = application(
        server.port,
        user(client, "+@all"),
        result_expires=DAY_S,
        worker_guard_results_max_age=3600,
    )
    for name in ("celerys", "longer", "shorter", "young"):
        app.backend.store_result(name, 1, "SUCCESS")
    for name in ("celerys", "longer", "shorter"):
        client.set(f"celery-task-meta-{name}", result(name, 7200), keepttl=True)
    # Two hours of the day are over.
    client.expire("celery-task-meta-celerys", DAY_S - 7200)
    client.expire("celery-task-meta-longer", 30 * DAY_S)
    client.expire("celery-task-meta-shorter", 4 * 3600)
    job = cleanup(opened(app))
    job.run()
    assert job.counts == CleanupCounts(4, expired_results_deleted=1, keys_with_longer_ttl=2)
    assert not client.exists("celery-task-meta-celerys")


def test_a_ttl_that_is_given_in_mid_cleanup_keeps_a_result(
    server: RedisServer, client: Any
) -> None:
    """Check and delete are one step: each moment of a cleanup is tried, one after the other."""
    key = "celery-task-meta-1"
    for moment in range(50):
        client.flushall()
        client.set(key, result("1", 2 * DAY_S))
        app = application(server.port, user(client, "+@all"), result_expires=DAY_S)
        job = cleanup(opened(app))
        there: list[bool] = []

        def after_a_step(_scanned: int, moment: int = moment, there: list[bool] = there) -> None:
            there.append(bool(client.exists(key)))
            if len(there) == moment:
                client.expire(key, 30 * DAY_S)

        job.run(after_a_step)
        if len(there) < moment:
            return
        # It stays where it was there to be given a TTL.
        kept = moment > 0 and there[moment - 1]
        assert client.exists(key) == kept
        assert job.counts.expired_results_deleted == (not kept)
    raise AssertionError("the cleanup has no end")


def test_the_command_says_how_many_were_left_alone(server: RedisServer, client: Any) -> None:
    """In its text, its JSON and the history; --ignore-ttl deletes them."""
    client.set("celery-task-meta-1", result("1", 2 * DAY_S), ex=30 * DAY_S)
    client.set("celery-task-meta-2", result("2", 2 * DAY_S))
    conf = {"broker_url": "memory://", "result_backend": server.url()}
    text = guard(conf, "cleanup", *RESULTS, "--dry-run").stdout
    assert "1 results would be deleted" in text
    assert "1 old results have a longer TTL of their own, and were left alone" in text
    told = json.loads(guard(conf, "cleanup", *RESULTS, "--json").stdout)
    assert (
        told["expired_results_deleted"],
        told["targets"]["results"]["keys_with_longer_ttl"],
    ) == (1, 1)
    told = json.loads(
        guard(conf, "cleanup", *RESULTS, "--json", "--ignore-ttl", "--dry-run").stdout
    )
    assert (
        told["expired_results_deleted"],
        told["targets"]["results"]["keys_with_longer_ttl"],
    ) == (1, 0)
    assert "longer TTL" not in guard(conf, "cleanup", *RESULTS, "--ignore-ttl").stdout
    assert not client.exists("celery-task-meta-1")
    entries = json.loads(guard(conf, "history", "--json").stdout)
    assert [entry["keys_with_longer_ttl"] for entry in entries] == [0, 1]


# -- a user with a prefix ------------------------------------------------------------------


@pytest.mark.parametrize("info", ["+info", "-info"])
def test_a_user_of_one_prefix_needs_no_other_key(
    server: RedisServer, client: Any, info: str
) -> None:
    """Neither the cleanup, nor its probe for a cluster, its lease, its history."""
    fill(client, PREFIX)
    fill(client, "other:")
    name = user(client, "+@all", info, keys=f"~{PREFIX}*")
    app = application(
        server.port, name, result_backend_transport_options={"global_keyprefix": GLOBAL}
    )
    backend = opened(app)
    lease = open_lease(backend, "test", dry_run=False)
    run_to_end(lease.take())
    assert lease.held
    job = cleanup(backend)
    job.run()
    run_to_end(lease.renew())
    assert job.counts == CleanupCounts(101, expired_results_deleted=40, task_states_cleaned=10)
    assert job.refused is None
    run_to_end(lease.release())
    outcome = job.outcome()
    assert outcome is not None
    history = open_history(backend, dry_run=False)
    history.add(outcome)
    history.ran(time.time())
    assert history.last_run(time.time())
    known = (PREFIX.encode(), b"other:")
    assert all(key.startswith(known) for key in client.scan_iter(count=1000))


def test_a_cluster_is_told_by_a_user_of_one_prefix_too() -> None:
    """Its two keys lie in two slots, whatever the prefix."""
    from tests.harness.results import cluster_node

    with cluster_node() as node:
        name = user(node.client, "+@all", "-info", keys=f"~{PREFIX}*")
        app = application(
            node.port, name, result_backend_transport_options={"global_keyprefix": GLOBAL}
        )
        with pytest.raises(CleanupImpossibleError, match="Cluster"):
            cleanup(opened(app)).run()


# -- a change that is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "counts"),
    [
        ("pexpire", CleanupCounts(50, expired_results_deleted=40)),
        ("unlink", CleanupCounts(50, task_states_cleaned=10)),
    ],
)
def test_what_is_refused_costs_no_count_of_what_is_not(
    server: RedisServer,
    client: Any,
    refused: str,
    counts: CleanupCounts,
) -> None:
    """The cleanup goes on to its end, and says once what it may not do."""
    fill(client)
    job = cleanup(opened(application(server.port, user(client, "+@all", f"-{refused}"))))
    job.run()
    assert job.counts == counts
    assert isinstance(job.refused, redis.exceptions.NoPermissionError)
    assert f"'{refused}'" in str(job.refused)
    assert client.dbsize() == 50 - counts.expired_results_deleted
    outcome = job.outcome()
    assert outcome is not None
    assert outcome.complete


def test_the_command_shows_what_was_done_and_what_was_refused(
    server: RedisServer, client: Any
) -> None:
    """With exit code 1."""
    fill(client)
    name = user(client, "+@all", "-pexpire")
    conf = {"broker_url": "memory://", "result_backend": f"redis://{name}127.0.0.1:{server.port}/0"}
    said = guard(conf, "cleanup", *RESULTS, "--json")
    assert said.returncode == 1
    told = json.loads(said.stdout)["targets"]["results"]
    assert told["expired_results_deleted"] == 40
    assert len(said.stderr.splitlines()) == 1
    assert "refuses" in said.stderr
    assert "'pexpire'" in said.stderr


def conf_of(server: RedisServer, name: str, **values: Any) -> dict[str, Any]:
    return {
        "broker_url": server.url(1),
        "result_backend": f"redis://{name}127.0.0.1:{server.port}/0",
        "result_backend_transport_options": {"global_keyprefix": GLOBAL},
        "worker_guard_interval": 0.5,
        "worker_guard_results_schedule": 3600,
        **values,
    }


def due(client: Any) -> None:
    """Let the schedule believe that the last cleanup was long ago."""
    client.set(f"{PREFIX}worker-guard-results-last-run", "1.0")


def failures(worker: Worker) -> list[dict[str, Any]]:
    return [event for event in worker.events("part_failed") if event["part"] == "results"]


def test_a_worker_of_one_prefix_cleans(server: RedisServer, client: Any, tmp_path: Path) -> None:
    """Its lease, its history, its record and the results all bear the prefix; no part fails."""
    fill(client, PREFIX)
    due(client)
    name = user(client, "+@all", "-info", keys=f"~{PREFIX}*")
    with fleet(tmp_path, **conf_of(server, name, worker_guard_alert_redis_memory=None)) as workers:
        worker = workers.start("w")
        done = wait_for(
            lambda: [e for e in worker.events("cleanup_completed") if e["trigger"] == "schedule"],
            "a cleanup",
        )
        assert [event["expired_results_deleted"] for event in done] == [40]
        worker.app.control.revoke("an-id", destination=[worker.name])
        wait_for(
            lambda: client.zscore(f"{PREFIX}worker-guard-revocations", "id:an-id"),
            f"the revocation to be recorded:\n{worker.text()}",
        )
        assert not worker.events("part_failed")
        assert worker.stop() == 0
    assert client.llen(f"{PREFIX}worker-guard-history") == 1


def test_a_worker_says_once_what_it_may_not_do(
    server: RedisServer, client: Any, tmp_path: Path
) -> None:
    """After it has counted what it did; it cleans again when the schedule says so, not before."""
    fill(client, PREFIX)
    due(client)
    name = user(client, "+@all", "-pexpire")
    # The lease is renewed by that command after 20 s; this cleanup takes less.
    with fleet(tmp_path, **conf_of(server, name)) as workers:
        worker = workers.start("w")
        (failure,) = wait_for(lambda: failures(worker), "the refusal to be told")
        assert "'pexpire'" in failure["error"]
        (event,) = [e for e in worker.events("cleanup_completed") if e["trigger"] == "schedule"]
        assert (event["expired_results_deleted"], event["task_states_cleaned"]) == (40, 0)
        before = float(client.get(f"{PREFIX}worker-guard-results-last-run"))
        assert before > 1e9
        wait_for(
            lambda: not worker.ask("guard")["consecutive_failures"]["results"],
            "the next look at the schedule",
        )
        assert float(client.get(f"{PREFIX}worker-guard-results-last-run")) == before
        assert worker.stop() == 0
        assert len(failures(worker)) == 1
        assert worker.events("stopped")[0]["expired_results_deleted"] == 40
    assert client.llen(f"{PREFIX}worker-guard-history") == 1


# -- an answer that is lost ----------------------------------------------------------------


def test_what_a_lost_answer_told_is_not_counted_twice_and_not_kept_quiet(
    server: RedisServer, client: Any
) -> None:
    """The connection ends when the server has deleted the second page: that much is not known."""
    fill(client, old=2000, forgotten=0)
    with AnswerLost(server.port, b"EVALSHA") as front:
        backend = opened(application(front.port, user(client, "+@all")))
        job = cleanup(backend)
        with pytest.raises(redis.ConnectionError, match="what this last call changed, if anything"):
            job.run()
        # What redis-py opens for an UNWATCH after that.
        backend.changer.connection_pool.disconnect()
    counted = job.counts.expired_results_deleted
    left = client.dbsize()
    # What was counted was done; a page was done that nobody counted.
    assert 0 < counted < 2000 - left
    outcome = job.outcome()
    assert outcome is not None
    assert not outcome.complete
