"""Inboxes: the pipes through which a pool with an event loop gives its children their jobs.

The pool writes a job to a child whose inbox it knows; under the fair strategy the child must also
not be busy. The pool knows an inbox from when its child is up until it finds the child gone. If
the guard removes an inbox from those that the pool knows, that child gets no further job under any
strategy. The pool still completes a write that is in progress. The replacement may get the same
pipe; the pool knows it again when the replacement is up. Neither a reconnect nor
``AsynPool.flush`` adds an inbox.

Relies on: ``AsynPool._all_inqueues``, ``_busy_workers``, ``_active_writes`` and
``_fileno_to_inq``, the processes' ``inq`` and ``inqW_fd``, and ``billiard.pool.Worker.workloop``,
which skips a request that is false; read in Celery 5.3.6 to 5.7.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from typing import Any

#: The attributes of the pool that the functions below use.
NEEDED = ("_all_inqueues", "_busy_workers", "_active_writes", "_fileno_to_inq")

_BODY = pickle.dumps((), protocol=2)

#: A request that is false. An idle child skips it and checks its exit event. If the child leaves it
#: unread, the replacement skips it too. If a child is killed after it has read only the header, the
#: rest reads as a header of negative length: billiard ends the next reader at once, so no reader
#: waits for data that never comes.
NUDGE = struct.pack("!i", len(_BODY)) + _BODY


def is_known(pool: Any, process: Any) -> bool:
    """Whether this child is up, and the pool can give it a job."""
    return pool._fileno_to_inq.get(process.inqW_fd) is process


def close(pool: Any, process: Any) -> None:
    """Stop the pool from giving this child jobs, and make an idle child check its exit event.

    The child leaves both sets, because the pool compares their sizes.
    """
    fd = process.inqW_fd
    pool._all_inqueues.discard(fd)
    pool._busy_workers.discard(fd)
    if fd not in pool._active_writes:
        # If the pipe is full it holds jobs, and the child checks its exit event before each.
        with contextlib.suppress(OSError):
            os.write(fd, NUDGE)


def reopen(pool: Any, process: Any, *, busy: bool) -> None:
    """Let the pool give this child jobs again, after the one that it runs; for a shutdown.

    If the child was killed, its inbox is emptied: Celery before 5.7 reads such pipes message by
    message as it shuts down, and the rest of a nudge is no message.
    """
    if not process._is_alive():
        reader = process.inq._reader
        while reader.poll(0):
            os.read(reader.fileno(), 65536)
    elif is_known(pool, process):
        pool._all_inqueues.add(process.inqW_fd)
        if busy:
            pool._busy_workers.add(process.inqW_fd)
