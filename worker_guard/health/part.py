"""The part that knows whether a worker is alive and ready, and writes that into a file."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ClassVar

from celery import signals
from celery.worker import state as worker_state

from worker_guard import celery_internals
from worker_guard.backoff import Backoff
from worker_guard.celery_internals import MissingInternalError, PoolChildren
from worker_guard.health.heartbeat import Heartbeat
from worker_guard.health.state import HealthFacts, max_age_s, state_of, why_not_alive, why_not_ready
from worker_guard.part import Context, Part
from worker_guard.scheduler import REST_S
from worker_guard.settings import PREFIX
from worker_guard.status_model import HealthStatus
from worker_guard.values.moments import rfc3339

#: Seconds within which tasks that hold the loop are one flow: not each has its own record in the
#: file.
FLOW_S = 1.0


class HealthPart(Part):
    """Follows the main loop and the children, for the heartbeat file, ``/livez`` and ``/readyz``.

    The file is written by the main loop itself, so it goes stale when the loop hangs.
    """

    name: ClassVar[str] = "health"
    also: ClassVar[tuple[str, ...]] = (Heartbeat.name,)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = context.settings
        self._hooks = ExitStack()
        self._failures = Backoff(self.name, first_pause_s=settings.interval, report=context.report)
        self._pid = os.getpid()
        self._turned_mono = context.monotonic()
        self._was_connected = self._stopping = False
        self._task_began: tuple[float, float] | None = None
        self._holding = 0
        self._task_recorded = False
        self._received = celery_internals.count_received()
        self._received_mono: float | None = None
        self._is_green = celery_internals.pool_name(context.worker) in ("gevent", "eventlet")
        self._pool: PoolChildren | None = None
        # Without it there are no children to count.
        with suppress(MissingInternalError):
            self._pool = PoolChildren(context.worker)
        self._heartbeat: Heartbeat | None = None
        if settings.heartbeat_file is None:
            self.states[Heartbeat.name] = f"{PREFIX}heartbeat_file is None"
            return
        path = celery_internals.expand_node(settings.heartbeat_file, context.worker.hostname)
        self._heartbeat = Heartbeat(
            # Absolute, for a worker that changes its directory later.
            path=os.path.abspath(path),
            interval_s=settings.heartbeat_interval,
            record=self._record,
            monotonic=context.monotonic,
        )
        self.jobs.append(self._heartbeat)

    def start(self) -> None:
        """Begin to follow the loop, and write the file for the first time."""
        self._hooks.enter_context(celery_internals.watch_turns(self._turned))
        self._hooks.enter_context(
            celery_internals.watch_full_pool(self.context.worker, self._pool_is_full)
        )
        if celery_internals.pool_name(self.context.worker) == "solo":
            signals.task_prerun.connect(self._task_begins, weak=False)
            self._hooks.callback(signals.task_prerun.disconnect, self._task_begins)
            signals.task_postrun.connect(self._task_ended, weak=False)
            self._hooks.callback(signals.task_postrun.disconnect, self._task_ended)
        self._write()

    def connected(self) -> None:
        """The worker is connected; the file says so when its loop turns."""
        self._was_connected = True
        # A try to connect may take longer than a turn of a connected loop.
        self._turned_mono = self.context.monotonic()
        self.context.scheduler.run_soon(Heartbeat.name)

    def stop(self, *, cold: bool) -> None:  # noqa: ARG002
        """Say that the worker stops; the file is removed when the process ends."""
        self._hooks.close()
        self._stopping = True
        if self._heartbeat is not None:
            atexit.register(self._remove)
            self._heartbeat.write()

    def status(self, *, quick: bool) -> dict[str, Any]:  # noqa: ARG002
        """Whether the worker is alive and ready, as of now."""
        facts = self._facts()
        not_alive, not_ready = why_not_alive(facts), why_not_ready(facts)
        return {
            "health": HealthStatus(
                state=state_of(facts),
                alive=not not_alive,
                ready=not not_ready,
                why_not=not_alive or not_ready or None,
                children_up=facts.children_up,
                children_expected=facts.children_expected,
                last_message_s=self._last_message_s(),
                turned_s=round(facts.turned_s, 1),
                task_s=None if facts.task_s is None else round(facts.task_s, 1),
            )
        }

    # -- what is known ---------------------------------------------------------------------

    def _facts(self) -> HealthFacts:
        stall = self.context.status_of("stall").get("stall")
        now = self.context.monotonic()
        task = self._task_began
        return HealthFacts(
            was_connected=self._was_connected,
            connected=self.context.scheduler.is_armed,
            stalled=stall is not None and stall.stalled,
            stopping=self._stopping or celery_internals.is_stopping(),
            children_up=None if self._pool is None else self._pool.count_up(),
            children_expected=None if self._pool is None else self._pool.size(),
            turned_s=max(0.0, now - self._turned_mono),
            task_s=None if task is None else now - task[0],
        )

    def _record(self) -> Mapping[str, object]:
        """What stands in the file."""
        facts, task = self._facts(), self._task_began
        self._task_recorded = task is not None
        return {
            "worker": str(self.context.worker.hostname),
            "pid": self._pid,
            "timestamp": rfc3339(self.context.now()),
            "state": state_of(facts),
            "children_up": facts.children_up,
            "children_expected": facts.children_expected,
            "active_tasks": len(worker_state.active_requests),
            "last_message_s": self._last_message_s(),
            "task_since": None if task is None else rfc3339(task[1]),
            "max_age_s": max_age_s(facts),
            "monotonic": round(self.context.monotonic(), 3),
        }

    def _last_message_s(self) -> float | None:
        received, now = celery_internals.count_received(), self.context.monotonic()
        if received > self._received:
            self._received_mono = now
        self._received = received
        return None if self._received_mono is None else round(now - self._received_mono, 1)

    # -- what happens ----------------------------------------------------------------------

    def _turned(self) -> None:
        """The main loop turns. Never raises: that would end the worker, or its connection."""
        self._turned_mono = self.context.monotonic()
        try:
            if not self._stopping and celery_internals.is_stopping():
                self._stopping = True
                self._write()
            if not self.context.scheduler.is_armed:
                self._turned_without_broker()
        except Exception as exc:  # noqa: BLE001 - reported; the next turn tries again
            self._failed(exc)

    def _turned_without_broker(self) -> None:
        self.context.scheduler.turn()
        if self._is_green:
            # While it waits to connect, Celery's consumer sleeps without letting other greenlets
            # run, and one of them answers probes.
            time.sleep(REST_S)

    @contextmanager
    def _pool_is_full(self) -> Iterator[None]:
        """The loop waits for a task to end, since the pool has no place for the next one."""
        self._task_begins()
        try:
            yield
        finally:
            self._task_ended()

    def _task_begins(self, **_: Any) -> None:
        """A task of a solo pool begins; the loop does not turn until it has ended."""
        self._holding += 1
        if self._holding > 1:
            return  # the first one goes on, and has called this one
        now = self.context.monotonic()
        self._task_began = (now, self.context.now())
        heartbeat = self._heartbeat
        if heartbeat is None:
            return
        # Of a flow of short tasks, not each is written.
        if not self._task_recorded or now - heartbeat.written_mono > FLOW_S:
            self._write()

    def _task_ended(self, **_: Any) -> None:
        self._holding = max(0, self._holding - 1)
        if not self._holding:
            self._task_began = None
            self._turned_mono = self.context.monotonic()  # one turn can run many tasks

    def _write(self) -> None:
        """Write the file now, unless a write failed and the pause is not over."""
        self.context.scheduler.run_now(Heartbeat.name)

    def _failed(self, error: Exception) -> None:
        self._failures.noticed(error, self.context.monotonic())

    def _remove(self) -> None:
        if self._heartbeat is not None and os.getpid() == self._pid:
            self._heartbeat.remove()
