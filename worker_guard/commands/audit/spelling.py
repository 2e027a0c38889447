"""How the findings spell settings, and what the app's code has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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


def plain(number: float) -> str:
    """A number in full, without an exponent or a fraction that is none."""
    return f"{number:.0f}" if number == round(number) else str(number)


def on_one_line(text: object) -> str:
    """As it is printed, without line breaks: django-celery-beat's crontab has some."""
    return " ".join(str(text).split())
