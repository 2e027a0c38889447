"""A cleanup of a real Redis."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.harness.redis_server import RedisServer
from tests.harness.results import (
    DAY_S,
    all_keys_kept,
    check_filled,
    cleanup,
    cluster_node,
    encoded,
    fill,
    policy,
    run,
)
from worker_guard.lease import Lease, LeaseLostError
from worker_guard.results.cleanup_run import (
    DRY_RUN,
    FULL_SPEED,
    IN_WORKER,
    REAL,
    CleanupCounts,
    CleanupImpossibleError,
    CleanupRun,
    Pace,
    check_server,
    server_time,
)
from worker_guard.scheduler import run_to_end
from worker_guard.values.key_patterns import Glob

#: redis-py 5 has an error of its own for it.
FULL = pytest.raises(redis.ResponseError, match="maxmemory")
SMALL = Pace(page_keys=10, read_bytes=1000, largest_bytes=10_000_000)
WRITES = {"set", "unlink", "del", "pexpire", "expire", "lpush", "ltrim", "setex", "getdel"}


@pytest.mark.parametrize("pace", [FULL_SPEED, IN_WORKER, SMALL])
def test_each_kind_of_key_meets_its_fate(client: Any, pace: Pace) -> None:
    """And a second cleanup finds nothing to do."""
    expected = fill(client)
    assert cleanup(client, pace=pace) == expected
    check_filled(client)
    again = cleanup(client, pace=pace)
    assert (again.expired_results_deleted, again.task_states_cleaned) == (0, 0)
    assert again.keys_unreadable == expected.keys_unreadable
    check_filled(client)


def test_a_dry_run_writes_nothing_and_counts_what_the_real_one_does(
    server: RedisServer, client: Any
) -> None:
    """By the server's own count of commands."""
    fill(client)
    client.config_resetstat()
    with all_keys_kept(client):
        would = cleanup(client, actor=DRY_RUN)
    assert not WRITES & server.calls().keys()
    assert cleanup(client) == would


def test_other_databases_are_untouched(server: RedisServer, client: Any) -> None:
    """A cleanup knows of one database."""
    with redis.Redis(port=server.port, db=3) as other:
        fill(other)
        fill(client)
        with all_keys_kept(other):
            cleanup(client)


def test_counts_are_exact_over_many_pages(client: Any) -> None:
    """Of 5,000 keys in an order of the server's own."""
    with client.pipeline(transaction=False) as pipe:
        for i in range(5000):
            age_s = 2 * DAY_S if i % 2 else 0
            pipe.set(f"celery-task-meta-{uuid.uuid4()}", encoded(age_s=age_s))
        for i in range(500):
            pipe.set(f"app-state:{i}", "1")
        pipe.execute()
    assert cleanup(client, pace=SMALL) == CleanupCounts(
        keys_scanned=5500, expired_results_deleted=2500, task_states_cleaned=500
    )
    assert client.dbsize() == 3000


def test_a_user_who_may_not_touch_others_keys_can_clean(server: RedisServer, client: Any) -> None:
    """Only keys that are the guard's to clean are given to the script."""
    with client.pipeline(transaction=False) as pipe:
        for i in range(500):
            pipe.set(f"celery-task-meta-{i}", encoded())
            pipe.set(f"others-{i}", "1")
        pipe.execute()
    own = ("~celery-task-meta-*", "~celery-taskset-meta-*", "~chord-unlock-*")
    client.execute_command("ACL", "SETUSER", "limited", "on", ">x", "+@all", *own)
    try:
        with redis.Redis(port=server.port, username="limited", password="x") as limited:
            assert cleanup(limited, pace=SMALL) == CleanupCounts(
                keys_scanned=1000, expired_results_deleted=500
            )
    finally:
        client.execute_command("ACL", "DELUSER", "limited")


def test_a_pattern_with_many_wildcards_holds_nobody_up(client: Any) -> None:
    """On keys that nearly fit it: each would cost seconds if every way to place them were tried."""
    for i in range(20):
        client.set("app" + "a" * 300 + str(i), "1")
    client.set("app" + "a" * 300 + "z", "1")
    rules = policy(state_patterns=(Glob("app*a*a*a*a*a*z"),))
    assert cleanup(client, rules) == CleanupCounts(keys_scanned=21, task_states_cleaned=1)


def test_prefixes_with_pattern_characters_are_taken_as_they_stand(client: Any) -> None:
    """A global prefix such as ``a[b]*`` fits itself and nothing else."""
    rules = policy(task_prefix=b"a[b]*celery-task-meta-", state_prefixes=(b"a[b]*celery-taskset-",))
    client.set("a[b]*celery-task-meta-1", encoded())
    client.set("ab-celery-task-meta-1", encoded())
    assert cleanup(client, rules, actor=DRY_RUN).expired_results_deleted == 1


def test_the_server_may_forget_the_script(client: Any) -> None:
    """SCRIPT FLUSH in mid-cleanup costs one more call."""
    expected = fill(client)
    one = CleanupRun(client, policy(), actor=REAL, pace=SMALL)
    while not one.finished:
        client.script_flush()
        one.step()
    assert one.counts == expected
    check_filled(client)


@pytest.mark.parametrize(
    "refused", ["eval|evalsha", "getrange", "pttl", "@scripting", "strlen", "lindex", "scan"]
)
def test_a_command_that_is_refused_is_named_and_nothing_is_changed(
    client: Any, refused: str
) -> None:
    """By the check at first, or else by the cleanup; what may not be read is not guessed at."""
    fill(client)
    client.execute_command("ACL", "SETUSER", "no", "reset", "on", "nopass", "~*", "+@all")
    for command in refused.split("|"):
        client.execute_command("ACL", "SETUSER", "no", f"-{command}")
    port = client.connection_pool.connection_kwargs["port"]
    named = "evalsha|eval" if refused == "@scripting" else refused
    refusal = pytest.raises(redis.exceptions.NoPermissionError, match=rf"'({named})'")
    with redis.Redis(port=port, username="no", password="x") as limited, all_keys_kept(client):
        if refused in ("strlen", "lindex", "scan"):
            with refusal:
                run(CleanupRun(limited, policy(), actor=REAL, pace=FULL_SPEED))
        else:
            with refusal:
                check_server(limited, "worker-guard-")


def test_a_server_without_scripts_names_the_command() -> None:
    """As some hosted ones are."""
    with RedisServer("--rename-command", "EVAL", "") as server:
        refused = pytest.raises(redis.ResponseError, match=r"unknown command .EVAL")
        with refused:
            check_server(server.client, "worker-guard-")


def test_a_read_only_replica_is_left_alone(server: RedisServer, client: Any) -> None:
    """The error says so; a dry run works there."""
    fill(client)
    with RedisServer("--replicaof", "127.0.0.1", str(server.port)) as replica:
        from tests.harness.workers import wait_for

        wait_for(lambda: replica.client.dbsize() == client.dbsize(), "the replica to be filled")
        with all_keys_kept(client):
            one = CleanupRun(replica.client, policy(), actor=REAL, pace=FULL_SPEED)
            with pytest.raises(redis.ResponseError, match=r"READONLY|read only"):
                run(one)
            assert cleanup(replica.client, actor=DRY_RUN).expired_results_deleted > 0


def test_out_of_memory_a_cleanup_makes_room(client: Any) -> None:
    """A script needs no command that a full server refuses."""
    expected = fill(client)
    with out_of_memory(client):
        assert cleanup(client) == expected
    check_filled(client)


@contextlib.contextmanager
def out_of_memory(client: Any) -> Iterator[None]:
    """A server that is full."""
    try:
        client.config_set("maxmemory", 1)
        with FULL:
            client.set("x", "y")
        yield
    finally:
        client.config_set("maxmemory", 0)


def test_a_cluster_is_refused_before_anything_is_changed() -> None:
    """With a line that says why."""
    with cluster_node() as node:
        refused = pytest.raises(CleanupImpossibleError, match="keys of one slot")
        with refused:
            check_server(node.client, "worker-guard-")
        # The same as a cluster of one shard.
        node.client.cluster("addslots", *range(16384))
        with refused:
            check_server(node.client, "worker-guard-")


def test_the_server_killed_in_mid_cleanup_is_an_error(client: Any) -> None:
    """And the cleanup begins anew, without harm, once it is back."""
    with RedisServer() as mortal:
        fill(mortal.client)
        one = CleanupRun(mortal.client, policy(), actor=REAL, pace=SMALL)
        one.step()
        mortal.kill()
        with pytest.raises(redis.ConnectionError):
            run(one)
        mortal.start()
        expected = fill(mortal.client)
        assert cleanup(mortal.client) == expected


def test_a_cleanup_that_is_begun_again_does_no_harm(client: Any) -> None:
    """What the first half did and what the second whole did add up.

    What stays where it is, both can see: which, depends on the server's own order of its keys.
    """
    expected = fill(client)
    first = CleanupRun(client, policy(), actor=REAL, pace=SMALL)
    first.step()
    whole = first.counts + cleanup(client)
    seen_twice = {"keys_scanned": 0, "keys_unreadable": 0, "keys_with_longer_ttl": 0}
    assert replace(whole, **seen_twice) == replace(expected, **seen_twice)
    check_filled(client)


def test_now_is_by_whichever_clock_is_behind(client: Any) -> None:
    """A clock that is fast makes nothing look old."""
    seconds, _ = client.time()
    assert server_time(client, lambda: 1e12) == pytest.approx(seconds, abs=60)
    assert server_time(client, lambda: 5.0) == 5.0


def race(server: RedisServer, rewrites: int) -> None:
    """Clean while writers write young results over old ones, each key once.

    A young result that is gone was deleted by a check that was no longer true. Half of the old ones
    are as no release of Celery writes them.
    """
    client = server.client
    client.flushall()
    ids = [str(uuid.uuid4()) for _ in range(rewrites)]
    with client.pipeline(transaction=False) as pipe:
        for task_id in ids:
            foreign = task_id[0] in "01234567"
            value = encoded("foreign") if foreign else encoded(task_id)
            pipe.set(f"celery-task-meta-{task_id}", value)
            pipe.set(f"celery-task-meta-{task_id}-old", value)
        pipe.execute()

    under_way = threading.Event()

    def write(mine: list[str]) -> None:
        under_way.wait()
        with redis.Redis(port=server.port) as own:
            for start in range(0, len(mine), 20):
                with own.pipeline(transaction=False) as pipe:
                    for task_id in mine[start : start + 20]:
                        pipe.set(f"celery-task-meta-{task_id}", encoded(task_id, age_s=0))
                    pipe.execute()

    # As daemons: they wait for ever where the cleanup below fails.
    writers = [threading.Thread(target=write, args=(ids[i::2],), daemon=True) for i in range(2)]
    for writer in writers:
        writer.start()
    with redis.Redis(port=server.port) as own:
        first = CleanupRun(own, policy(), actor=REAL, pace=SMALL)
        # Nobody writes before it is at work, or there might be no race.
        while not first.counts.expired_results_deleted:
            first.step()
        under_way.set()
        run(first)
        while any(writer.is_alive() for writer in writers):
            cleanup(own, pace=SMALL)
    values = client.mget([f"celery-task-meta-{task_id}" for task_id in ids])
    assert client.dbsize() == len(ids)
    young = [encoded(task_id, age_s=0) for task_id in ids]
    assert sum(value != written for value, written in zip(values, young, strict=True)) == 0


def test_nothing_fresh_is_deleted_in_a_race(server: RedisServer) -> None:
    """A result that is written between the check and the delete stays."""
    race(server, rewrites=3_000)


@pytest.mark.slow
def test_nothing_fresh_is_deleted_in_100_000_races(server: RedisServer) -> None:
    """The same, for as long as it takes."""
    race(server, rewrites=100_000)


def took(lease: Lease) -> bool:
    """Whether it was there to be taken."""
    run_to_end(lease.take())
    return lease.held


def test_one_of_two_hundred_takes_the_lease(client: Any) -> None:
    """Started at once; and when it is given back, the next one."""
    port = client.connection_pool.connection_kwargs["port"]
    barrier = threading.Barrier(200)
    leases: list[Lease] = []

    def contend(number: int) -> None:
        own = redis.Redis(port=port, socket_timeout=60, socket_connect_timeout=60)
        own.ping()
        lease = Lease(own, "worker-guard-results-lease", f"w{number}", monotonic=lambda: 0.0)
        leases.append(lease)
        barrier.wait()
        run_to_end(lease.take())

    threads = [threading.Thread(target=contend, args=(i,)) for i in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (holder,) = [lease for lease in leases if lease.held]
    others = [lease for lease in leases if lease is not holder]
    run_to_end(others[0].release())
    assert not took(others[1])
    run_to_end(holder.release())
    assert took(others[2])


def test_a_lease_that_was_taken_away_is_noticed(client: Any) -> None:
    """And what its new holder has is not given back for it."""
    clock = [0.0]
    lease = Lease(client, "lease", "a", monotonic=lambda: clock[0])
    assert took(lease)
    run_to_end(lease.renew())
    client.set("lease", "b")
    run_to_end(lease.renew())
    clock[0] = 30.0
    with pytest.raises(LeaseLostError):
        run_to_end(lease.renew())
    assert not lease.held
    run_to_end(lease.release())
    assert client.get("lease") == b"b"


def test_a_lease_is_kept_for_as_long_as_it_is_renewed(client: Any) -> None:
    """And one that ran out meanwhile is taken again where nobody else took it."""
    clock = [0.0]
    lease = Lease(client, "lease", "a", monotonic=lambda: clock[0])
    assert took(lease)
    client.pexpire("lease", 5_000)
    clock[0] = 30.0
    run_to_end(lease.renew())
    assert client.pttl("lease") > 50_000
    client.delete("lease")
    clock[0] = 60.0
    run_to_end(lease.renew())
    assert lease.held
    assert client.get("lease") == b"a"
    assert client.pttl("lease") > 50_000
