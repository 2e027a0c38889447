"""Pools of a user's own."""

from __future__ import annotations

from celery.concurrency.prefork import TaskPool


class WithoutSentinels(TaskPool):
    """Has its children made without what they could be asked by, whatever the worker wants."""

    def on_start(self) -> None:
        self.options["allow_restart"] = False
        super().on_start()
