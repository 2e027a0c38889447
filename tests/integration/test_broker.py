"""Looks at what control leaves in the broker, on a real Redis."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.harness.broker import (
    HOUR_S,
    app_of,
    begin,
    broker_of,
    close_all,
    contents,
    look_at,
    reply,
    reply_list,
    run,
)
from tests.harness.redis_server import RedisServer, free_port, server_program
from tests.harness.workers import wait_for
from tests.integration.test_results_transports import tls_front
from worker_guard.broker.look import MOST_COMPARED
from worker_guard.broker.server import open_broker
from worker_guard.celery_internals import REDIS_TIMEOUT_S, MissingInternalError
from worker_guard.lease import LeaseLostError


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Each connection ends with its test, also if an error still holds it."""
    yield
    close_all()


@pytest.fixture
def app(server: RedisServer, client: Any) -> Celery:
    """An app whose broker is that Redis."""
    return app_of(server.url())


# -- orphaned replies ------------------------------------------------------------------------


def test_a_list_that_nobody_reads_goes_after_an_hour(app: Celery, client: Any) -> None:
    """Each look is a process of its own: what the first one saw stands in Redis."""
    name = reply_list(client, reply(), reply())
    first = look_at(app)
    assert (first.lists, first.deleted, first.unread) == (1, 0, 1)
    assert first.next_delete_at is not None
    early = look_at(app, later_s=HOUR_S - 10)
    assert (early.deleted, early.unread) == (0, 1)
    # The time counts from the first look.
    assert early.next_delete_at == pytest.approx(first.next_delete_at, abs=0.01)
    assert client.exists(name)
    assert client.ttl("worker-guard-broker-replies") > 2 * HOUR_S
    late = look_at(app, later_s=HOUR_S)
    assert (late.lists, late.deleted, late.unread, late.next_delete_at) == (1, 1, 0, None)
    # What is left are the guard's own notes, which end by themselves.
    assert client.keys("*") == [b"worker-guard-broker-last-look"]
    assert client.ttl("worker-guard-broker-last-look") > HOUR_S


def test_a_list_that_is_read_slowly_stays(app: Celery, client: Any) -> None:
    """An asker takes one reply an hour; others come meanwhile."""
    name = reply_list(client, *(reply() for _ in range(5)))
    for hour in range(4):
        assert look_at(app, later_s=hour * HOUR_S).deleted == 0
        client.rpop(name)
        client.lpush(name, reply())
    assert client.llen(name) == 5


def test_new_replies_do_not_make_a_list_read(app: Celery, client: Any) -> None:
    """They come in at the other end."""
    name = reply_list(client)
    look_at(app)
    client.lpush(name, reply())
    assert look_at(app, later_s=HOUR_S).deleted == 1
    assert not client.exists(name)


def test_a_list_that_was_emptied_and_filled_stays(app: Celery, client: Any) -> None:
    """The asker asks the same each time; no two replies have one delivery tag."""
    name = reply_list(client)
    look_at(app)
    client.rpop(name)
    client.lpush(name, reply())
    assert look_at(app, later_s=HOUR_S).deleted == 0
    assert client.exists(name)


def test_a_read_between_the_look_and_the_delete(app: Celery, client: Any) -> None:
    """Comparing and deleting are one step on the server."""
    names = [reply_list(client, reply(), reply()) for _ in range(3)]
    look_at(app)
    look = begin(app, later_s=HOUR_S)
    trips = look.run()
    while look.found.lists < 3:
        next(trips)
    client.rpop(names[1])
    for _ in trips:
        pass
    assert look.found.deleted == 2
    assert [client.exists(name) for name in names] == [0, 1, 0]


def test_a_long_reply_is_compared_by_its_length_and_its_end(app: Celery, client: Any) -> None:
    """1.3 MB, as a worker leaves that was killed in mingle; the notes stay short."""
    name = reply_list(client, reply("x" * 1_300_000))
    look_at(app)
    assert client.memory_usage("worker-guard-broker-replies") < 1000
    assert look_at(app, later_s=HOUR_S).deleted == 1
    assert not client.exists(name)


def test_many_lists(app: Celery, client: Any) -> None:
    """Over several pages, beside many other keys."""
    with client.pipeline() as pipe:
        for number in range(3000):
            pipe.set(f"other-{number}", "x")
        for _ in range(57):
            reply_list(pipe)
        pipe.execute()
    first = look_at(app)
    assert (first.lists, first.unread) == (57, 57)
    assert client.hlen("worker-guard-broker-replies") == 57
    assert look_at(app, later_s=HOUR_S).deleted == 57
    assert len(client.keys("other-*")) == 3000


def test_what_is_gone_is_forgotten(app: Celery, client: Any) -> None:
    """The notes hold what the last look saw, and no more."""
    gone, kept = reply_list(client), reply_list(client)
    look_at(app)
    client.delete(gone)
    look_at(app)
    assert client.hkeys("worker-guard-broker-replies") == [kept.encode()]


def test_a_look_that_is_cut_short_loses_nothing(app: Celery, client: Any) -> None:
    """The notes of the look before it hold."""
    for _ in range(25):
        reply_list(client)
    look_at(app)
    look = begin(app, later_s=10)
    trips = look.run()
    while look.found.lists < 15:
        next(trips)
    del trips
    assert look_at(app, later_s=HOUR_S).deleted == 25


def test_what_a_look_saw_before_it_failed_counts(app: Celery, client: Any) -> None:
    """Otherwise one slow answer in each look would keep all lists for ever."""
    for _ in range(25):
        reply_list(client)
    look = begin(app)
    trips = look.run()
    while look.found.unread < 15:
        next(trips)
    next(trips)
    trips.close()  # type: ignore[attr-defined]
    assert look_at(app, later_s=HOUR_S).deleted >= 12


def test_a_full_server_is_cleaned(app: Celery, client: Any) -> None:
    """It refuses notes; what was seen before is deleted all the same, and the look fails."""
    for _ in range(25):
        reply_list(client)
    look_at(app)
    new = [reply_list(client) for _ in range(25)]
    client.config_set("maxmemory", 1)
    try:
        look = begin(app, later_s=HOUR_S)
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            list(look.run())
    finally:
        client.config_set("maxmemory", 0)
    assert (look.found.deleted, look.finished) == (25, False)
    assert client.exists(*new) == 25


def test_keys_that_only_look_like_it(app: Celery, client: Any) -> None:
    """A queue, other types, another namespace, another prefix, an rpc:// result, an event queue."""
    oid = "0b16b155-3a3b-3cf1-bd2c-e0b3b4f5b0c8"
    for name in (
        "work.reply.celery.pidbox",
        # It fits the pattern by which Redis is asked.
        "abcdefgh-abcd-abcd-abcd-abcdefghijkl.reply.celery.pidbox",
        "reply.celery.pidbox",
        f"{oid}.reply.other.pidbox",
        f"shop:{oid}.reply.celery.pidbox",
        oid,
        f"celeryev.{oid}",
        "work",
    ):
        client.lpush(name, reply())
    client.sadd("1b16b155-3a3b-3cf1-bd2c-e0b3b4f5b0c8.reply.celery.pidbox", "x")
    client.hset("2b16b155-3a3b-3cf1-bd2c-e0b3b4f5b0c8.reply.celery.pidbox", "x", "y")
    client.set("3b16b155-3a3b-3cf1-bd2c-e0b3b4f5b0c8.reply.celery.pidbox", "x")
    client.sadd("_kombu.binding.reply.celery.pidbox", "x\x06\x16\x06\x16x.reply.celery.pidbox")
    client.hset("unacked", "tag", "[]")
    client.zadd("unacked_index", {"tag": 1})
    before = contents(client)
    for hour in range(3):
        assert look_at(app, later_s=hour * HOUR_S).lists == 0
    after = contents(client)
    assert {k: v for k, v in after.items() if not k.startswith(b"worker-guard-")} == before


def test_a_key_that_changes_its_type(app: Celery, client: Any) -> None:
    """Between SCAN and the look at it."""
    name = reply_list(client)
    look_at(app)
    look = begin(app, later_s=HOUR_S)
    trips = look.run()
    next(trips)
    client.delete(name)
    client.hset(name, "x", "y")
    for _ in trips:
        pass
    assert (look.found.lists, look.found.deleted) == (0, 0)
    assert client.hgetall(name) == {b"x": b"y"}


def test_another_namespace_and_a_global_prefix(server: RedisServer, client: Any) -> None:
    """Only this app's lists; the guard's notes stand behind the prefix too."""
    prefix = "shop[1]:"
    app = app_of(
        server.url(),
        control_exchange="control",
        broker_transport_options={"global_keyprefix": prefix},
    )
    mine = reply_list(client, prefix=prefix, namespace="control")
    others = [
        reply_list(client, namespace="control"),
        reply_list(client, prefix=prefix),
        reply_list(client, prefix="shop1:", namespace="control"),
    ]
    assert look_at(app).lists == 1
    assert look_at(app, later_s=HOUR_S).deleted == 1
    assert not client.exists(mine)
    assert client.exists(*others) == 3
    rest = {key.decode() for key in client.scan_iter()} - set(others)
    assert rest == {f"{prefix}worker-guard-broker-last-look"}


def test_a_dry_run_writes_nothing(app: Celery, client: Any) -> None:
    """It counts by its own memory, and by the notes of real looks."""
    reply_list(client)
    notes = broker_of(app).notes(by="test", dry_run=True, schedule_s=HOUR_S)
    before = contents(client)
    assert look_at(app, dry_run=True, notes=notes).unread == 1
    assert look_at(app, dry_run=True, notes=notes, later_s=HOUR_S).deleted == 1
    # Another process has seen nothing.
    assert look_at(app, dry_run=True, later_s=HOUR_S).deleted == 0
    assert contents(client) == before
    look_at(app)
    before = contents(client)
    assert look_at(app, dry_run=True, later_s=HOUR_S).deleted == 1
    assert contents(client) == before


# -- unacked ---------------------------------------------------------------------------------


def unacknowledged(client: Any, *tags: str, prefix: str = "") -> None:
    """Messages that a worker holds, as kombu notes them."""
    for tag in tags:
        client.zadd(f"{prefix}unacked_index", {tag: 1_800_000_000})
        client.hset(f"{prefix}unacked", tag, reply())


def test_entries_without_an_index_are_counted_and_left(app: Celery, client: Any) -> None:
    """An index without an entry is no loss."""
    tags = [f"tag-{number}" for number in range(230)]
    unacknowledged(client, *tags)
    client.zadd("unacked_index", {"of-no-entry": 1})
    assert look_at(app).without_index == 0
    client.zrem("unacked_index", *tags[::2])
    before = (client.dump("unacked"), client.dump("unacked_index"))
    assert look_at(app).without_index == 115
    client.delete("unacked_index")
    assert look_at(app).without_index == 230
    assert client.dump("unacked") == before[0]


def test_of_many_entries_the_least_number_is_told(app: Celery, client: Any) -> None:
    """They are not compared one by one."""
    tags = [f"tag-{number}" for number in range(MOST_COMPARED + 1)]
    client.hset("unacked", mapping=dict.fromkeys(tags, "[]"))
    client.zadd("unacked_index", dict.fromkeys(tags, 1))
    assert look_at(app).without_index == 0
    client.zrem("unacked_index", *tags[:7])
    assert look_at(app).without_index == 7
    client.delete("unacked_index")
    assert look_at(app).without_index == MOST_COMPARED + 1


def test_messages_are_not_read_to_be_counted(server: RedisServer, app: Celery, client: Any) -> None:
    """They can hold megabytes each, and the server would copy them."""
    unacknowledged(client, "one", "two")
    client.delete("unacked_index")
    client.config_resetstat()
    assert look_at(app).without_index == 2
    assert not {"hscan", "hget", "hmget", "hvals", "hgetall"} & (
        server.calls().keys() - {"hmget"}  # that is of the guard's own notes
    )


def test_the_names_of_unacked_are_the_transports(server: RedisServer, client: Any) -> None:
    """With the global prefix."""
    options = {
        "global_keyprefix": "shop:",
        "unacked_key": "held",
        "unacked_index_key": "held_index",
    }
    app = app_of(server.url(), broker_transport_options=options)
    client.hset("shop:held", "tag", "[]")
    client.hset("unacked", "tag", "[]")
    assert look_at(app).without_index == 1
    client.zadd("shop:held_index", {"tag": 1})
    assert look_at(app).without_index == 0


# -- the lease -------------------------------------------------------------------------------


def test_one_holder_at_a_time(app: Celery, client: Any) -> None:
    """And a dry run only looks."""
    broker = broker_of(app)
    one, other = (broker.lease(by="w@test", dry_run=False) for _ in range(2))
    for lease in (one, other):
        list(lease.take())
    assert (one.held, other.held) == (True, False)
    seen = broker.lease(by="w@test", dry_run=True)
    list(seen.take())
    assert not seen.held
    client.set("worker-guard-broker-lease", "another")
    one._renew_mono = 0.0  # type: ignore[union-attr]
    with pytest.raises(LeaseLostError):
        list(one.renew())


# -- how the broker is reached ---------------------------------------------------------------


@pytest.mark.parametrize(("url", "kind"), [("memory://", "memory"), ("pyamqp://h", "amqp")])
def test_another_broker(url: str, kind: str) -> None:
    """The reason names it."""
    with pytest.raises(MissingInternalError, match=f"no Redis broker: it is {kind}"):
        broker_of(app_of(url))


def test_each_wait_is_bounded(server: RedisServer) -> None:
    """Whatever the app's own options say; nothing connects before a look."""
    options = {"socket_timeout": 300, "socket_connect_timeout": 300, "retry_on_timeout": True}
    app = app_of(f"redis://127.0.0.1:{free_port()}/0", broker_transport_options=options)
    broker = open_broker(app, timeout_s=REDIS_TIMEOUT_S)
    given = broker.client.connection_pool.connection_kwargs
    assert (given["socket_timeout"], given["socket_connect_timeout"]) == (REDIS_TIMEOUT_S,) * 2
    assert "retry_on_timeout" not in given
    with pytest.raises(redis.ConnectionError):
        broker.now()


def test_a_password_a_user_and_a_database(server: RedisServer, client: Any) -> None:
    """As the URL has them."""
    client.execute_command("ACL", "SETUSER", "guard", "on", ">se/cret", "~*", "+@all")
    two = redis.Redis(port=server.port, db=2)
    reply_list(two)
    reply_list(client)
    app = app_of(f"redis://guard:se%2Fcret@127.0.0.1:{server.port}/2")
    look_at(app)
    assert look_at(app, later_s=HOUR_S).deleted == 1
    assert len(client.keys("*pidbox")) == 1
    two.flushdb()
    two.close()


def test_a_user_that_may_do_what_the_docs_say(server: RedisServer, client: Any) -> None:
    """A look that deletes, a lease, and the connection itself; and nothing more is allowed."""
    page = (Path(__file__).parents[2] / "docs/broker.md").read_text()
    text = page.split("needs these commands:")[1].split(".")[0]
    commands = [f"+{name.lower()}" for name in re.findall(r"[A-Z]{3,}", text)]
    users = ["ACL", "SETUSER", "limited", "reset", "on", ">x", "~*", "&*", "-@all"]
    client.execute_command(*users, *commands, "+hello", "+auth", "+select", "+client")
    unacknowledged(client, "one")
    client.delete("unacked_index")
    for _ in range(5):
        reply_list(client)
    app = app_of(f"redis://limited:x@127.0.0.1:{server.port}/0")
    look_at(app)
    found = look_at(app, later_s=HOUR_S)
    assert (found.deleted, found.without_index) == (5, 1)
    lease = broker_of(app).lease(by="w@test", dry_run=False)
    list(lease.take())
    lease._renew_mono = 0.0  # type: ignore[union-attr]
    list(lease.renew())
    list(lease.release())
    assert not lease.held
    with pytest.raises(redis.ResponseError):
        broker_of(app).client.lpush("work", "x")


def test_a_user_that_may_not_read_the_lists(server: RedisServer, client: Any) -> None:
    """That is an error, and not a list that is not there."""
    client.execute_command("ACL", "SETUSER", "blind", "on", ">x", "~*", "+@all", "-lindex")
    reply_list(client)
    app = app_of(f"redis://blind:x@127.0.0.1:{server.port}/0")
    with pytest.raises(redis.ResponseError, match=r"can't run this command|NOPERM"):
        look_at(app)


def test_a_unix_socket(tmp_path: Path) -> None:
    """And the database that its URL names."""
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)) as one:
        two = redis.Redis(port=one.port, db=2)
        reply_list(two)
        app = app_of(f"redis+socket://{path}?virtual_host=2")
        look_at(app)
        assert look_at(app, later_s=HOUR_S).deleted == 1
        two.close()


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
def test_tls(tmp_path: Path, server: RedisServer, client: Any) -> None:
    """With the certificate checked."""
    with tls_front(server.port, tmp_path) as port:
        reply_list(client)
        url = f"rediss://localhost:{port}/0?ssl_cert_reqs=required&ssl_ca_certs="
        app = app_of(url + str(tmp_path / "cert.pem").replace("/", "%2F"))
        assert look_at(app).unread == 1
        with pytest.raises(redis.ConnectionError, match="certificate"):
            look_at(app_of(f"rediss://localhost:{port}/0?ssl_cert_reqs=required"))


@contextlib.contextmanager
def sentinel(master: RedisServer, directory: Path) -> Iterator[int]:
    """The port of a Sentinel that names this master ``main``."""
    port, conf = free_port(), directory / "sentinel.conf"
    conf.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {master.port} 1\n")
    process = subprocess.Popen(
        [server_program(), str(conf), "--sentinel"], stdout=subprocess.DEVNULL
    )
    asking = redis.Redis(port=port)

    def names_it() -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(asking.execute_command("SENTINEL", "get-master-addr-by-name", "main"))
        return False

    try:
        wait_for(names_it, "Sentinel to know its master")
        yield port
    finally:
        asking.close()
        process.kill()
        process.wait(10)


def test_sentinel(server: RedisServer, client: Any, tmp_path: Path) -> None:
    """It names the master; each wait for it is bounded too."""
    with sentinel(server, tmp_path) as port:
        app = app_of(
            f"sentinel://127.0.0.1:{port}/0",
            broker_transport_options={"master_name": "main"},
        )
        reply_list(client)
        look_at(app)
        assert look_at(app, later_s=HOUR_S).deleted == 1
        manager = broker_of(app).client.connection_pool.sentinel_manager
        options = manager.sentinels[0].connection_pool.connection_kwargs
        assert options["socket_timeout"] == options["socket_connect_timeout"] == 10.0


def test_a_look_after_a_restart_of_the_server(server: RedisServer, client: Any) -> None:
    """The connection of the last look is stale."""
    app = app_of(server.url())
    broker = broker_of(app)
    broker.now()
    client.client_kill_filter(skipme=True, _type="normal")
    notes = broker.notes(by="test", dry_run=False, schedule_s=HOUR_S)
    assert run(broker.look(notes, dry_run=False)).lists == 0
