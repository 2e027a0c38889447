"""Expired messages in a full set, in a process of its own: ``… burst guarded|plain MESSAGES MAX``.

Prints the processor time of Celery's ``Request.revoked`` per message, in microseconds, and how many
of the operators' ids are still in the set.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

OPERATORS = 1000
CHUNK = 1000

_PAST = datetime(2020, 1, 1, tzinfo=timezone.utc).isoformat()


def main(kind: str, messages: int, room: int) -> None:
    """Revoke, let the messages expire, and look."""
    os.environ["CELERY_WORKER_REVOKES_MAX"] = str(room)  # Celery reads it when it is imported
    from celery import Celery
    from celery.worker import state
    from celery.worker.request import Request
    from kombu.message import Message

    app = Celery("burst", set_as_current=False, backend="disabled://")
    task = app.task(name="burst.task")(_nothing)
    app.finalize()
    if kind == "guarded":
        _watch()
    operators = [f"operators-{n:025d}" for n in range(OPERATORS)]
    for each in operators:
        state.revoked.add(each)
    spent = 0.0
    for first in range(0, messages, CHUNK):
        requests = [
            Request(
                Message(
                    body=b"[[], {}, {}]",
                    content_type="application/json",
                    content_encoding="utf-8",
                    delivery_info={},
                    properties={},
                    headers={
                        "id": f"{n:036d}",
                        "task": "burst.task",
                        "expires": _PAST,
                        "ignore_result": True,
                    },
                ),
                app=app,
                task=task,
                on_ack=_nothing,
                on_reject=_nothing,
                hostname="burst",
                eventer=None,
                connection_errors=(),
            )
            for n in range(first, first + CHUNK)
        ]
        began = time.process_time()
        for each_request in requests:
            each_request.revoked()
        spent += time.process_time() - began
    held = sum(each in state.revoked for each in operators)
    print(spent / messages * 1e6, held)


def _nothing(*_: Any, **__: Any) -> None:
    """Acknowledge, or run."""


def _watch() -> None:
    from worker_guard.revoked.backfill import BackfillCounter
    from worker_guard.revoked.holder import Holder
    from worker_guard.revoked.ledger import Ledger
    from worker_guard.revoked.set_watch import RevokedWatch

    ledger = Ledger()
    holder = Holder(
        interval_s=30.0,
        ledger=ledger,
        lifetime_s=604_800.0,
        held_messages=tuple,
        on_ended=_nothing,
        report=_nothing,
        monotonic=time.monotonic,
    )
    listener: Any = SimpleNamespace(
        operator_revoked=_nothing, was_put_back=_nothing, watch_failed=_raise
    )
    queues: Any = SimpleNamespace(empty_for_s=lambda: None)
    watch = RevokedWatch(
        ledger=ledger,
        holder=holder,
        queues=queues,
        backfill=BackfillCounter(),
        dry_run=False,
        monotonic=time.monotonic,
        now=time.time,
        listener=listener,
    )
    blueprint = SimpleNamespace(steps={})
    worker = SimpleNamespace(consumer=SimpleNamespace(blueprint=blueprint, steps=()))
    watch.start(worker, before_statedb=())


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
