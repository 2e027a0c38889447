"""The harness's app in an application that configured structlog itself."""

from __future__ import annotations

import sys

import structlog

from tests.harness.app import app

structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.KeyValueRenderer(key_order=["event", "level", "worker"]),
    ],
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)

__all__ = ["app"]
