"""The job that looks at the consumer: a look counts if a message could have come since the last."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from kombu.asynchronous import Hub

from worker_guard.celery_internals.consumer_kinds import RedisConsumer
from worker_guard.events import Event
from worker_guard.stall.policy import StallPolicy
from worker_guard.stall.watch import StallDryRun, StallWatch


class Stalled:
    """A consumer that takes nothing, though messages wait."""

    queues_at_once: ClassVar[int] = 50

    def __init__(self) -> None:
        self.polled = True

    def has_polled(self) -> bool:
        return self.polled

    def is_consuming(self) -> bool:
        return True

    def is_free(self) -> bool:
        return True

    def held(self) -> int:
        return 0

    def queues(self) -> Sequence[str]:
        return ["work"]

    def waiting(self, queues: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(queues, 5)


def test_looks_in_one_turn_of_the_loop_count_once() -> None:
    """Only the guard itself kept the loop from reading a message in between."""
    now, told = [0.0], list[Event]()
    consumer = Stalled()
    policy = StallPolicy(
        after_s=3.0, interval_s=1.0, action="log", can_reconnect=True, can_shut_down=True, now=0.0
    )
    watch = StallWatch(
        interval_s=1.0,
        policy=policy,
        consumer=consumer,
        actor=StallDryRun(),
        report=told.append,
        monotonic=lambda: now[0],
    )

    def look() -> None:
        now[0] += 1.0
        list(watch.run())

    look()
    consumer.polled = False
    for _ in range(3):
        look()
    assert told == []
    consumer.polled = True
    look()
    look()
    assert len(told) == 1


def test_a_turn_of_the_loop_is_told_from_the_next() -> None:
    """By kombu's own hub: all that is due runs in one turn."""
    hub, answers = Hub(), list[bool]()
    consumer: Any = object.__new__(RedisConsumer)
    consumer._has_polled = True
    consumer._consumer = SimpleNamespace(hub=hub, call_soon=hub.call_soon)
    for _ in range(3):
        hub.timer.call_after(0.0, lambda: answers.append(consumer.has_polled()))
    source, sink = os.pipe()
    try:
        os.write(sink, b".")
        hub.add_reader(source, lambda: None)
        turns = hub.create_loop()
        next(turns)
        assert answers == [True, False, False]
        hub.timer.call_after(0.0, lambda: answers.append(consumer.has_polled()))
        next(turns)
        assert answers[3:] == [True]
    finally:
        hub.close()
        os.close(source)
        os.close(sink)
