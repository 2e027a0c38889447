"""The part that notices a stalled consumer, and a main loop that hangs."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from types import FrameType
from typing import Any, ClassVar

from celery import signals

from worker_guard import celery_internals
from worker_guard.celery_internals import MissingInternalError, TaskConsumer
from worker_guard.part import ON, Context, Part
from worker_guard.settings import PREFIX, Settings
from worker_guard.stall.blocked import BlockedRead
from worker_guard.stall.policy import StallPolicy, look_interval_s
from worker_guard.stall.unblock import Unblocker
from worker_guard.stall.watch import StallDryRun, StallWatch
from worker_guard.status_model import StallStatus
from worker_guard.values.masking import reason_of


class StallActing:
    """Does what is due about a stall."""

    def __init__(self, worker: Any, consumer: TaskConsumer) -> None:
        self._worker, self._consumer = worker, consumer

    def reconnect(self) -> None:
        """Have Celery connect to the broker anew."""
        self._consumer.reconnect()

    def shut_down(self) -> None:
        """Have the worker finish its running tasks and end."""
        celery_internals.shut_down_warmly(self._worker)


class StallPart(Part):
    """Notices a stalled consumer; frees a main loop that hangs, if it may."""

    name: ClassVar[str] = "stall"
    also: ClassVar[tuple[str, ...]] = ("unblock",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = context.settings
        self._hooks = ExitStack()
        self._consumer: TaskConsumer | None = None
        self._watch: StallWatch | None = None
        self._unblocker: Unblocker | None = None
        if settings.stall_after is None:
            self.states["stall"] = f"{PREFIX}stall_after is None"
        else:
            try:
                self._consumer = celery_internals.task_consumer(context.worker)
            except MissingInternalError as exc:
                self.states["stall"] = reason_of(exc)
            else:
                self._watch = self._make_watch(self._consumer, settings.stall_after)
                self.jobs.append(self._watch)
        off = _reason_not_to_unblock(context.worker, settings)
        self.states["unblock"] = off or ON
        if not off and settings.unblock_after is not None:
            self._unblocker = Unblocker(
                BlockedRead(settings.unblock_after),
                sample=celery_internals.sample_read,
                free=self._free,
                report=context.report,
                displaced=self._displaced,
                monotonic=context.monotonic,
            )
            self.jobs.append(self._unblocker)

    def start(self) -> None:
        """Begin to see the messages that come, and to take alarms."""
        if self._consumer is not None and self._watch is not None:
            self._hooks.callback(self._consumer.close)
            self._hooks.callback(self._consumer.watch_messages(self._message_came).undo)
        if self._unblocker is not None:
            self._hooks.callback(self._unblocker.stop)
            self._unblocker.start()
            signals.worker_process_init.connect(self._leave_child, weak=False)
            self._hooks.callback(signals.worker_process_init.disconnect, self._leave_child)

    def connected(self) -> None:
        """The consumer has a new connection: it gets the whole time again."""
        if self._watch is not None and self._consumer is not None:
            self._watch.policy.connected(
                self.context.monotonic(), healing_s=self._consumer.healing_s()
            )

    def stop(self, *, cold: bool) -> None:  # noqa: ARG002
        """Undo every hook."""
        self._hooks.close()

    def status(self, *, quick: bool) -> dict[str, Any]:  # noqa: ARG002
        """What the last look found."""
        watch = self._watch
        if watch is None:
            return {}
        policy, look, now = watch.policy, watch.look, self.context.monotonic()
        since_mono = policy.since_mono
        queue, messages = look.fullest or (None, None)
        return {
            "stall": StallStatus(
                stalled=since_mono is not None,
                since_s=None if since_mono is None else round(now - since_mono, 1),
                queue=queue,
                waiting_messages=messages,
                idle_s=round(policy.idle_s(now), 1),
                action=policy.last_action,
                reconnects=policy.reconnects(now),
                held_back_by=look.held if policy.last_action == "wait" else 0,
            )
        }

    def _make_watch(self, consumer: TaskConsumer, after_s: float) -> StallWatch:
        context, settings = self.context, self.context.settings
        interval_s = look_interval_s(after_s)
        return StallWatch(
            interval_s=interval_s,
            policy=StallPolicy(
                after_s=after_s,
                interval_s=interval_s,
                action=settings.stall_action,
                can_reconnect=consumer.can_reconnect,
                can_shut_down=consumer.can_shut_down,
                now=context.monotonic(),
            ),
            consumer=consumer,
            actor=StallDryRun() if settings.dry_run else StallActing(context.worker, consumer),
            report=context.report,
            monotonic=context.monotonic,
        )

    def _message_came(self) -> None:
        if self._watch is not None:
            self._watch.policy.message_mono = self.context.monotonic()

    def _free(self, frame: FrameType | None) -> None:
        celery_internals.end_read(self.context.worker, frame)

    def _leave_child(self, **_: Any) -> None:
        if self._unblocker is not None:
            self._unblocker.leave_child()

    def _displaced(self) -> None:
        self.states["unblock"] = "the application has installed a handler of SIGALRM"


def _reason_not_to_unblock(worker: Any, settings: Settings) -> str:
    """Why a main loop that hangs is not freed; empty if it is."""
    pool, off = celery_internals.pool_name(worker), ""
    if settings.unblock_after is None:
        off = f"{PREFIX}unblock_after is None"
    elif settings.dry_run:
        off = "a dry run"
    elif pool == "solo":
        off = "not with the solo pool, whose tasks run in the main loop"
    elif getattr(worker.pool, "is_green", False):
        off = f"not with {pool}: a signal does not interrupt its reads"
    elif signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        off = "the application has a handler of SIGALRM"
    else:
        try:
            celery_internals.check_platform()
        except MissingInternalError as exc:
            off = reason_of(exc)
    return off
