"""Results as Celery and others leave them in Redis."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import states

from tests.harness.redis_server import RedisServer
from worker_guard.results.cleanup_run import (
    FULL_SPEED,
    REAL,
    CleanupCounts,
    CleanupRun,
    Pace,
    ResultsActor,
)
from worker_guard.results.protected_keys import protected
from worker_guard.results.selection import Policy
from worker_guard.values.key_patterns import Glob

TASK_PREFIX = b"celery-task-meta-"
GROUP_PREFIX = b"celery-taskset-meta-"

#: The moment at which the tests' cleanups take place.
NOW = 1_800_000_000

DAY_S = 86_400


#: What kombu's Redis transport puts into a queue's list.
MESSAGE = (
    b'{"body": "W10=", "content-encoding": "utf-8", "content-type": "application/json", '
    b'"headers": {}, "properties": {"delivery_mode": 2, "delivery_tag": "5f1b"}}'
)


def policy(**changes: Any) -> Policy:
    """Celery's own prefixes, an age of one day, and ``app-state:*`` as the application's keys.

    The backend gives its results three days, so that of a result of two days one is left.
    """
    values: dict[str, Any] = {
        "task_prefix": TASK_PREFIX,
        "state_prefixes": (GROUP_PREFIX, b"chord-unlock-"),
        "state_patterns": (Glob("app-state:*"),),
        "protected": protected(queues=["work"], broker_options={}, redbeat_prefix=None),
        "ready_states": frozenset(states.READY_STATES),
        "now": NOW,
        "done_before": NOW - DAY_S,
        "ttl_ms": DAY_S * 1000,
        "backend_ttls_s": ((3 * DAY_S - 300, 3 * DAY_S + 300),),
    }
    return Policy(**{**values, **changes})


def date(age_s: float, zone: timezone | None = timezone.utc) -> str:
    """A ``date_done`` of this age at :data:`NOW`; naive UTC where there is no zone."""
    done = datetime.fromtimestamp(NOW, timezone.utc) - timedelta(seconds=age_s)
    return (done.astimezone(zone) if zone else done.replace(tzinfo=None)).isoformat()


def record(
    task_id: str = "id", status: str = "SUCCESS", age_s: float | None = 2 * DAY_S, **more: Any
) -> dict[str, Any]:
    """A result's record in the order in which Celery writes its fields."""
    done = None if age_s is None else date(age_s)
    return {
        "status": status,
        "result": None,
        "traceback": None,
        "children": [],
        "date_done": done,
        **more,
        "task_id": task_id,
    }


def encoded(*args: Any, **kwargs: Any) -> bytes:
    """A :func:`record` as Celery stores it."""
    return json.dumps(record(*args, **kwargs)).encode()


def run(cleanup: CleanupRun) -> CleanupCounts:
    """Run it to the end."""
    while not cleanup.finished:
        cleanup.step()
    return cleanup.counts


def cleanup(
    client: Any,
    rules: Policy | None = None,
    *,
    actor: ResultsActor = REAL,
    pace: Pace = FULL_SPEED,
) -> CleanupCounts:
    """Clean this database to the end; the server refuses nothing."""
    one = CleanupRun(client, rules or policy(), actor=actor, pace=pace)
    counts = run(one)
    assert one.refused is None
    return counts


@contextmanager
def all_keys_kept(client: Any) -> Iterator[None]:
    """Make sure that the block changes no key, no value, and no TTL by more than it ages."""
    before = contents(client)
    yield
    assert contents(client) == before


def contents(client: Any) -> dict[bytes, tuple[bytes, bool]]:
    """Each key with its serialised value, and whether it has a TTL."""
    return {key: (client.dump(key), client.pttl(key) >= 0) for key in client.scan_iter(count=1000)}


#: Each kind of key, with what becomes of it: its value, its TTL in seconds, and one of
#: ``delete``, ``expire`` and ``keep``, with a ``?`` where it counts as unreadable and a ``!`` where
#: it counts as one with a longer TTL.
KINDS: dict[str, tuple[bytes, int | None, str]] = {
    "celery-task-meta-old": (encoded("old"), None, "delete"),
    "celery-task-meta-with-the-backends-ttl": (
        encoded("with-the-backends-ttl"),
        DAY_S,
        "delete",
    ),
    "celery-task-meta-with-its-own-ttl": (encoded("with-its-own-ttl"), 9999, "keep!"),
    "celery-task-meta-old-with-a-longer-ttl": (encoded(), 30 * DAY_S, "keep!"),
    "celery-task-meta-old-failure": (encoded("old-failure", "FAILURE"), None, "delete"),
    "celery-task-meta-old-naive": (
        json.dumps({**record(), "date_done": date(2 * DAY_S, None)}).encode(),
        None,
        "delete",
    ),
    "celery-task-meta-old-extended": (
        encoded(
            "old-extended",
            args=[1],
            kwargs={"date_done": date(0)},
            worker="w",
            retries=0,
            queue="q",
        ),
        None,
        "delete",
    ),
    "celery-task-meta-old-nested": (encoded(result={"date_done": date(0)}), None, "delete"),
    "celery-task-meta-young": (encoded("young", age_s=0), None, "keep"),
    "celery-task-meta-young-with-ttl": (encoded(age_s=0), 9999, "keep"),
    "celery-task-meta-young-nested": (
        encoded(age_s=0, result={"status": "SUCCESS", "date_done": date(2 * DAY_S)}),
        None,
        "keep",
    ),
    "celery-task-meta-started": (encoded("started", "STARTED", None), None, "expire"),
    "celery-task-meta-started-with-ttl": (encoded(status="STARTED", age_s=None), 9999, "keep"),
    "celery-task-meta-undated": (encoded(age_s=None), None, "expire?"),
    "celery-task-meta-megabytes": (
        encoded("megabytes", result="x" * 3_000_000),
        None,
        "delete",
    ),
    "celery-task-meta-megabytes-with-ttl": (
        encoded("megabytes-with-ttl", result="x" * 2_000_000),
        9999,
        "keep!",
    ),
    "celery-task-meta-zlib": (zlib.compress(encoded()), None, "expire?"),
    "celery-task-meta-pickle": (pickle.dumps(record()), None, "expire?"),
    "celery-task-meta-broken": (encoded()[:-9], None, "expire?"),
    "celery-task-meta-empty": (b"", None, "expire?"),
    "celery-taskset-meta-group": (b'{"result": []}', None, "expire"),
    "celery-taskset-meta-group-with-ttl": (b'{"result": []}', 9999, "keep"),
    "chord-unlock-1": (b"3", None, "expire"),
    "app-state:1": (encoded(), None, "expire"),
    "app-state:2": (b"1", 9999, "keep"),
    "foreign": (encoded(), None, "keep"),
    "worker-guard-history-like": (encoded(), None, "keep"),
    "_kombu.binding.work": (b"x", None, "keep"),
}

#: Keys of other types than string, all without a TTL.
COLLECTIONS = {
    "celery-task-meta-list": "expire?",
    "celery-taskset-meta-group.j": "expire",
    "app-state:list": "expire",
    "work": "keep",
}


def fill(client: Any, prefix: str = "") -> CleanupCounts:
    """Put one key of each kind into the database; what a cleanup of it comes to."""
    for name, (value, ttl_s, _fate) in KINDS.items():
        client.set(prefix + name, value, ex=ttl_s)
    for name in COLLECTIONS:
        client.rpush(prefix + name, encoded())
    fates = [*(fate for *_, fate in KINDS.values()), *COLLECTIONS.values()]
    return CleanupCounts(
        keys_scanned=len(fates),
        expired_results_deleted=sum(fate.startswith("delete") for fate in fates),
        task_states_cleaned=sum(fate.startswith("expire") for fate in fates),
        keys_unreadable=sum(fate.endswith("?") for fate in fates),
        keys_with_longer_ttl=sum(fate.endswith("!") for fate in fates),
    )


def check_filled(client: Any, prefix: str = "") -> None:
    """Make sure that of :func:`fill` each key met its fate, and no other."""
    for name, (value, ttl_s, fate) in KINDS.items():
        key = prefix + name
        if fate == "delete":
            assert not client.exists(key), key
            continue
        assert client.get(key) == value, key
        left = client.ttl(key)
        if fate.startswith("expire"):
            assert 0 < left <= DAY_S, key
        else:
            assert left == -1 if ttl_s is None else ttl_s >= left > ttl_s - 999, key
    for name, fate in COLLECTIONS.items():
        assert client.lrange(prefix + name, 0, -1) == [encoded()]
        assert (client.ttl(prefix + name) == -1) == (fate == "keep"), name


def cluster_node() -> RedisServer:
    """A node of a cluster, not yet started. Its second port is 10,000 above its first."""
    while (node := RedisServer("--cluster-enabled", "yes")).port > 55_000:
        node.close()
    return node
