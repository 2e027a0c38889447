"""Stalled consumers of RabbitMQ: real workers behind a proxy whose connections go dead.

They run where WORKER_GUARD_TEST_RABBITMQ names a server; each test has a queue of its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu.connection import Connection
from kombu.entity import Queue

from tests.harness.proxy import CONSUME, Proxy
from tests.harness.redis_server import RedisServer
from tests.harness.stall_app import SINGLE_ACTIVE
from tests.harness.workers import NEVER_DUE, Fleet, Worker, fleet, wait_for

APP = "tests.harness.stall_app"

#: Four times as long as the guard waits: nothing is to happen meanwhile.
LONG_S = 8.0

FAST = {
    "worker_guard_stall_after": 2.0,
    "worker_guard_stall_action": "shutdown",
    "broker_heartbeat": 0,  # nor does Celery heal it by itself
    "task_ignore_result": True,
}


class Stand:
    """Workers behind a proxy before RabbitMQ, with two places each; runs are noted in Redis."""

    def __init__(self, url: str, proxy: Proxy, workers: Fleet, redis: RedisServer) -> None:
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0] or "guest:guest"
        self.by_proxy = parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}").geturl()
        self.url, self.proxy, self.fleet, self.redis = url, proxy, workers, redis
        #: RabbitMQ lets no two workers have one name, not even for a moment after one has ended.
        self.name = f"{os.getpid()}-{time.monotonic_ns()}"
        self.queue = f"stalls-{self.name}"

    def start(self, pool: str = "prefork", name: str = "w", **arguments: Any) -> Worker:
        """Start a worker behind the proxy."""
        worker = self.begin(name, "-P", pool, conf={"broker_url": self.by_proxy}, **arguments)
        assert worker.events("started")[0]["parts"]["stall"] == "on"
        return worker

    def begin(self, name: str, *options: str, **arguments: Any) -> Worker:
        """Start a worker, without the proxy unless the configuration says so."""
        always = ("-Q", self.queue, "--concurrency=2", "--without-mingle")
        return self.fleet.start(
            f"{name}-{self.name}", *always, *options, app_module=APP, **arguments
        )

    def send(
        self, times: int = 1, seconds: float = 0.0, task: str = "runs", **how: Any
    ) -> set[str]:
        """Publish tasks."""
        url = self.redis.url(0)
        options = {"queue": self.queue, **how}
        return {self.fleet.send(task, url, seconds, **options) for _ in range(times)}

    def _noted(self, key: str) -> list[str]:
        client: Any = self.redis.client
        return [each.decode() for each in client.lrange(key, 0, -1)]

    def ran(self) -> list[str]:
        """The ids of the tasks that began, once for each time."""
        return self._noted("ran")

    def works(self) -> None:
        """Wait until tasks have run."""
        self.end(self.send(3))

    def end(self, sent: set[str]) -> None:
        """Wait until these have ended, each once."""
        wait_for(lambda: sent <= set(self._noted("ended")), "the tasks to end", 120)
        assert sorted(each for each in self.ran() if each in sent) == sorted(sent)


@pytest.fixture
def make_stand(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Stand]]:
    """Makes the stand; settings can differ."""
    url = os.environ.get("WORKER_GUARD_TEST_RABBITMQ")
    if not url:
        pytest.skip("WORKER_GUARD_TEST_RABBITMQ names no RabbitMQ, as in amqp://127.0.0.1:5672//")
    with contextlib.ExitStack() as stack:
        made: list[Stand] = []

        def make(**conf: Any) -> Stand:
            servers = {"broker_url": url, "result_backend": redis_server.url(1)}
            proxy = stack.enter_context(Proxy(urlsplit(url).port or 5672, CONSUME))
            workers = stack.enter_context(fleet(tmp_path, **servers, **NEVER_DUE, **FAST | conf))
            made.append(Stand(url, proxy, workers, redis_server))
            return made[-1]

        yield make
    with Connection(url) as connection:
        for each in made:
            Queue(each.queue)(connection.default_channel).delete()


def actions(worker: Worker) -> list[str]:
    """What the guard did about it, in turn."""
    return [each["action"] for each in worker.events("stalled")]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_dead_connection_ends_the_worker(make_stand: Any, pool: str) -> None:
    """RabbitMQ sends as many as the prefetch into it; those behind them wait."""
    stand = make_stand()
    worker = stand.start(pool)
    stand.works()
    assert stand.proxy.deaden_consuming() >= 1
    sent = stand.send(12)
    assert worker.ends() == 0
    (stalled,) = worker.events("stalled")
    assert stalled["action"] == "shutdown"
    assert stalled["queue"] == stand.queue
    assert stalled["waiting_messages"] >= 1
    assert stalled["idle_s"] >= 2.0
    stand.proxy.__exit__()  # RabbitMQ learns now that the connection is gone
    stand.begin("next")
    stand.end(sent)


@pytest.mark.parametrize(
    ("pool", "conf", "action"),
    [
        ("prefork", {"worker_guard_stall_action": "reconnect"}, "log"),
        ("gevent", {"worker_guard_stall_action": "reconnect"}, "log"),
        ("gevent", {"worker_guard_stall_action": "shutdown"}, "log"),
        ("prefork", {"worker_guard_dry_run": True}, "shutdown"),
    ],
)
def test_there_is_no_reconnect(
    make_stand: Any, pool: str, conf: dict[str, Any], action: str
) -> None:
    """It would end a worker of Celery 5.7; a dry run does nothing either.

    Nor is there a shutdown with gevent: it would not end.
    """
    stand = make_stand(**conf)
    worker = stand.start(pool)
    stand.works()
    stand.proxy.deaden_consuming()
    stand.send(12)
    wait_for(lambda: worker.events("stalled"), "the stall")
    time.sleep(LONG_S)
    assert set(actions(worker)) == {action}
    assert worker.process.poll() is None
    worker.process.kill()


def test_with_heartbeats_celery_comes_first(make_stand: Any) -> None:
    """It connects again, before the guard would act."""
    stand = make_stand(broker_heartbeat=4)
    worker = stand.start()
    stand.works()
    stand.proxy.deaden_consuming()
    stand.send(12)
    wait_for(lambda: "onnection to broker lost" in worker.text(), "Celery to notice")
    assert worker.events("stalled") == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_all_places_are_taken(make_stand: Any, pool: str) -> None:
    """Longer than the guard waits, and messages wait behind them."""
    stand = make_stand(worker_prefetch_multiplier=1)
    worker = stand.start(pool)
    stand.works()
    stand.end(stand.send(6, seconds=4.5))
    assert worker.events("stalled") == []


def test_etas_that_fill_the_prefetch(make_stand: Any) -> None:
    """The prefetch grows with them; rate limits hold the others."""
    stand = make_stand(task_annotations={"harness.runs_late": {"rate_limit": "30/m"}})
    worker = stand.start()
    stand.works()
    late = stand.send(8, countdown=10)
    limited = stand.send(8, task="runs_late")
    stand.end(late | limited | stand.send(8))
    assert worker.events("stalled") == []


def test_a_cancelled_queue_and_one_that_is_gone(make_stand: Any) -> None:
    """Its messages wait for as long as somebody wishes."""
    stand = make_stand()
    worker = stand.start()
    stand.works()
    control = stand.fleet.app.control
    control.cancel_consumer(stand.queue, destination=[worker.name], reply=True)
    sent = stand.send(5)
    time.sleep(LONG_S)
    control.add_consumer(stand.queue, destination=[worker.name], reply=True)
    stand.end(sent)
    assert worker.events("stalled") == []
    assert worker.events("part_failed") == []


def test_two_workers_on_one_queue(make_stand: Any) -> None:
    """One is busy, and the other takes what waits; then both are."""
    stand = make_stand(worker_prefetch_multiplier=1)
    workers = [stand.start(name=name) for name in ("a", "b")]
    stand.works()
    for _ in range(6):
        stand.send(5, seconds=1.5)
        time.sleep(1.0)
    wait_for(lambda: len(set(stand.ran())) == 33, "all of them", 120)
    assert [each.events("stalled") for each in workers] == [[], []]


def test_a_queue_with_a_single_active_consumer(make_stand: Any) -> None:
    """What waits there is for the other worker."""
    stand = make_stand(worker_prefetch_multiplier=1, worker_guard_stall_action="log")
    arguments = {"x-single-active-consumer": True}
    stand.fleet.app.amqp.queues.add(Queue(stand.queue, queue_arguments=arguments))
    workers = [stand.start(name=name, environ={SINGLE_ACTIVE: stand.queue}) for name in ("a", "b")]
    stand.end(stand.send(8, seconds=3.0))
    assert [each.events("stalled") for each in workers] == [[], []]


def test_the_guards_own_shutdown_costs_no_acknowledgement(make_stand: Any) -> None:
    """Tasks with ``acks_late`` run meanwhile."""
    stand = make_stand(worker_guard_stall_after=None)
    worker = stand.begin("w")
    late = stand.send(3, 3.0, "runs_late")
    wait_for(lambda: len(stand.ran()) == 2, "two of them to begin")
    assert worker.ask("shut_down_as_the_guard_does") == "ok"
    assert worker.ends() == 0
    stand.begin("next")
    stand.end(late)
