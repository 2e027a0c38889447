"""Events to log lines: the one module that calls structlog and logging."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime, timezone
from typing import Any, ClassVar

from worker_guard.events import Event

LOGGER = "worker_guard"

#: The worker's own log is what this logger's lines go to.
_HOSTS_LOGGER = "celery.worker"

#: The password in a URL, wherever an error's text quotes one: before the host, or as a parameter;
#: and what is left of one where a piece of the URL is quoted, as for a slash in the password.
_PASSWORD = re.compile(r"(?<=://)([^\s:/@]*):\S+(?=@)")
_HOST = re.compile(r"(?<![^\s'\"])(?![^\s'\"]*://)[^\s'\"]+@(?=[\w.\-\[\]]+:\d)")
_PARAMETER = re.compile(r"(?<=[?&]password=)[^&\s]+")


class Reporter:
    """Logs events, each with the fields that all events share. Never raises."""

    def __init__(self, log: Any, *, worker: str, dry_run: bool) -> None:
        self._log = log
        self._worker = worker
        self._dry_run = dry_run

    def __call__(self, event: Event) -> None:
        """Log one event at its level."""
        try:
            method = getattr(self._log, event.level)
            method(event.name, **self._shared(event.level), **masked(event.fields()))
        except Exception:
            # Not as an event: that way just failed. The worker's log still hears of it.
            logging.getLogger(LOGGER).exception("%s could not be reported", event.name)

    def as_dry_run(self) -> Reporter:
        """A reporter whose events say that nothing was changed."""
        return Reporter(self._log, worker=self._worker, dry_run=True)

    def _shared(self, level: str) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        return {
            "level": level,
            "timestamp": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "logger": LOGGER,
            "worker": self._worker,
            "pid": os.getpid(),
            "dry_run": self._dry_run,
        }


def masked(value: Any) -> Any:
    """The value with the passwords of URLs in it hidden."""
    if isinstance(value, str):
        return _HOST.sub("**@", _PARAMETER.sub("**", _PASSWORD.sub(r"\1:**", value)))
    if isinstance(value, Mapping):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def _event_first(_log: Any, _method: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Begin each line with the event's name, for people who read them as they come."""
    return {"event": fields.pop("event"), **fields}


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


class _WorkersOwnDestination(logging.Handler):
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
    os.register_at_fork(after_in_child=_WorkersOwnDestination.take_back)


def _open_destination(logger: logging.Logger) -> Callable[[], None]:
    """Give the logger its destination, and return what takes it away again.

    A task in a forked child finds the one that its parent opened, and no line is to come twice.
    """
    if any(isinstance(handler, _WorkersOwnDestination) for handler in logger.handlers):
        return lambda: None
    propagate, level = logger.propagate, logger.level
    destination = _WorkersOwnDestination()
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


def structlog_is_configured() -> bool:
    """Whether the application configured structlog."""
    import structlog

    return structlog.is_configured()


def open_log(log_format: str) -> tuple[Any, Callable[[], None]]:
    """A structlog logger for this ``worker_guard_log_format``, and what closes it again.

    ``inherit`` is the application's own configuration. The other two write to the worker's own
    log destination at the worker's own log level, and leave structlog's configuration alone.
    """
    import structlog

    if log_format == "inherit":
        return structlog.get_logger(LOGGER), lambda: None

    logger = logging.getLogger(LOGGER)
    close = _open_destination(logger)

    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    log = structlog.wrap_logger(
        logger,
        processors=[structlog.stdlib.filter_by_level, _event_first, renderer],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return log, close
