"""Reads settings whose values may have a wrong type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from worker_guard.commands.audit.facts import Unreadable

T = TypeVar("T")


class SettingsReading:
    """Reads settings one by one, so that one bad value does not stop the audit."""

    def __init__(self) -> None:
        self.unreadable: list[Unreadable] = []

    def of(self, setting: str, read: Callable[[], T], otherwise: T) -> T:
        """Return what ``read`` returns. If it raises, note the setting and return ``otherwise``."""
        try:
            return read()
        except Exception as exc:  # noqa: BLE001 - a value of a wrong type can raise anything
            text = " ".join(str(exc).split())
            self.unreadable.append(Unreadable(setting, f"{type(exc).__name__}: {text}"))
            return otherwise
