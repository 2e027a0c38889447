"""Records and marks on a real result backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery

from tests.harness.redis_server import RedisServer
from worker_guard.revoked.confirmation import (
    RECORD_LIMIT_BYTES,
    Records,
    RecordsUnavailableError,
    RedisRecords,
    open_records,
)
from worker_guard.revoked.ledger import Confirmation
from worker_guard.revoked.record import Made, Record, RecordUnavailableError, open_record
from worker_guard.values.source import Target, Way

Opened = tuple[Celery, Records]

LIFETIME_S = 604_800.0


def opened(url: str, **conf: Any) -> Opened:
    app = Celery("test", set_as_current=False)
    app.conf.update(result_backend=url, **conf)
    return app, open_records(app.backend, record_of(app), revoke_expires_s=10_800.0)


def record_of(app: Celery) -> Record | None:
    """The revocations on record, if this result backend can hold any."""
    try:
        record = open_record(app.backend, lifetime_s=LIFETIME_S, timeout_s=0.4)
    except RecordUnavailableError:
        return None
    opened_records.append(record)
    return record


#: To be closed after the test.
opened_records: list[Record] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while opened_records:
        opened_records.pop()._client.close()


def revoked(*targets: Target) -> dict[Target, Made]:
    """These were revoked just now."""
    return dict.fromkeys(targets, Made(Way.REVOKE, 0.0))


@pytest.fixture(params=["redis", "redis-prefixed", "redis-yaml", "filesystem"])
def backend(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Callable[[], Opened]:
    """Each kind of key-value backend that the guard can look into."""
    conf: dict[str, dict[str, Any]] = {
        "redis": {},
        "redis-prefixed": {"result_backend_transport_options": {"global_keyprefix": "shop"}},
        "redis-yaml": {"result_serializer": "yaml", "accept_content": ["yaml"]},
        "filesystem": {},
    }
    url = tmp_path.as_uri() if request.param == "filesystem" else redis_server.url(1)
    if request.param == "redis-yaml":
        pytest.importorskip("yaml", reason="PyYAML is not installed")
    return lambda: opened(url, **conf[request.param])


def test_confirmations_on_what_celery_wrote(backend: Callable[[], Opened]) -> None:
    """REVOKED with "expired" is a proof, unless a guard left a mark; nothing else is."""
    app, records = backend()
    app.backend.mark_as_revoked("expired", "expired")
    app.backend.mark_as_revoked("both", "expired")
    app.backend.mark_as_revoked("doubted", "expired")
    app.backend.mark_as_revoked("revoked", "revoked")
    app.backend.mark_as_done("done", {"status": "REVOKED"})
    app.backend.mark_as_failure("failed", RuntimeError("expired"))
    app.backend.mark_as_started("started")
    records.mark(revoked("both"), ["doubted"])
    ids = ["expired", "both", "doubted", "revoked", "done", "failed", "started", "absent"]
    assert records.confirmations(ids) == {
        "expired": Confirmation.EXPIRED,
        "both": Confirmation.OPERATOR,
        "doubted": Confirmation.UNCONFIRMED,
        "revoked": Confirmation.OPERATOR,
        "done": Confirmation.UNCONFIRMED,
        "failed": Confirmation.UNCONFIRMED,
        "started": Confirmation.UNCONFIRMED,
        "absent": Confirmation.UNCONFIRMED,
    }
    assert app.backend.get_state("both") == "REVOKED"


def test_another_apps_marks_do_not_count(redis_server: RedisServer) -> None:
    """Two apps that share a database by prefixes share no marks."""
    options = {"result_backend_transport_options": {"global_keyprefix": "shop"}}
    shop, shops = opened(redis_server.url(1), **options)
    _, others = opened(redis_server.url(1))
    shop.backend.mark_as_revoked("x", "expired")
    others.mark(revoked("x"), [])
    assert shops.confirmations(["x"]) == {"x": Confirmation.EXPIRED}
    shops.mark(revoked("x"), [])
    assert shops.confirmations(["x"]) == {"x": Confirmation.OPERATOR}


def test_what_is_not_a_record_proves_nothing(redis_server: RedisServer) -> None:
    """Broken, foreign, huge, of another type: no proof, no error, and not for the others."""
    app, records = opened(redis_server.url(1))
    raw = redis.Redis.from_url(redis_server.url(1))
    proof = b'{"status": "REVOKED", "result": {"exc_type": "TaskRevokedError", '
    proof += b'"exc_message": ["expired"]}, "pad": "%s"}'
    values: dict[str, Any] = {
        "broken": b'{"status": "REVOKED", "result":',
        "binary": b"\x80\x04\x95\x00garbage",
        "empty": b"",
        "list-value": b"[]",
        "huge": proof % (b"x" * RECORD_LIMIT_BYTES),
    }
    for task_id, value in values.items():
        raw.set(app.backend.get_key_for_task(task_id), value)
    raw.rpush(app.backend.get_key_for_task("a-list"), "x")
    app.backend.mark_as_revoked("confirmed", "expired")
    confirmations = records.confirmations([*values, "a-list", "confirmed", "sur\udc80rogate"])
    assert confirmations.pop("confirmed") is Confirmation.EXPIRED
    assert set(confirmations.values()) == {Confirmation.UNCONFIRMED}
    assert records.confirmations([17, "confirmed"])["confirmed"] is Confirmation.EXPIRED  # type: ignore[list-item]
    raw.close()


def test_odd_ids_do_not_keep_the_other_marks_back(redis_server: RedisServer) -> None:
    """An operator may have given a number, or text that is not UTF-8."""
    app, records = opened(redis_server.url(1))
    records.mark(revoked(17, "sur\udc80rogate", "plain"), [])  # type: ignore[arg-type]
    app.backend.mark_as_revoked("plain", "expired")
    assert records.confirmations(["plain"]) == {"plain": Confirmation.OPERATOR}


def test_a_doubt_never_replaces_an_operators_mark(redis_server: RedisServer) -> None:
    """An operator's mark replaces a doubt; both are renewed while a worker holds the id."""
    raw = redis.Redis.from_url(redis_server.url(1))
    app, records = opened(redis_server.url(1))
    app.backend.mark_as_revoked("x", "expired")
    records.mark({}, ["x"])
    assert records.confirmations(["x"]) == {"x": Confirmation.UNCONFIRMED}
    assert records.marked(["x"]) == set()
    raw.pexpire("worker-guard-operator-x", 60_000)
    records.mark({}, ["x"])
    assert raw.pttl("worker-guard-operator-x") > 60_000
    records.mark(revoked("x"), [])
    records.mark({}, ["x"])
    assert records.confirmations(["x"]) == {"x": Confirmation.OPERATOR}
    assert records.marked(["x", "y"]) == {"x"}
    raw.close()


def test_the_mark_of_an_unconfirmed_id_lives_for_a_week_at_least(
    redis_server: RedisServer,
) -> None:
    """Or as long as results do, where that is longer."""
    raw = redis.Redis.from_url(redis_server.url(1))
    week_s = 7 * 86_400
    for result_expires, at_least_s in ((60, week_s), (2 * week_s, 2 * week_s), (None, week_s)):
        _, records = opened(redis_server.url(1), result_expires=result_expires)
        records.mark({}, ["x"])
        left = raw.pttl("worker-guard-operator-x")
        assert (at_least_s - 60) * 1000 < left <= at_least_s * 1000
    raw.close()


def test_a_server_that_is_down_or_hangs_raises(redis_server: RedisServer) -> None:
    """The caller contains it; each wait is bounded by the client's own timeouts."""
    _, records = opened(redis_server.url(1))
    client = records._client  # type: ignore[attr-defined]
    limits = client.connection_pool.connection_kwargs
    assert limits["socket_timeout"] + limits["socket_connect_timeout"] <= 1.0
    redis_server.pause()
    with pytest.raises(redis.TimeoutError):
        records.confirmations(["x"])
    redis_server.resume()
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        records.mark(revoked("x"), [])
    redis_server.start()
    assert records.confirmations(["x"]) == {"x": Confirmation.UNCONFIRMED}


def test_a_server_that_was_restarted_costs_no_failure(redis_server: RedisServer) -> None:
    """The pooled connection is stale then; the one retry takes a fresh one."""
    _, records = opened(redis_server.url(1))
    records.mark(revoked("x"), [])
    redis_server.kill()
    redis_server.start()
    assert records.confirmations(["x"]) == {"x": Confirmation.UNCONFIRMED}


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ({"result_backend": None}, "DisabledBackend is not a key-value store"),
        ({"result_backend": "rpc://"}, "RPCBackend is not a key-value store"),
    ],
)
def test_backends_that_hold_no_marks(conf: dict[str, Any], reason: str) -> None:
    """Each is refused with its reason, before anything is connected to."""
    app = Celery("test", set_as_current=False)
    app.conf.update(conf)
    with pytest.raises(RecordsUnavailableError, match=reason):
        open_records(app.backend, record_of(app), revoke_expires_s=10_800.0)


@pytest.mark.parametrize("url", ["redis", "cache+memory://"])
def test_pickled_results_prove_nothing_and_marks_hold(redis_server: RedisServer, url: str) -> None:
    """The guard unpickles nothing; a mark is no result."""
    url = redis_server.url(1) if url == "redis" else url
    _, records = opened(url, result_serializer="pickle", accept_content=["pickle"])
    assert "unpickles nothing" in records.unreadable
    records.mark(revoked("x"), ["y"])
    assert records.marked(["x", "y", "z"]) == {"x"}


@pytest.mark.parametrize("kind", ["redis", "filesystem"])
def test_what_is_revoked_no_more_is_no_operators(
    redis_server: RedisServer, tmp_path: Path, kind: str
) -> None:
    """The application took it out of the set, so it is off the record."""
    app, records = opened(redis_server.url(1) if kind == "redis" else tmp_path.as_uri())
    app.backend.mark_as_revoked("x", "expired")
    records.mark(revoked("x", "y"), [])
    records.unmark(["x"])
    assert records.marked(["x", "y"]) == {"y"}
    assert records.confirmations(["x"]) == {"x": Confirmation.EXPIRED}


def test_what_someone_took_back(redis_server: RedisServer) -> None:
    """A peer that has not heard hands it on; the look-up says so, and a later revoke holds."""
    app, records = opened(redis_server.url(1))
    record = record_of(app)
    assert record is not None
    app.backend.mark_as_revoked("x", "revoked")
    records.mark(revoked("x"), [])
    record.take_back(["x"])
    assert records.confirmations(["x"]) == {"x": Confirmation.TAKEN_BACK}
    assert records.marked(["x"]) == set()
    late: dict[Target, Made] = {"x": Made(Way.REVOKE, age_s=60.0)}
    assert records.mark(late, []) == {"x"}
    assert records.marked(["x"]) == set()
    assert records.mark(revoked("x"), []) == set()
    assert records.confirmations(["x"]) == {"x": Confirmation.OPERATOR}


class FakePipeline:
    """Records the commands in their order; each is answered with None."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __enter__(self) -> FakePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed."""

    def getrange(self, *_: object) -> None:
        self.called.append("result")

    def mget(self, keys: list[bytes]) -> None:
        self.called.append("marks")

    def zmscore(self, key: str, members: list[bytes]) -> None:
        self.called.append("record")

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        results = self.called.count("result")
        return [None] * results + [[None] * results] * (len(self.called) - results)


def test_results_are_read_before_marks() -> None:
    """The other way round a mark and an expiry written in between look like an expiry alone."""
    pipeline = FakePipeline()
    client = SimpleNamespace(pipeline=lambda **_: pipeline)
    records = RedisRecords(
        client,
        Record(client, "", lifetime_s=LIFETIME_S),
        record_key=str,
        mark_prefix="",
        decode=lambda _: None,
        mark_ttl_s=1.0,
    )
    records.confirmations(["a", "b"])
    assert pipeline.called == ["result", "result", "marks", "record", "record"]
