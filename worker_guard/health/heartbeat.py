"""The job that writes the heartbeat file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from worker_guard.errors import WorkerGuardError
from worker_guard.events import Trigger

#: Seconds that a write may take. It holds the main loop, so a slower one is reported. On a busy
#: machine a write takes a tenth of a second now and then.
SLOW_S = 0.5

#: The longest pause after a failure, in seconds: shorter than the age that a probe allows.
LONGEST_PAUSE_S = 15.0


#: What each heartbeat begins with.
_BEGIN = b'{"worker": '


class NotAHeartbeatError(WorkerGuardError):
    """Something else is at the path of the heartbeat file; it is left as it is."""


class SlowDiskError(WorkerGuardError):
    """A write of the heartbeat file held the worker's main loop for too long.

    Keep the file in memory, for example in ``/run`` or in an ``emptyDir`` with ``medium: Memory``.
    """


@dataclass(kw_only=True)
class Heartbeat:
    """Replaces the file by a new record on each run, also while the worker has no broker.

    The file is replaced atomically, and not synced to the disk: after a crash of the machine it is
    of no use. If a write fails or is slow, it is tried again later, with pauses.
    """

    name: ClassVar[str] = "heartbeat"
    without_broker: ClassVar[bool] = True
    longest_pause_s: ClassVar[float] = LONGEST_PAUSE_S

    path: str
    interval_s: float
    record: Callable[[], Mapping[str, object]]
    monotonic: Callable[[], float]
    written_mono: float = field(default=float("-inf"), init=False)
    _identity: tuple[int, int] | None = field(default=None, init=False)

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Write the file once."""
        self.write()
        yield from ()

    def write(self) -> None:
        """Write the file.

        Raises:
            OSError: it can't be written; the file is as it was, and no other is left.
            NotAHeartbeatError: before the first write, there is a file that is no heartbeat.
            SlowDiskError: it was written, and that took long.
        """
        began = self.monotonic()
        if self._identity is None:
            self._check_place()
        self._replace(json.dumps(self.record()).encode() + b"\n")
        self.written_mono = self.monotonic()
        took_s = self.written_mono - began
        if took_s > SLOW_S:
            raise SlowDiskError(f"{self.path}: a write took {took_s:.1f} s; keep it in memory")

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it. Never raises."""
        with contextlib.suppress(OSError):
            if _identity(os.stat(self.path)) == self._identity:
                os.unlink(self.path)

    def _check_place(self) -> None:
        """A path that is wrong may be that of a pid file; or of ``/dev/null``, which all need."""
        with contextlib.suppress(FileNotFoundError):
            content = None
            if stat.S_ISREG(os.stat(self.path).st_mode):
                with open(self.path, "rb") as file:
                    content = file.read(len(_BEGIN))
            if content not in (b"", _BEGIN):
                raise NotAHeartbeatError(f"{self.path} is no heartbeat file; give another path")

    def _replace(self, content: bytes) -> None:
        folder, name = os.path.split(self.path)
        # Always the same name, so that what a kill leaves behind is used up by the next worker.
        temporary = os.path.join(folder, f".{name}.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        # O_EXCL follows no link that another user of the folder may have put there.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            try:
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
                identity = _identity(os.fstat(descriptor))
            finally:
                os.close(descriptor)
            os.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._identity = identity


def _identity(found: os.stat_result) -> tuple[int, int]:
    """What tells a file from one that replaced it."""
    return found.st_ino, found.st_mtime_ns
