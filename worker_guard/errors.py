"""Every error that worker_guard raises on purpose."""

from __future__ import annotations

from typing import IO, Any

import click
from celery.exceptions import CeleryCommandException, ImproperlyConfigured

EX_USAGE = 2


class WorkerGuardError(Exception):
    """The base of all errors of worker_guard; catch this one to catch them all."""


class SettingError(WorkerGuardError, ImproperlyConfigured, CeleryCommandException):
    """A ``worker_guard_*`` setting is misspelt or has a value that is not allowed.

    The worker does not start. Correct the setting that the message names, or remove it to get
    its default. On the command line this is one line and exit code 2; in Python it is an
    :exc:`~celery.exceptions.ImproperlyConfigured`.
    """

    def __init__(self, message: str) -> None:
        CeleryCommandException.__init__(self, message, EX_USAGE)

    def __str__(self) -> str:
        return str(self.message)

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"ImproperlyConfigured: {self.message}", file=file, err=file is None)
