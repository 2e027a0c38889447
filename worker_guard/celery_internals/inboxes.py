"""Inboxes: the pipes by which a pool with an event loop gives its children their jobs.

The pool writes a job to a child whose inbox it knows and, by the fair strategy, that is not busy.
It knows an inbox from the moment in which its child is up until the child was found gone. So an
inbox that is taken from what it knows gets no further job, by whatever strategy; what is being
written to it is written to its end; and the replacement, which may get the same pipe, makes it
known again when it is up. Neither a reconnect nor ``AsynPool.flush`` adds one.

Relies on ``AsynPool._all_inqueues``, ``_busy_workers``, ``_active_writes`` and
``_fileno_to_inq``, on the processes' ``inq`` and ``inqW_fd``, and on
``billiard.pool.Worker.workloop``, which passes over a request that is false.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from typing import Any

#: What the functions below need of the pool.
NEEDED = ("_all_inqueues", "_busy_workers", "_active_writes", "_fileno_to_inq")

_BODY = pickle.dumps((), protocol=2)

#: A request that is false. An idle child passes over it, and looks at its sentinel. Where one is
#: left unread, the replacement passes over it, too. Should a child be killed that has read the
#: header alone, what is left reads as a header of negative length, at which billiard ends the next
#: reader at once, and nobody waits for what never comes.
NUDGE = struct.pack("!i", len(_BODY)) + _BODY


def is_known(pool: Any, process: Any) -> bool:
    """Whether this child is up, so that the pool could give it a job."""
    return pool._fileno_to_inq.get(process.inqW_fd) is process


def close(pool: Any, process: Any) -> None:
    """Have the pool give this child no further job, and an idle one look at its sentinel.

    The pool compares how many are busy with how many there are, so it leaves both sets.
    """
    fd = process.inqW_fd
    pool._all_inqueues.discard(fd)
    pool._busy_workers.discard(fd)
    if fd not in pool._active_writes:
        # A full pipe holds jobs: the child looks at its sentinel before each.
        with contextlib.suppress(OSError):
            os.write(fd, NUDGE)


def reopen(pool: Any, process: Any, *, busy: bool) -> None:
    """Have the pool give this child jobs again, after the one that it runs; for a shutdown.

    Of one that was killed the inbox is emptied. Celery before 5.7 reads such pipes as it ends,
    message by message, and what is left of a nudge is none.
    """
    if not process._is_alive():
        reader = process.inq._reader
        while reader.poll(0):
            os.read(reader.fileno(), 65536)
    elif is_known(pool, process):
        pool._all_inqueues.add(process.inqW_fd)
        if busy:
            pool._busy_workers.add(process.inqW_fd)
