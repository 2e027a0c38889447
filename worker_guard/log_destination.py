"""Writes events, one line each, to wherever the worker writes its own log."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import ClassVar

#: The worker logs through this logger.
_WORKER_LOGGER = "celery.worker"


def _worker_outlet() -> logging.Logger:
    """The logger whose handlers write the worker's own lines: the root logger, if they reach it.

    An application that sets up logging itself may add handlers to ``celery`` alone. If several
    loggers have handlers, the uppermost counts (``--logfile`` adds one to the root), so that no
    event is written twice.
    """
    logger: logging.Logger | None = logging.getLogger(_WORKER_LOGGER)
    outlet = logging.getLogger()
    while logger is not None:
        outlet = logger if logger.handlers else outlet
        logger = logger.parent if logger.propagate else None
    return outlet


class WorkersOwnDestination(logging.Handler):
    """Writes each line unchanged to wherever the worker's own log goes.

    It lends each handler there a bare formatter for this one line. So there is no second file
    handle for a log rotation to leave behind, and no lock but the handlers' own, which
    :mod:`logging` renews in a forked child.
    """

    _bare = logging.Formatter("%(message)s")

    #: The own formatter of each handler that has the bare one now. If another thread forks at this
    #: moment, :meth:`take_back` restores it in the child.
    _lent: ClassVar[dict[logging.Handler, logging.Formatter | None]] = {}

    @classmethod
    def take_back(cls) -> None:
        """In a forked child: restore the formatters, as the lending thread is not there."""
        while cls._lent:
            handler, formatter = cls._lent.popitem()
            handler.formatter = formatter

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's message without any prefix."""
        last_resort = [logging.lastResort] if logging.lastResort else []
        for handler in _worker_outlet().handlers or last_resort:
            if record.levelno < handler.level:
                continue
            handler.acquire()
            formatter = handler.formatter
            self._lent.setdefault(handler, formatter)
            try:
                handler.formatter = self._bare
                handler.handle(record)
            finally:
                handler.formatter = formatter
                if formatter is not self._bare:  # it is if a handler's own code reports an event
                    self._lent.pop(handler, None)
                handler.release()

    def handle(self, record: logging.LogRecord) -> bool:
        """Write the record without a lock of our own: the handlers that write it have theirs.

        From Python 3.13 on, the inherited method fails without a lock.
        """
        allowed = bool(self.filter(record))
        if allowed:
            self.emit(record)
        return allowed

    def createLock(self) -> None:  # noqa: N802
        """Create none; see :meth:`handle`."""
        self.lock = None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=WorkersOwnDestination.take_back)


def open_destination(logger: logging.Logger) -> Callable[[], None]:
    """Give the logger its destination; returns a function that removes it.

    A forked child inherits its parent's destination. A second one would write each line twice.
    """
    if any(isinstance(handler, WorkersOwnDestination) for handler in logger.handlers):
        return lambda: None
    propagate, level = logger.propagate, logger.level
    destination = WorkersOwnDestination()
    logger.addHandler(destination)
    logger.propagate = False
    if level == logging.NOTSET and _worker_outlet() is not logging.getLogger():
        # The handlers are not the root's, so its level is not the worker's either.
        logger.setLevel(logging.getLogger(_WORKER_LOGGER).getEffectiveLevel())

    def close() -> None:
        logger.removeHandler(destination)
        logger.propagate = propagate
        logger.setLevel(level)

    return close
