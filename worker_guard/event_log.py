"""Events to log lines, by structlog."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime, timezone
from typing import Any

from worker_guard.events import Event
from worker_guard.log_destination import open_destination
from worker_guard.values.masking import masked

LOGGER = "worker_guard"


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
            # Not as an event, since that just failed.
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


def _event_first(_log: Any, _method: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Put the event's name first, for people who read the lines as they scroll by."""
    return {"event": fields.pop("event"), **fields}


def structlog_is_configured() -> bool:
    """Whether the application configured structlog."""
    import structlog

    return structlog.is_configured()


def open_log(log_format: str) -> tuple[Any, Callable[[], None]]:
    """A structlog logger for this ``worker_guard_log_format``, and a function that closes it.

    ``inherit`` uses the application's own configuration. The other two write to the worker's own
    log destination at the worker's own log level, and leave structlog's configuration alone.
    """
    import structlog

    if log_format == "inherit":
        return structlog.get_logger(LOGGER), lambda: None

    logger = logging.getLogger(LOGGER)
    close = open_destination(logger)

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
