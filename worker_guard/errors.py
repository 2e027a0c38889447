"""The base of every error that worker_guard raises on purpose."""

from __future__ import annotations


class WorkerGuardError(Exception):
    """The base of all errors of worker_guard; catch this one to catch them all.

    The others stand beside what raises them. Each docstring says what to do.
    """
