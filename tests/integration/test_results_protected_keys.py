"""A cleanup beside a broker, RedBeat and other apps in one database."""

from __future__ import annotations

import re
import string
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.harness.redis_server import RedisServer
from tests.harness.results import cleanup, contents, encoded, policy
from worker_guard.results.backend import open_result_backend
from worker_guard.results.cleanup import FullSpeedCleanup
from worker_guard.settings import read_settings

#: Together they fit every key: a pattern of wildcards alone is refused as a setting.
EVERY = [f"*{character}*" for character in string.ascii_letters + string.digits + "_-:.{}"]


def application(server: RedisServer, queue: str = "work", **values: Any) -> Celery:
    """An app that keeps its broker and its results in one database, like many."""
    app = Celery("test", set_as_current=False, broker=server.url(), backend=server.url())
    app.conf.update(task_default_queue=queue, worker_guard_state_patterns=EVERY, **values)
    return app


def cleaned(app: Celery) -> None:
    backend = open_result_backend(app, read_settings(app.conf), timeout_s=10.0)
    FullSpeedCleanup(backend, max_age_s=3600.0, dry_run=False, by="test", trigger="cli").run()


def use_broker(app: Celery) -> None:
    """Leave in Redis what senders and a consumer in mid-work leave there."""
    for priority in (0, 3, 9):
        app.send_task("some.task", priority=priority)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        # Taken, and not acknowledged: it stands in the hash and the index of such.
        assert app.amqp.queues[app.conf.task_default_queue](channel).get(no_ack=False)
        # A reply to a remote command that nobody has read.
        reply = f"{uuid.uuid4()}.reply.celery.pidbox"
        channel.queue_declare(reply)
        channel._put(reply, {"body": "", "properties": {"delivery_tag": "1", "priority": 0}})
        # Without what restoring it at the close of the channel would do.
        channel.do_restore = False


def forever(client: Any) -> set[bytes]:
    return {key for key in client.keys("*") if client.ttl(key) == -1}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_keyprefix": "brk:"},
        {"sep": ":", "unacked_key": "open", "unacked_index_key": "index", "priority_steps": [0, 5]},
    ],
    ids=["plain", "prefix", "names"],
)
def test_a_broker_in_the_same_database_is_left_alone(
    server: RedisServer, client: Any, options: dict[str, Any]
) -> None:
    """Queues with their priorities, bindings, unacknowledged messages, replies."""
    app = application(server, broker_transport_options=options)
    use_broker(app)
    client.set("app-state", "1")
    kept = forever(client) - {b"app-state"}
    kinds = {client.type(key) for key in kept}
    assert kinds == {b"list", b"hash", b"zset", b"set"}
    cleaned(app)
    assert forever(client) == kept
    assert client.ttl("app-state") > 0
    app.close()


def test_another_apps_queues_are_left_alone(server: RedisServer, client: Any) -> None:
    """Though this app knows nothing of their names."""
    other = application(server, "others", broker_transport_options={"global_keyprefix": "oth_"})
    use_broker(other)
    kept = forever(client)
    cleaned(application(server))
    assert forever(client) == kept
    other.close()


def test_queues_that_are_named_like_results_are_left_alone(
    server: RedisServer, client: Any
) -> None:
    """A ``task_keyprefix`` of one's own can be how the name of a queue begins."""
    app = application(server)
    for queue in ("mine-mails", "mine-too-mails"):
        app.send_task("some.task", queue=queue, priority=3)
    kept = {key for key in forever(client) if client.type(key) == b"list"}
    client.set("mine-1", encoded(status="STARTED", age_s=None))
    rules = replace(policy(), task_prefix=b"mine-", state_prefixes=(b"mine-too-",))
    assert len(kept) == 2
    counts = cleanup(client, rules)
    assert (counts.task_states_cleaned, counts.keys_unreadable) == (1, 0)
    assert kept <= forever(client)
    app.close()


def test_redbeat_and_the_guards_own_keys_are_left_alone(server: RedisServer, client: Any) -> None:
    """They have a reason to stay."""
    client.hset("redbeat:entry", "definition", "{}")
    client.zadd("redbeat::schedule", {"redbeat:entry": 1})
    client.sadd("redbeat::statics", "entry")
    client.hset("beat-of-mine:entry", "definition", "{}")
    client.set("worker-guard-results-last-run", "1.0")
    client.set("other_worker-guard-operator-1", "operator")
    client.rpush("worker-guard-history", "{}")
    before = contents(client)
    cleaned(application(server, redbeat_key_prefix="beat-of-mine:"))
    after = contents(client)
    assert after == before


def test_a_list_of_the_applications_own_gets_its_ttl(server: RedisServer, client: Any) -> None:
    """Only a list of messages is taken for a queue."""
    client.rpush("app-state:list", '{"body": 1}')
    client.hset("app-state:hash", "a", 1)
    cleaned(application(server))
    assert forever(client) == set()


def test_keys_in_use_live_for_at_least_the_configured_age(server: RedisServer, client: Any) -> None:
    """Though results of an hour are deleted: a task may run, and a chord's parts come in."""
    keys = ["celery-task-meta-1", "celery-taskset-meta-1.j", "chord-unlock-1", "app-state"]
    client.set(keys[0], encoded(status="STARTED", age_s=None))
    client.zadd(keys[1], {"part": 1})
    client.set(keys[2], 1)
    client.set(keys[3], 1)
    cleaned(application(server))
    assert [86_300 < client.ttl(key) <= 86_400 for key in keys] == [True] * 4


def test_results_of_an_earlier_prefix_get_a_ttl(server: RedisServer, client: Any) -> None:
    """By the patterns that docs/results.md gives."""
    docs = (Path(__file__).parents[2] / "docs/results.md").read_text()
    (settings,) = re.findall(
        r"## Results of an earlier key prefix.*?```python\n(.*?)```", docs, re.S
    )
    app = Celery("test", set_as_current=False, broker=server.url(), backend=server.url())
    old = Celery("test", set_as_current=False, broker=server.url(), backend=server.url())
    old.conf.result_backend_transport_options = {"global_keyprefix": "old-shop_"}
    exec(settings, {"app": app})
    prefixes = [
        old.backend.task_keyprefix,
        old.backend.group_keyprefix,
        old.backend.chord_keyprefix,
    ]
    # Celery 5.3 puts one more "_" behind the prefix.
    keys = [b"old-shop_" + prefix[-prefix[::-1].index(b"_") :] + b"1" for prefix in prefixes]
    client.mset(dict.fromkeys(keys, encoded("1")))
    client.set("another", 1)
    cleaned(app)
    assert forever(client) == {b"another"}
    assert client.exists(*keys) == 3
