"""How the findings spell settings, and what the app's code has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spelling:
    """How this app's code spells settings and tasks, for the lines to change."""

    #: How the configuration's source spells each setting. None: the app has no source.
    in_source: Mapping[str, str] | None = None
    #: Settings that were set on the app itself, whatever the source says.
    on_app: frozenset[str] = frozenset()
    #: The prefix of a setting that is not Celery's own, such as the guard's.
    namespace: str = ""
    decorator: str = "@app.task"
    #: Settings that have a value, so that a line of code can add to it.
    given: frozenset[str] = field(default_factory=frozenset)

    def name(self, setting: str) -> str:
        """The setting in a line of code: ``CELERY_TASK_ACKS_LATE`` in Django's settings."""
        if self.in_source is None or setting in self.on_app:
            return f"app.conf.{setting}"
        return self.in_source.get(setting) or self._of_others(setting)

    def line(self, setting: str, value: str) -> str:
        """The line that sets the setting to this value."""
        return f"{self.name(setting)} = {value}"

    def task(self, arguments: str) -> str:
        """The line above a task."""
        return f"{self.decorator}({arguments})"

    def _of_others(self, setting: str) -> str:
        name = self.namespace + setting
        return name.upper() if self.namespace.isupper() else name


def plain(number: float) -> str:
    """A number in full: no exponent, and no ``.0``."""
    return f"{number:.0f}" if number == round(number) else str(number)


def on_one_line(text: object) -> str:
    """The text without line breaks, which django-celery-beat's crontab has."""
    return " ".join(str(text).split())
