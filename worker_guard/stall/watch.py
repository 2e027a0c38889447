"""The job that looks at the consumer, and acts if it has stalled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from worker_guard.events import Event, Stalled, StallEnded, Trigger
from worker_guard.stall.policy import ActionDue, Look, NoLongerStalled, StallPolicy

#: Before the first look.
NO_LOOK = Look(consuming=False)

#: After the broker did not answer, the longest pause; then the count begins anew.
LONGEST_PAUSE_S = 60.0


class Consumer(Protocol):
    """The consumer, as the watch sees it."""

    #: Of so many queues ``waiting`` is asked at once.
    queues_at_once: ClassVar[int]

    def is_consuming(self) -> bool:
        """Whether it is connected and runs."""

    def has_polled(self) -> bool:
        """Whether it could read a message since this was last asked."""

    def is_free(self) -> bool:
        """Whether it would take a message now."""

    def held(self) -> int:
        """How many tasks in the pool have a message that is not acknowledged."""

    def queues(self) -> Sequence[str]:
        """The queues that it consumes from."""

    def waiting(self, queues: Sequence[str]) -> Mapping[str, int]:
        """How many messages wait in each of these queues. Raises if the broker does not answer.

        A queue that is not known is left out.
        """


class StallActor(Protocol):
    """Does what is due, or in a dry run does not."""

    def reconnect(self) -> None:
        """Have Celery connect to the broker anew."""

    def shut_down(self) -> None:
        """Have the worker finish its running tasks and end."""


class StallDryRun:
    """Leaves the consumer as it is."""

    def reconnect(self) -> None:
        """Leave the connection as it is."""

    def shut_down(self) -> None:
        """Leave the worker running."""


@dataclass(kw_only=True)
class StallWatch:
    """Looks at the consumer again and again."""

    name: ClassVar[str] = "stall"
    longest_pause_s: ClassVar[float] = LONGEST_PAUSE_S

    interval_s: float
    policy: StallPolicy
    consumer: Consumer
    actor: StallActor
    report: Callable[[Event], None]
    monotonic: Callable[[], float]
    #: What the last look found.
    look: Look = NO_LOOK

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Look once: observe, decide, act, report.

        Not twice in one turn of the loop: no message could have come in between.
        """
        if not self.consumer.has_polled():
            return
        consuming = self.consumer.is_consuming()
        free = consuming and self.consumer.is_free()
        waiting: dict[str, int] | None = None
        try:
            if free and self.policy.wants_depth(self.monotonic()):
                asked: dict[str, int] = {}
                queues, most = self.consumer.queues(), self.consumer.queues_at_once
                for start in range(0, len(queues), most):
                    if start:
                        yield
                    asked.update(self.consumer.waiting(queues[start : start + most]))
                waiting = asked
        finally:
            # If the broker did not answer, this is a look all the same; nothing follows from it.
            held = self.consumer.held() if waiting else 0
            self.look = Look(consuming=consuming, free=free, waiting=waiting, held=held)
            self._act(self.policy.judge(self.look, self.monotonic()))

    def _act(self, change: ActionDue | NoLongerStalled | None) -> None:
        if change is None:
            return
        queue, messages = self.look.fullest or (None, 0 if self.look.waiting is not None else None)
        event = Stalled if isinstance(change, ActionDue) else StallEnded
        self.report(
            event(
                queue=queue,
                waiting_messages=messages,
                idle_s=round(self.policy.idle_s(self.monotonic()), 1),
                action=change.action,
            )
        )
        if event is Stalled and change.action == "reconnect":
            self.actor.reconnect()
        elif event is Stalled and change.action == "shutdown":
            self.actor.shut_down()
