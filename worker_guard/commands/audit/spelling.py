"""How the findings spell settings, durations, sizes and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: So many names at most stand in one finding.
MOST_NAMES = 10

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


@dataclass(frozen=True)
class Spelling:
    """How this app's code writes a setting and a task, for the lines to change."""

    #: By a setting's name: how the configuration's source writes it. None: the app has no source.
    in_source: Mapping[str, str] | None = None
    #: Settings that were set on the app itself, whatever the source says.
    on_app: frozenset[str] = frozenset()
    #: In front of a setting that is not Celery's own, such as the guard's.
    namespace: str = ""
    decorator: str = "@app.task"
    #: Settings that hold something already, to which a line can add.
    given: frozenset[str] = field(default_factory=frozenset)

    def name(self, setting: str) -> str:
        """The setting, as a line of code has it: ``CELERY_TASK_ACKS_LATE`` in Django's settings."""
        if self.in_source is None or setting in self.on_app:
            return f"app.conf.{setting}"
        return self.in_source.get(setting) or self._of_others(setting)

    def line(self, setting: str, value: str) -> str:
        """The line that gives the setting this value."""
        return f"{self.name(setting)} = {value}"

    def task(self, arguments: str) -> str:
        """The line above a task."""
        return f"{self.decorator}({arguments})"

    def _of_others(self, setting: str) -> str:
        name = self.namespace + setting
        return name.upper() if self.namespace.isupper() else name


def seconds(value: float) -> str:
    """A duration, in the largest unit that needs no fraction: ``2 h``, ``90 s``."""
    for unit, name in _UNITS:
        if value >= unit and value % unit == 0:
            return f"{value / unit:g} {name}"
    return f"{plain(round(value, 1))} s"


def plain(number: float) -> str:
    """A number in full, without an exponent or a fraction that is none."""
    return f"{number:.0f}" if number == round(number) else str(number)


def megabytes(size_bytes: float) -> str:
    """A size in MB: 1,000,000 bytes."""
    return f"{size_bytes / 1e6:,.0f} MB"


def names(all_names: Sequence[str]) -> str:
    """The names, as many as a reader takes in."""
    shown = ", ".join(all_names[:MOST_NAMES])
    more = len(all_names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def on_one_line(text: object) -> str:
    """As it is printed, without line breaks: django-celery-beat's crontab has some."""
    return " ".join(str(text).split())
