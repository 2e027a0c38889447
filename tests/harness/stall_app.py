"""The tests' app, with tasks that note each run, and commands that do harm to the consumer."""

from __future__ import annotations

import os
import time
from typing import Any

import redis
from celery.worker.control import control_command, inspect_command
from kombu.entity import Queue

from tests.harness.app import app
from worker_guard import celery_internals
from worker_guard.stall import part
from worker_guard.stall.blocked import BlockedRead

__all__ = ["app"]

#: Shorter than a setting may be, so that a test need not wait for half a minute.
UNBLOCK_AFTER = "WORKER_GUARD_TEST_UNBLOCK_AFTER"

#: A queue of RabbitMQ that only one of its consumers gets messages from.
SINGLE_ACTIVE = "WORKER_GUARD_TEST_SINGLE_ACTIVE"

if os.environ.get(SINGLE_ACTIVE):
    arguments = {"x-single-active-consumer": True}
    app.conf.task_queues = [Queue(os.environ[SINGLE_ACTIVE], queue_arguments=arguments)]

if os.environ.get(UNBLOCK_AFTER):
    vars(part)["BlockedRead"] = lambda _after_s: BlockedRead(float(os.environ[UNBLOCK_AFTER]))


def _note(url: str, key: str, member: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.rpush(key, member)


@app.task(name="harness.runs", bind=True)
def runs(self: Any, url: str, seconds: float = 0.0) -> None:
    """Note in a list of Redis that this task runs, and sleep."""
    _note(url, "ran", self.request.id)
    time.sleep(seconds)
    _note(url, "ended", self.request.id)


@app.task(name="harness.runs_late", bind=True, acks_late=True)
def runs_late(self: Any, url: str, seconds: float = 0.0) -> None:
    """The same, acknowledged when it has ended."""
    runs.run.__func__(self, url, seconds)


@control_command()
def keep_in_timers(state: Any, times: int, seconds: float) -> str:
    """Hold one turn of the loop by timers that come due one after the other."""
    for number in range(times):
        state.consumer.timer.call_after(0.95 * seconds * number, time.sleep, (seconds,))
    return "they are due"


@control_command()
def lose_silently(state: Any) -> str:
    """Close the connection that waits for messages, in a timer callback, without an error."""
    consumer = state.consumer

    def lose() -> None:
        consumer.task_consumer.channel.client.connection.disconnect()

    if consumer.hub is None:
        consumer.call_soon(lose)
    else:
        consumer.timer.call_after(0.5, lose)
    return "ok"


@control_command()
def shut_down_as_the_guard_does(state: Any) -> str:
    """The guard's own warm shutdown."""
    celery_internals.shut_down_warmly(state.consumer.controller)
    return "ok"


@inspect_command()
def connections(state: Any) -> int:
    """How often the consumer has connected."""
    return int(state.consumer.restart_count)
