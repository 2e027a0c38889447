"""Where the worker writes its own log: the events go there too, a line each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import ClassVar

#: The worker's own log is what this logger's lines go to.
_HOSTS_LOGGER = "celery.worker"


def _hosts_outlet() -> logging.Logger:
    """The logger whose handlers write the worker's own lines: the root logger, if they reach it.

    An application that sets up logging itself may give the handlers to ``celery`` alone. Of two
    that write them the upper one counts, as ``--logfile`` is the root's, so that no line of ours
    comes twice.
    """
    logger: logging.Logger | None = logging.getLogger(_HOSTS_LOGGER)
    outlet = logging.getLogger()
    while logger is not None:
        outlet = logger if logger.handlers else outlet
        logger = logger.parent if logger.propagate else None
    return outlet


class WorkersOwnDestination(logging.Handler):
    """Writes a line, as it is, wherever the worker's own log goes.

    It lends each of the handlers there a bare formatter for the one line. So there is no
    second file handle that a rotation would leave behind, and no lock but the handlers' own,
    which :mod:`logging` renews in a forked child.
    """

    _bare = logging.Formatter("%(message)s")

    #: The formatter of each handler that has the bare one now. A child that another thread forks
    #: at this moment gets its own back by :meth:`take_back`.
    _lent: ClassVar[dict[logging.Handler, logging.Formatter | None]] = {}

    @classmethod
    def take_back(cls) -> None:
        """In a forked child: give the handlers what the thread that lent it can't."""
        while cls._lent:
            handler, formatter = cls._lent.popitem()
            handler.formatter = formatter

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's message without any prefix."""
        last_resort = [logging.lastResort] if logging.lastResort else []
        for handler in _hosts_outlet().handlers or last_resort:
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
                if formatter is not self._bare:  # it is where a handler's own code reports
                    self._lent.pop(handler, None)
                handler.release()

    def handle(self, record: logging.LogRecord) -> bool:
        """Write it without a lock: the handlers that are written to have theirs.

        From Python 3.13 on the inherited method fails where there is none.
        """
        allowed = bool(self.filter(record))
        if allowed:
            self.emit(record)
        return allowed

    def createLock(self) -> None:  # noqa: N802
        """Have none, see :meth:`handle`."""
        self.lock = None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=WorkersOwnDestination.take_back)


def open_destination(logger: logging.Logger) -> Callable[[], None]:
    """Give the logger its destination, and return what takes it away again.

    A task in a forked child finds the one that its parent opened, and no line is to come twice.
    """
    if any(isinstance(handler, WorkersOwnDestination) for handler in logger.handlers):
        return lambda: None
    propagate, level = logger.propagate, logger.level
    destination = WorkersOwnDestination()
    logger.addHandler(destination)
    logger.propagate = False
    if level == logging.NOTSET and _hosts_outlet() is not logging.getLogger():
        # Nor is the root's level the worker's then.
        logger.setLevel(logging.getLogger(_HOSTS_LOGGER).getEffectiveLevel())

    def close() -> None:
        logger.removeHandler(destination)
        logger.propagate = propagate
        logger.setLevel(level)

    return close
