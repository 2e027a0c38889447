"""Stalled consumers: real workers behind a proxy whose connections go dead.

Each fault is one that Celery does not heal by itself, or not on each release. The times are short,
so the guard often acts before Celery's own healing, where there is one.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.proxy import Proxy
from tests.harness.redis_server import RedisServer
from tests.harness.stall_app import UNBLOCK_AFTER
from tests.harness.workers import NEVER_DUE, Fleet, Worker, fleet, wait_for

APP = "tests.harness.stall_app"

FAST = {
    "worker_guard_stall_after": 2.0,
    "worker_guard_stall_action": "reconnect",
    # kombu 5.7 would heal some of it.
    "broker_transport_options": {"health_check_interval": 0},
}


class Stand:
    """A worker behind a proxy, and tasks that note each run; the test itself needs no proxy."""

    def __init__(self, server: RedisServer, proxy: Proxy, workers: Fleet) -> None:
        self.server, self.proxy, self.fleet = server, proxy, workers
        self.client: Any = server.client

    def start(self, pool: str = "prefork", *options: str, **arguments: Any) -> Worker:
        """Start a worker behind the proxy, with two places."""
        worker = self.fleet.start(
            "w",
            *("-P", pool, "--concurrency=2"),
            *options,
            app_module=APP,
            conf={"broker_url": self.proxy.url(0), **arguments.pop("conf", {})},
            **arguments,
        )
        assert worker.events("started")[0]["parts"]["stall"] == "on"
        return worker

    def send(self, times: int = 1, *, task: str = "runs", seconds: float = 0.0) -> set[str]:
        """Publish tasks."""
        url = self.server.url(0)
        return {self.fleet.send(task, url, seconds) for _ in range(times)}

    def ran(self) -> list[str]:
        """The ids of the tasks that began, once for each time."""
        return [each.decode() for each in self.client.lrange("ran", 0, -1)]

    def ended(self) -> list[str]:
        """Those that ended."""
        return [each.decode() for each in self.client.lrange("ended", 0, -1)]

    def works(self) -> None:
        """Wait until tasks run, and are acknowledged, and the worker waits for the next one."""
        sent = self.send(3)
        wait_for(lambda: sent <= set(self.ended()), "three tasks")
        wait_for(lambda: not self.client.hlen("unacked"), "their acknowledgements")
        wait_for(self.proxy.consuming, "a BRPOP")

    def heals(self, lost: int = 0) -> set[str]:
        """Wait until new tasks run, all but those that Redis popped into a dead connection."""
        sent = self.send(5)
        wait_for(lambda: len(sent & set(self.ended())) >= 5 - lost, "the worker to go on")
        return sent


@pytest.fixture
def make_stand(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Stand]]:
    """Makes the stand; settings can differ."""
    with contextlib.ExitStack() as stack:

        def make(**conf: Any) -> Stand:
            urls = {
                "broker_url": redis_server.url(0),
                "result_backend": redis_server.url(1),
                "task_ignore_result": True,
            }
            proxy = stack.enter_context(Proxy(redis_server.port))
            workers = stack.enter_context(fleet(tmp_path, **urls, **NEVER_DUE, **FAST | conf))
            return Stand(redis_server, proxy, workers)

        yield make


def actions(worker: Worker, event: str = "stalled") -> list[str]:
    """What the guard did about it, in turn."""
    return [each["action"] for each in worker.events(event)]


def once(stand: Stand) -> None:
    """No task ran twice."""
    assert sorted(stand.ran()) == sorted(set(stand.ran()))


# -- healing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.slow),
        pytest.param("solo", marks=pytest.mark.slow),
        pytest.param("gevent", marks=pytest.mark.slow),
    ],
)
def test_a_dead_connection_is_made_anew(make_stand: Any, pool: str) -> None:
    """Only the one that waits for messages is dead: the worker answers, and does nothing."""
    stand = make_stand()
    worker = stand.start(pool)
    stand.works()
    assert stand.proxy.deaden_consuming() == 1
    stand.heals(lost=1)
    once(stand)
    wait_for(lambda: worker.events("stall_ended"), "the stall to end")
    (stalled,) = worker.events("stalled")
    assert stalled["action"] == "reconnect"
    assert stalled["queue"] == "work"
    assert stalled["waiting_messages"] == 4
    assert stalled["idle_s"] >= 2.0
    status = worker.ask("guard")["stall"]
    assert (status["stalled"], status["reconnects"]) == (False, 1)
    assert actions(worker, "stall_ended") == ["reconnect"]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_restart_of_redis(make_stand: Any, pool: str) -> None:
    """Old releases forget to wait for messages, and log no error."""
    stand = make_stand()
    worker = stand.start(pool)
    stand.works()
    stand.server.kill()
    stand.server.start()
    stand.heals()
    once(stand)
    assert set(actions(worker)) <= {"reconnect"}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_connection_that_is_closed_without_an_error(make_stand: Any, pool: str) -> None:
    """In the worker, by a timer: before Celery 5.6 it never waits for messages again."""
    stand = make_stand()
    worker = stand.start(pool)
    stand.works()
    assert worker.ask("lose_silently") == "ok"
    stand.heals()
    once(stand)
    assert set(actions(worker)) <= {"reconnect"}


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
def test_a_main_loop_that_hangs_is_freed(make_stand: Any, pool: str) -> None:
    """All connections are dead, and the loop reads from one: no timer, no ping, no SIGTERM."""
    stand = make_stand(worker_guard_unblock_after=30)
    worker = stand.start(pool, environ={UNBLOCK_AFTER: "4"})
    assert worker.events("started")[0]["parts"]["unblock"] == "on"
    stand.works()
    stand.proxy.deaden_all()
    stand.heals(lost=1)
    once(stand)
    wait_for(lambda: "unblock" in actions(worker, "stall_ended"), "the guard to say so")
    assert worker.stop() == 0


# -- what it must not cost -----------------------------------------------------------------


def test_a_reconnect_waits_for_tasks_that_would_run_twice(make_stand: Any) -> None:
    """With ``acks_late`` the broker would deliver them again. Then it connects again."""
    stand = make_stand()
    worker = stand.start()
    stand.works()
    late = stand.send(task="runs_late", seconds=6.0)
    wait_for(lambda: late <= set(stand.ran()), "the task to begin")
    wait_for(stand.proxy.consuming, "a BRPOP")
    stand.proxy.deaden_consuming()
    sent = stand.send(4)
    wait_for(lambda: actions(worker) == ["wait"], "the guard to wait")
    assert not late & set(stand.ended())
    status = worker.ask("guard")["stall"]
    assert (status["stalled"], status["held_back_by"]) == (True, 1)
    wait_for(lambda: len(sent & set(stand.ended())) == 3, "the worker to go on")
    assert actions(worker) == ["wait", "reconnect"]
    assert late <= set(stand.ended())
    once(stand)


@pytest.mark.slow
def test_a_running_task_goes_on(make_stand: Any) -> None:
    """One that is acknowledged already ends, once."""
    stand = make_stand()
    worker = stand.start()
    stand.works()
    long = stand.send(seconds=8.0)
    wait_for(lambda: long <= set(stand.ran()), "the task to begin")
    wait_for(stand.proxy.consuming, "a BRPOP")
    stand.proxy.deaden_consuming()
    stand.heals(lost=1)
    assert actions(worker) == ["reconnect"]
    wait_for(lambda: long <= set(stand.ended()), "the task to end")
    once(stand)


def test_a_dry_run_says_so_and_does_nothing(make_stand: Any) -> None:
    """Nor does ``log``, which is the default."""
    stand = make_stand(worker_guard_dry_run=True)
    worker = stand.start()
    stand.works()
    connections = worker.ask("connections")
    stand.proxy.deaden_consuming()
    stand.send(5)
    wait_for(lambda: len(worker.events("stalled")) == 2, "the guard to say so twice")
    assert worker.events("stalled")[0]["dry_run"]
    assert worker.ask("connections") == connections
    worker.process.kill()  # plain Celery's warm shutdown never ends here


# -- shutdown ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_shutdown_connects_again_first(make_stand: Any, pool: str) -> None:
    """And ends the worker if that did not last."""
    stand = make_stand(worker_guard_stall_action="shutdown")
    worker = stand.start(pool)
    stand.works()
    stand.proxy.deaden_consuming()
    stand.heals(lost=1)
    wait_for(lambda: actions(worker) == ["reconnect"], "the first stall")
    wait_for(lambda: worker.events("stall_ended"), "its end")
    wait_for(stand.proxy.consuming, "a BRPOP")
    stand.proxy.deaden_consuming()
    sent = stand.send(5)
    assert worker.ends() == 0
    assert actions(worker) == ["reconnect", "shutdown"]
    stand.fleet.start("next", app_module=APP)
    wait_for(lambda: len(sent & set(stand.ended())) == 4, "the next worker to run the rest")
    once(stand)


@pytest.mark.parametrize("dead", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_guards_own_shutdown_costs_no_acknowledgement(make_stand: Any, dead: bool) -> None:
    """Tasks with ``acks_late`` run meanwhile; it ends also if a connection is dead."""
    stand = make_stand(worker_guard_stall_after=None)
    worker = stand.fleet.start(
        "w", "--concurrency=2", app_module=APP, conf={"broker_url": stand.proxy.url(0)}
    )
    stand.works()
    late = stand.send(2, task="runs_late", seconds=3.0)
    wait_for(lambda: late <= set(stand.ran()), "the tasks to begin")
    late |= stand.send(1, task="runs_late")  # this one waits in the worker, and goes back
    wait_for(lambda: stand.client.hlen("unacked") == 3, "the third one to be prefetched")
    if dead:
        wait_for(stand.proxy.consuming, "a BRPOP")
        stand.proxy.deaden_consuming()
    assert worker.ask("shut_down_as_the_guard_does") == "ok"
    assert worker.ends() == 0
    assert len(late & set(stand.ended())) == 2
    stand.fleet.start("next", app_module=APP)
    wait_for(lambda: late <= set(stand.ended()), "the third one")
    once(stand)


# -- no false alarm ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "conf"),
    [
        ("prefork", {}),
        ("threads", {}),
        ("solo", {}),
        ("gevent", {}),
        ("prefork", {"worker_prefetch_multiplier": 1}),
        ("gevent", {"worker_prefetch_multiplier": 0}),
        ("prefork", {"worker_disable_prefetch": True}),
        ("prefork", {"task_acks_late": True, "worker_prefetch_multiplier": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_all_places_are_taken(make_stand: Any, pool: str, conf: dict[str, Any]) -> None:
    """Longer than the guard waits."""
    stand = make_stand(**conf)
    worker = stand.start(pool)
    stand.works()
    sent = stand.send(16, seconds=4.5)
    wait_for(lambda: sent <= set(stand.ended()), "all of them", 120)
    stand.heals()
    assert worker.events("stalled") == []


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_rate_limits_and_etas_that_fill_the_prefetch(make_stand: Any, pool: str) -> None:
    """The consumer takes none of those behind them."""
    stand = make_stand(task_annotations={"harness.runs_late": {"rate_limit": "30/m"}})
    worker = stand.start(pool)
    stand.works()
    url = stand.server.url(0)
    late = [stand.fleet.send("runs", url, countdown=12) for _ in range(8)]
    stand.send(8, task="runs_late")
    stand.send(8)
    wait_for(lambda: set(late) <= set(stand.ended()), "those with an ETA")
    assert worker.events("stalled") == []


@pytest.mark.slow
def test_a_cancelled_queue_and_one_that_comes_back(make_stand: Any) -> None:
    """Its messages wait for as long as somebody wishes."""
    stand = make_stand()
    worker = stand.start()
    stand.works()
    stand.fleet.app.control.cancel_consumer("work", destination=[worker.name], reply=True)
    sent = stand.send(5)
    time.sleep(8)  # four times as long as the guard waits: nothing is to happen
    assert worker.events("stalled") == []
    stand.fleet.app.control.add_consumer("work", destination=[worker.name], reply=True)
    wait_for(lambda: sent <= set(stand.ended()), "all of them")
    assert worker.events("stalled") == []


@pytest.mark.slow
def test_a_warm_shutdown_is_none(make_stand: Any) -> None:
    """It takes no message, and the queue is full."""
    stand = make_stand()
    worker = stand.start()
    stand.works()
    running = stand.send(2, seconds=10.0)
    wait_for(lambda: running <= set(stand.ran()), "them to run")
    stand.send(20)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ends() == 0
    assert worker.events("stalled") == []


def test_timers_that_hold_a_turn_of_the_loop(make_stand: Any) -> None:
    """Several looks in one turn find that messages wait; none could have been read in between."""
    stand = make_stand()
    worker = stand.start("prefork")
    stand.works()
    worker.ask("keep_in_timers", times=9, seconds=0.9)
    stand.heals()
    assert worker.events("stalled") == []
    once(stand)


@pytest.mark.slow
def test_three_workers_that_share_queues_with_priorities(make_stand: Any) -> None:
    """Bursts and pauses, of which each worker gets some."""
    stand = make_stand(
        task_queue_max_priority=9, broker_transport_options={"priority_steps": [0, 3, 6, 9]}
    )
    workers = [
        stand.fleet.start(
            name, "-Q", "work,other", "--concurrency=2", app_module=APP,
            conf={"broker_url": stand.proxy.url(0)},
        )
        for name in ("a", "b", "c")
    ]  # fmt: skip
    url, sent = stand.server.url(0), set()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for number in range(60):
            queue = ("work", "other")[number % 2]
            sent.add(stand.fleet.send("runs", url, 0.1, queue=queue, priority=number % 10))
        time.sleep(2.5)
    wait_for(lambda: sent <= set(stand.ended()), "all of them", 120)
    assert [worker.events("stalled") for worker in workers] == [[], [], []]
    once(stand)


def test_where_it_cannot_be_told_the_part_is_off(tmp_path: Path) -> None:
    """With the reason, and the worker works."""
    conf = {"broker_url": "memory://", "result_backend": "cache+memory://", **NEVER_DUE}
    with fleet(tmp_path, **conf, worker_guard_unblock_after=60) as workers:
        worker = workers.launch("w", "-P", "solo").logged(" ready.")
        (started,) = worker.events("started")
    assert started["parts"]["stall"] == "not with a broker of type memory"
    assert "solo" in started["parts"]["unblock"]
