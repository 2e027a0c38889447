"""How settings are read that may be of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from worker_guard.commands.audit.facts import Unreadable

T = TypeVar("T")


class SettingsReading:
    """Reads settings one by one, so that a malformed one costs the audit nothing but itself."""

    def __init__(self) -> None:
        self.unreadable: list[Unreadable] = []

    def of(self, setting: str, read: Callable[[], T], otherwise: T) -> T:
        """What it reads; where that raises, note the setting, and return ``otherwise``."""
        try:
            return read()
        except Exception as exc:  # noqa: BLE001 - whatever a value of another kind leads to
            text = " ".join(str(exc).split())
            self.unreadable.append(Unreadable(setting, f"{type(exc).__name__}: {text}"))
            return otherwise
