"""A cleanup of a real Redis, by each of the strategies that a server may allow."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.harness.fronts import UndeclaredKeysRefused
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
from worker_guard.results.cleanup_run import (
    STRATEGIES,
    CleanupImpossibleError,
    CleanupRun,
    refuse_cluster,
    server_time,
)
from worker_guard.results.lease import Lease, LeaseLostError
from worker_guard.results.strategy import DRY_RUN, FULL_SPEED, IN_WORKER, REAL, CleanupCounts, Pace
from worker_guard.scheduler import run_to_end
from worker_guard.values.key_patterns import Glob

#: redis-py 5 has an error of its own for it.
FULL = pytest.raises(redis.ResponseError, match="maxmemory")
SMALL = Pace(page_keys=10, budget_s=0.0)
WRITES = {"set", "unlink", "del", "pexpire", "expire", "lpush", "ltrim", "setex", "getdel"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pace", [FULL_SPEED, IN_WORKER, SMALL])
def test_each_kind_of_key_meets_its_fate(client: Any, strategy: str, pace: Pace) -> None:
    """And a second cleanup finds nothing to do."""
    expected = fill(client)
    assert cleanup(client, strategy=strategy, pace=pace) == expected
    check_filled(client)
    again = cleanup(client, strategy=strategy, pace=pace)
    assert (again.expired_results_deleted, again.task_states_cleaned) == (0, 0)
    assert again.keys_unreadable == expected.keys_unreadable
    check_filled(client)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dry_run_writes_nothing_and_counts_what_the_real_one_does(
    server: RedisServer, client: Any, strategy: str
) -> None:
    """By the server's own count of commands."""
    fill(client)
    client.config_resetstat()
    with all_keys_kept(client):
        would = cleanup(client, strategy=strategy, actor=DRY_RUN)
    assert not WRITES & server.calls().keys()
    assert cleanup(client, strategy=strategy) == would


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_databases_are_untouched(server: RedisServer, client: Any, strategy: str) -> None:
    """A cleanup knows of one database."""
    with redis.Redis(port=server.port, db=3) as other:
        fill(other)
        fill(client)
        with all_keys_kept(other):
            cleanup(client, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_are_exact_over_many_pages(client: Any, strategy: str) -> None:
    """Of 5,000 keys in an order of the server's own."""
    with client.pipeline(transaction=False) as pipe:
        for i in range(5000):
            age_s = 2 * DAY_S if i % 2 else 0
            pipe.set(f"celery-task-meta-{uuid.uuid4()}", encoded(age_s=age_s))
        for i in range(500):
            pipe.set(f"app-state:{i}", "1")
        pipe.execute()
    assert cleanup(
        client, strategy=strategy, pace=Pace(page_keys=100, budget_s=0.001)
    ) == CleanupCounts(keys_scanned=5500, expired_results_deleted=2500, task_states_cleaned=500)
    assert client.dbsize() == 3000


def test_a_user_who_may_not_touch_others_keys_is_cleaned_by_the_fastest_strategy(
    server: RedisServer, client: Any
) -> None:
    """Keys that a slice didn't get to are no reason to be refused."""
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pattern_with_many_wildcards_holds_nobody_up(client: Any, strategy: str) -> None:
    """On keys that nearly fit it: each would cost seconds if every strategy to place the wildcards
    were tried, and one call looks at several keys before it looks at its clock."""
    for i in range(20):
        client.set("app" + "a" * 300 + str(i), "1")
    client.set("app" + "a" * 300 + "z", "1")
    rules = policy(state_patterns=(Glob("app*a*a*a*a*a*z"),))
    assert cleanup(client, rules, strategy=strategy) == CleanupCounts(
        keys_scanned=21, task_states_cleaned=1
    )


def test_prefixes_with_pattern_characters_are_taken_as_they_stand(client: Any) -> None:
    """A global prefix such as ``a[b]*`` fits itself and nothing else."""
    rules = policy(task_prefix=b"a[b]*celery-task-meta-", state_prefixes=(b"a[b]*celery-taskset-",))
    client.set("a[b]*celery-task-meta-1", encoded())
    client.set("ab-celery-task-meta-1", encoded())
    for strategy in reversed(STRATEGIES):
        assert cleanup(client, rules, strategy=strategy, actor=DRY_RUN).expired_results_deleted == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_server_may_forget_the_script(client: Any, strategy: str) -> None:
    """SCRIPT FLUSH in mid-cleanup costs one more call."""
    expected = fill(client)
    one = CleanupRun(client, policy(), actor=REAL, pace=SMALL, first_strategy=strategy)
    while not one.finished:
        client.script_flush()
        one.step()
    assert one.counts == expected
    check_filled(client)


def test_undeclared_keys_refused_the_page_script_is_taken(client: Any) -> None:
    """By itself, and it misses nothing."""
    expected = fill(client)
    server_port = client.connection_pool.connection_kwargs["port"]
    with UndeclaredKeysRefused(server_port) as fussy, redis.Redis(port=fussy.port) as front:
        one = CleanupRun(front, policy(), actor=REAL, pace=FULL_SPEED)
        assert run(one) == expected
        assert (one.strategy, fussy.refused) == ("page-script", 1)
    check_filled(client)


def test_scripts_refused_watch_is_taken(client: Any) -> None:
    """By itself, under an ACL without scripts."""
    expected = fill(client)
    port = client.connection_pool.connection_kwargs["port"]
    client.acl_setuser(
        "plain", enabled=True, nopass=True, keys=["*"], categories=["+@all", "-@scripting"]
    )
    with redis.Redis(port=port, username="plain", password="x") as plain:
        one = CleanupRun(plain, policy(), actor=REAL, pace=SMALL)
        assert run(one) == expected
        assert one.strategy == "watch"
    check_filled(client)


@pytest.mark.parametrize("refused", ["getrange|get|strlen", "scan"])
def test_a_command_refused_is_an_error_and_never_a_guess(client: Any, refused: str) -> None:
    """What may not be read is not taken for unreadable."""
    fill(client)
    port = client.connection_pool.connection_kwargs["port"]
    commands = ["+@all", *(f"-{command}" for command in refused.split("|"))]
    user = f"no-{refused[:4]}"
    client.acl_setuser(user, enabled=True, nopass=True, keys=["*"])
    for command in commands:
        client.execute_command("ACL", "SETUSER", user, command)
    limited = redis.Redis(port=port, username=user, password="x")
    with limited, all_keys_kept(client), pytest.raises(redis.ResponseError):
        run(CleanupRun(limited, policy(), actor=REAL, pace=FULL_SPEED))


def test_a_read_only_replica_is_left_alone(server: RedisServer, client: Any) -> None:
    """The error says so, and no slower strategy is tried; a dry run works there."""
    fill(client)
    with RedisServer("--replicaof", "127.0.0.1", str(server.port)) as replica:
        from tests.harness.workers import wait_for

        wait_for(lambda: replica.client.dbsize() == client.dbsize(), "the replica to be filled")
        with all_keys_kept(client):
            one = CleanupRun(replica.client, policy(), actor=REAL, pace=FULL_SPEED)
            with pytest.raises(redis.ResponseError, match=r"READONLY|read only"):
                run(one)
            assert one.strategy == STRATEGIES[0]
            for strategy in STRATEGIES:
                assert (
                    cleanup(
                        replica.client, strategy=strategy, actor=DRY_RUN
                    ).expired_results_deleted
                    > 0
                )


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_out_of_memory_a_cleanup_makes_room(client: Any, strategy: str) -> None:
    """A script needs no command that a full server refuses."""
    expected = fill(client)
    with out_of_memory(client):
        assert cleanup(client, strategy=strategy) == expected
    check_filled(client)


def test_out_of_memory_watch_is_an_error(client: Any) -> None:
    """A full server takes no MULTI; nothing is changed then."""
    fill(client)
    with out_of_memory(client), all_keys_kept(client), FULL:
        cleanup(client, strategy="watch")


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
        with pytest.raises(CleanupImpossibleError, match="Cluster"):
            refuse_cluster(node.client, "worker-guard-")
        told = pytest.raises(CleanupImpossibleError, match="can't find out whether")
        with blind_client(node) as blind, told:
            refuse_cluster(blind, "worker-guard-")


def blind_client(server: RedisServer) -> redis.Redis:
    """A client whose user may do all but ask what the server is."""
    server.client.acl_setuser("x", enabled=True, nopass=True, keys=["*"], categories=["+@all"])
    server.client.execute_command("ACL", "SETUSER", "x", "-info")
    return redis.Redis(port=server.port, username="x", password="x")


def test_a_single_server_is_cleaned_where_info_is_refused() -> None:
    """It answers for two keys at once, which no node of a cluster does."""
    with RedisServer() as server, blind_client(server) as blind:
        refuse_cluster(blind, "worker-guard-")


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cleanup_that_is_begun_again_does_no_harm(client: Any, strategy: str) -> None:
    """What the first half did and what the second whole did add up.

    What stays where it is, both can see: which, depends on the server's own order of its keys.
    """
    expected = fill(client)
    first = CleanupRun(client, policy(), actor=REAL, pace=SMALL, first_strategy=strategy)
    first.step()
    whole = first.counts + cleanup(client, strategy=strategy)
    seen_twice = {"keys_scanned": 0, "keys_unreadable": 0, "keys_with_longer_ttl": 0}
    assert replace(whole, **seen_twice) == replace(expected, **seen_twice)
    check_filled(client)


def test_now_is_by_whichever_clock_is_behind(client: Any) -> None:
    """A clock that is fast makes nothing look old."""
    seconds, _ = client.time()
    assert server_time(client, lambda: 1e12) == pytest.approx(seconds, abs=60)
    assert server_time(client, lambda: 5.0) == 5.0


def race(server: RedisServer, strategy: str, rewrites: int) -> None:
    """Clean while writers write young results over old ones, each key once.

    A young result that is gone was deleted by a check that was no longer true.
    """
    client = server.client
    client.flushall()
    ids = [str(uuid.uuid4()) for _ in range(rewrites)]
    with client.pipeline(transaction=False) as pipe:
        for task_id in ids:
            pipe.set(f"celery-task-meta-{task_id}", encoded(task_id))
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
        first = CleanupRun(own, policy(), actor=REAL, pace=SMALL, first_strategy=strategy)
        # Nobody writes before it is at work, or there might be no race.
        while not first.counts.expired_results_deleted:
            first.step()
        under_way.set()
        run(first)
        while any(writer.is_alive() for writer in writers):
            cleanup(own, strategy=strategy, pace=SMALL)
    values = client.mget([f"celery-task-meta-{task_id}" for task_id in ids])
    young = [encoded(task_id, age_s=0) for task_id in ids]
    assert sum(value != written for value, written in zip(values, young, strict=True)) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_fresh_is_deleted_in_a_race(server: RedisServer, strategy: str) -> None:
    """A result that is written between the check and the delete stays."""
    race(server, strategy, rewrites=3_000)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_fresh_is_deleted_in_100_000_races(server: RedisServer, strategy: str) -> None:
    """The same, for as long as it takes."""
    race(server, strategy, rewrites=100_000)


class Overwriting:
    """A client behind whose back one key is written after it was looked at, each time."""

    def __init__(self, client: Any, key: str) -> None:
        self._client, self._key = client, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self._client.pipeline(*args, **kwargs)
        execute = pipe.execute

        def overtaken(*a: Any, **k: Any) -> Any:
            if pipe.explicit_transaction:
                port = self._client.connection_pool.connection_kwargs["port"]
                with redis.Redis(port=port) as other:
                    other.set(self._key, encoded(age_s=0))
            return execute(*a, **k)

        pipe.execute = overtaken
        return pipe


def test_watch_lets_go_of_what_was_written_after_its_last_look(client: Any) -> None:
    """And changes the others all the same."""
    client.mset({f"celery-task-meta-{i}": encoded() for i in range(5)})
    counts = run(
        CleanupRun(
            Overwriting(client, "celery-task-meta-3"),
            policy(),
            actor=REAL,
            pace=FULL_SPEED,
            first_strategy="watch",
        )
    )
    assert counts.expired_results_deleted == 4
    assert client.keys() == [b"celery-task-meta-3"]
    assert client.get("celery-task-meta-3") == encoded(age_s=0)


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
