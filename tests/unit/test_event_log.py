"""Events to lines: no prefix, no password, and never an exception."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from worker_guard.event_log import LOGGER, Reporter, open_log
from worker_guard.events import PartFailed, Stopped

STOPPED = Stopped(
    revoked_tasks_cleared=1,
    expired_results_deleted=2,
    task_states_cleaned=3,
    children_recycled=4,
)


@pytest.fixture
def root() -> Iterator[logging.Handler]:
    """A root handler with a prefix, as Celery sets one up, at level info."""
    logger, handler = logging.getLogger(), logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("[%(asctime)s: %(levelname)s] %(message)s"))
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    yield handler
    logger.handlers[:] = handlers
    logger.setLevel(level)


def text(handler: logging.Handler) -> str:
    return handler.stream.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_line_is_bare_json_and_the_handler_keeps_its_format(root: logging.Handler) -> None:
    """The line begins with the event; the next one of the host has its prefix again."""
    log, close = open_log("json")
    Reporter(log, worker="w@test", dry_run=False)(STOPPED)
    logging.getLogger("celery.worker").info("ready")
    close()
    ours, hosts = text(root).splitlines()
    assert ours.startswith('{"event": "worker_guard.stopped", "level": "info", "timestamp": "')
    assert json.loads(ours)["task_states_cleaned"] == 3
    assert hosts.endswith(": INFO] ready")


def test_the_hosts_levels_hold(root: logging.Handler) -> None:
    """Neither the logger's level nor the handler's is passed by."""
    log, close = open_log("json")
    report = Reporter(log, worker="w@test", dry_run=False)
    root.setLevel(logging.ERROR)
    report(STOPPED)
    root.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    report(STOPPED)
    close()
    assert text(root) == ""


@pytest.fixture
def celerys(root: logging.Handler) -> Iterator[logging.Handler]:
    """A handler of the ``celery`` logger, at level info, as an application sets one up itself."""
    logger, handler = logging.getLogger("celery"), logging.StreamHandler(io.StringIO())
    before = (logger.handlers[:], logger.level, logger.propagate)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    yield handler
    logger.handlers[:], logger.level, logger.propagate = before
    logger.setLevel(before[1])


def test_where_celerys_logger_alone_has_handlers_they_get_the_lines(
    root: logging.Handler, celerys: logging.Handler
) -> None:
    """At its level; whether the root has no handlers, or the worker's lines don't reach it."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger().handlers[:] = []
    level = logging.getLogger(LOGGER).level
    for propagate in (True, False):
        logging.getLogger("celery").propagate = propagate
        log, close = open_log("json")
        Reporter(log, worker="w@test", dry_run=False)(STOPPED)
        close()
        logging.getLogger().handlers[:] = [root]
    assert [json.loads(line)["event"] for line in text(celerys).splitlines()] == [
        "worker_guard.stopped",
        "worker_guard.stopped",
    ]
    assert text(root) == ""
    assert logging.getLogger(LOGGER).level == level


def test_where_both_write_the_workers_lines_ours_come_once(
    root: logging.Handler, celerys: logging.Handler
) -> None:
    """By the root's handlers: among them is that of ``--logfile``."""
    log, close = open_log("json")
    Reporter(log, worker="w@test", dry_run=False)(STOPPED)
    close()
    assert len(text(root).splitlines()) == 1
    assert text(celerys) == ""


@pytest.mark.parametrize(
    "error",
    [
        "redis://user:s3cret@example.org:6379/0 refused",
        "tried redis://:s3cret@a/0;rediss://u:s3cret@b/0",
        "amqp://guest:s3cret@localhost//",
        "redis://user:s3cret@and:s3cret@host/0",
        "redis://host/0?password=s3cret&timeout=1",
        "Port could not be cast to integer value as 's3cret@127.0.0.1:6379/0' of redis://",
    ],
)
def test_a_urls_password_is_hidden(root: logging.Handler, error: str) -> None:
    """Whatever an error's text quotes."""
    log, close = open_log("json")
    event = PartFailed(part="p", error=error, consecutive_failures=1, retry_in_s=1.0)
    Reporter(log, worker="w@test", dry_run=False)(event)
    close()
    assert "s3cret" not in text(root)
    assert "://" in json.loads(text(root))["error"]


def test_a_log_that_fails_is_no_failure_of_the_worker(root: logging.Handler) -> None:
    """The worker's own log says so instead."""

    class Broken:
        def info(self, *_args: object, **_fields: object) -> None:
            raise RuntimeError("broken")

    Reporter(Broken(), worker="w@test", dry_run=False)(STOPPED)
    assert "worker_guard.stopped could not be reported" in text(root)


def test_a_closed_log_leaves_the_logger_as_it_was(root: logging.Handler) -> None:
    """No handler, and propagation as before."""
    logger = logging.getLogger(LOGGER)
    before = (logger.handlers[:], logger.propagate)
    _, close = open_log("console")
    assert logger.handlers != before[0]
    close()
    assert (logger.handlers, logger.propagate) == before
