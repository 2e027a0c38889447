"""One measured figure, with the aim that it is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """A figure; ``aim`` is what was hoped for, and says nothing about what was measured."""

    what: str
    value: float
    unit: str
    aim: float | None = None
    better: Literal["more", "less"] = "less"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the aim was reached; None where there is none."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.better == "more" else self.value <= self.aim

    def __str__(self) -> str:
        line = f"{self.what:<62} {self.value:>10.3f} {self.unit:<6}"
        if self.aim is not None:
            bound = "at least" if self.better == "more" else "at most"
            line += f"  aim: {bound} {self.aim:g}: {'reached' if self.reached else 'NOT REACHED'}"
        return line + (f"\n    {self.note}" if self.note else "")
