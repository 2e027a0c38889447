"""The record of the operators' revocations, on a real Redis."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from celery import Celery

from tests.harness.redis_server import RedisServer
from worker_guard.revoked import record as module
from worker_guard.revoked.record import (
    PAGE,
    Made,
    Record,
    RecordUnavailableError,
    Revocation,
    open_record,
)
from worker_guard.values.source import Stamp, Way

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S

#: So long that a revocation of then has ended, and is of no use to anyone.
LONG_AGO_S = 60 * DAY_S

UNTIL = "worker-guard-revocations"
SINCE, WAY, TAKEN = f"{UNTIL}-since", f"{UNTIL}-way", f"{UNTIL}-taken-back"


def record_of(client: Any, lifetime_s: float | None = WEEK_S) -> Record:
    return Record(client, "", lifetime_s=lifetime_s)


def put(record: Record, *targets: Any, age_s: float = 0.0, way: Way = Way.REVOKE) -> set[Any]:
    return record.put({target: Made(way, age_s) for target in targets})


def listed(record: Record) -> dict[Any, Revocation]:
    """All that stand; none twice, as long as nothing is written meanwhile."""
    found = [each for page in record.pages() for each in page]
    assert len(found) == len({each.target for each in found})
    return {each.target: each for each in found}


def standing(client: Any, record: Record, ids: Sequence[str]) -> tuple[set[str], set[str]]:
    with client.pipeline(transaction=False) as pipe:
        record.ask_standing(pipe, ids)
        return record.read_standing(ids, *pipe.execute())


def purge(record: Record) -> None:
    for _ in record.purge():
        pass


def test_what_was_put_is_listed(client: Any) -> None:
    """With the time, the way, and until when; by the server's clock."""
    record = record_of(client)
    seconds, _ = client.time()
    assert put(record, "a", "ü/\n\ud800", "stamp:x", Stamp("team", 7), age_s=60.0) == set()
    put(record, "t", way=Way.TERMINATE)
    found = listed(record)
    assert set(found) == {"a", "ü/\n\ud800", "stamp:x", Stamp("team", 7), "t"}
    assert found["a"].since == pytest.approx(seconds - 60, abs=20)
    assert found["a"].until == pytest.approx(found["a"].since + WEEK_S, abs=0.001)
    assert found["a"].age_s >= 60
    assert (found["a"].way, found["t"].way) == (Way.REVOKE, Way.TERMINATE)
    assert client.zcard(UNTIL) == 5


def test_nothing_is_nothing(client: Any) -> None:
    """An empty record, and empty calls, cost and leave nothing."""
    record = record_of(client)
    assert record.put({}) == set()
    record.take_back([])
    purge(record)
    assert (listed(record), client.zcard(UNTIL)) == ({}, 0)
    assert list(client.scan_iter()) == []


def test_scores_only_grow(client: Any) -> None:
    """Who writes late an older revocation changes neither since when nor until when."""
    record = record_of(client)
    put(record, "a", age_s=10.0)
    before = listed(record)["a"]
    put(record, "a", age_s=3600.0)
    assert listed(record)["a"].since == before.since
    assert listed(record)["a"].until == before.until


def test_what_was_taken_back_stands_no_more(client: Any) -> None:
    """A late put of an older revocation does not stand either; a new one does."""
    record = record_of(client)
    put(record, "a", "b", age_s=60.0)
    record.take_back(["a", "nobody revoked it"])
    assert set(listed(record)) == {"b"}
    ids = ["a", "b", "c", "nobody revoked it"]
    assert standing(client, record, ids) == ({"b"}, {"a", "nobody revoked it"})
    assert put(record, "a", "b", age_s=30.0) == {"a"}
    assert set(listed(record)) == {"b"}
    assert put(record, "a") == set()
    assert set(listed(record)) == {"a", "b"}
    assert standing(client, record, ids)[0] == {"a", "b"}


def test_a_put_that_read_before_it_was_taken_back_does_not_stand(client: Any) -> None:
    """Though it writes after that."""
    record, other = record_of(client), record_of(client)
    late = record_of(_Between(client, lambda: other.take_back(["a"])))
    assert put(late, "a") == set()
    assert listed(record) == {}


class _Between:
    """A client between whose first pipeline and the next something else happens."""

    def __init__(self, client: Any, then: Any) -> None:
        self._client, self._then, self._pipelines = client, then, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def pipeline(self, **options: Any) -> Any:
        self._pipelines += 1
        if self._pipelines == 2:
            self._then()
        return self._client.pipeline(**options)


def test_a_lifetime_ends(client: Any) -> None:
    """Then it is not listed; a purge removes it, and nothing else."""
    record = record_of(client)
    put(record, "ended", Stamp("team", "x"), age_s=LONG_AGO_S)
    put(record, "a", age_s=WEEK_S - 60)
    assert set(listed(record)) == {"a"}
    assert client.zcard(UNTIL) == 3
    purge(record)
    assert client.zcard(UNTIL) == 1
    assert [client.zcard(SINCE), client.hlen(WAY)] == [1, 1]
    assert set(listed(record)) == {"a"}


def test_what_one_of_the_keys_has_lost_is_lost(client: Any) -> None:
    """An eviction takes a whole key, and a flush all of them."""
    record = record_of(client)
    put(record, "a", "b")
    assert record.lost(["a", "c", "b"]) == ["c"]
    assert record.lost([]) == []
    client.delete(SINCE)
    assert record.lost(["a", "b"]) == ["a", "b"]


def test_a_purge_of_many_goes_page_by_page(client: Any) -> None:
    """Until nothing is left."""
    record = record_of(client)
    many = [f"ended-{i}" for i in range(2 * PAGE + 1)]
    put(record, *many, age_s=LONG_AGO_S)
    put(record, "a")
    assert len(list(record.purge())) == 3
    assert client.zcard(UNTIL) == 1


def test_a_purge_leaves_what_is_put_meanwhile(client: Any) -> None:
    """What had ended when it was read, and is revoked anew before it is removed."""
    record, other = record_of(client), record_of(client)
    put(record, "ended", "anew", age_s=LONG_AGO_S)
    late = record_of(_First(client, "zrangebyscore", lambda: put(other, "anew")))
    purge(late)
    assert set(listed(record)) == {"anew"}
    # And what comes while it looks at the scores again, which Redis tells it.
    put(record, "watched", age_s=LONG_AGO_S)
    late = record_of(_First(client, "watch", lambda: put(other, "watched")))
    purge(late)
    assert set(listed(record)) == {"anew", "watched"}


class _First:
    """A client after whose first call of this name something else happens."""

    def __init__(self, client: Any, name: str, then: Any) -> None:
        self._client, self._name, self._then = client, name, then

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return self._followed(found) if name == self._name else found

    def _followed(self, call: Any) -> Any:
        def followed(*arguments: Any, **options: Any) -> Any:
            answer = call(*arguments, **options)
            then, self._then = self._then, lambda: None
            then()
            return answer

        return followed

    def pipeline(self, **options: Any) -> Any:
        pipe = self._client.pipeline(**options)
        if self._name == "watch":
            pipe.watch = self._followed(pipe.watch)
        return pipe


def test_each_key_outlives_what_it_holds(client: Any) -> None:
    """And a shorter lifetime of another worker does not shorten it."""
    record = record_of(client)
    put(record, "a")
    record.take_back(["b"])
    for key in (UNTIL, SINCE, WAY):
        assert WEEK_S <= client.ttl(key) <= WEEK_S + DAY_S
    assert client.ttl(TAKEN) >= WEEK_S + DAY_S
    put(record_of(client, 60.0), "short")
    assert all(client.ttl(key) >= WEEK_S for key in (UNTIL, SINCE, WAY, TAKEN))


def test_for_ever(client: Any) -> None:
    """No lifetime: no end, and no TTL, not even after another worker has one."""
    record = record_of(client, None)
    put(record, "a", age_s=10 * 365 * DAY_S)
    record.take_back(["b"])
    put(record_of(client), "c")
    purge(record)
    purge(record_of(client))
    assert listed(record)["a"].until is None
    assert {client.ttl(key) for key in client.scan_iter()} == {-1}


def test_what_was_taken_back_is_remembered_longer_than_any_worker_can_make_it_stand(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is forgotten; but not while there is an entry, of a longer lifetime of before."""
    long = record_of(client, 30 * DAY_S)
    put(long, "long", age_s=60.0)
    short = record_of(client, 1.0)
    short.take_back(["long", "gone"])
    purge(short)
    assert client.zcard(TAKEN) == 2
    # So much later.
    monkeypatch.setattr(module, "_REMEMBERED_S", -1.0)
    purge(record_of(client, -1.0))
    assert client.zrange(TAKEN, 0, -1) == [b"id:long"]
    assert listed(long) == {}


def test_many_come_in_pages(client: Any) -> None:
    """Neither the reply of one call nor the memory grows with them."""
    record = record_of(client)
    put(record, *(f"{i:036d}" for i in range(20 * PAGE)))
    tracemalloc.start()
    try:
        sizes = [len(page) for page in record.pages()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) == client.zcard(UNTIL) == 20 * PAGE
    # Redis returns whole buckets of its table.
    assert max(sizes) < 2 * PAGE
    # All of them together take about ten times as much.
    assert peak < 2_000_000


def test_the_prefix_of_the_result_backend_is_kept(server: RedisServer, client: Any) -> None:
    """Two apps in one database have a record each."""
    app = Celery("prefixed", set_as_current=False, backend=server.url())
    app.conf.result_backend_transport_options = {"global_keyprefix": "shop:"}
    record = open_record(app.backend, lifetime_s=WEEK_S, timeout_s=5.0)
    put(record, "a")
    assert {key.decode() for key in client.scan_iter()} == {
        f"shop:{key}" for key in (UNTIL, SINCE, WAY)
    }
    assert set(listed(record)) == {"a"}
    assert listed(record_of(client)) == {}


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        ("rpc://", "RPCBackend is not a key-value store"),
        ("cache+memory://", "CacheBackend can't be listed; with Redis they can"),
        (None, "DisabledBackend is not a key-value store"),
    ],
)
def test_other_backends_hold_no_record(backend: str | None, why: str) -> None:
    """With the reason."""
    app = Celery("other", set_as_current=False, backend=backend, broker="memory://")
    with pytest.raises(RecordUnavailableError, match=why):
        open_record(app.backend, lifetime_s=WEEK_S, timeout_s=5.0)


def test_a_way_of_another_release_is_a_revoke(client: Any) -> None:
    """As is one that is missing."""
    record = record_of(client)
    put(record, "a", "b")
    ways: Mapping[str, str] = {"id:a": "by dove"}
    client.hset(WAY, mapping=ways)
    client.hdel(WAY, "id:b")
    assert {each.way for each in listed(record).values()} == {Way.REVOKE}
