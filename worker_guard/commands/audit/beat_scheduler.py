"""Which scheduler Beat uses, and what it takes from an entry's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from celery.utils.imports import load_extension_class_names, symbol_by_name

from worker_guard import celery_internals

#: ``other``: one of the application's own, of which nobody knows what it does with an entry.
Kind = Literal["celery", "redbeat", "database", "other"]

#: By store: the kind of scheduler that reads it.
OF_STORES: Mapping[str, Kind] = {"redbeat": "redbeat", "django-celery-beat": "database"}
#: What ``beat_scheduler`` is set to for it.
NAMES: Mapping[Kind, str] = {
    "redbeat": "redbeat.RedBeatScheduler",
    "database": "django_celery_beat.schedulers:DatabaseScheduler",
}
IN_WORDS: Mapping[Kind, str] = {
    "celery": "Celery's own scheduler",
    "redbeat": "redbeat",
    "database": "django-celery-beat's DatabaseScheduler",
    "other": "this scheduler",
}
#: The packages by which a scheduler, or what it is derived from, is known.
_PACKAGES: Mapping[str, Kind] = {
    "django_celery_beat": "database",
    "redbeat": "redbeat",
    "celery": "celery",
}
#: What DatabaseScheduler keeps, if the installed one can't be asked.
_KEPT = ("queue", "exchange", "routing_key", "priority", "headers", "expire_seconds")


@dataclass(frozen=True)
class BeatScheduler:
    """The scheduler that the audit goes by."""

    kind: Kind
    #: The kind of what ``beat_scheduler`` names.
    named_kind: Kind
    #: As ``beat_scheduler`` has it.
    named: str
    #: Whether somebody has chosen it; Beat's command line can still name another one.
    given: bool
    #: The class; None where it can't be imported.
    cls: Any = None

    def taken_for(self, kind: Kind) -> BeatScheduler:
        """The same where nobody has chosen it, and a store says which one is used."""
        if self.given or kind == self.kind:
            return self
        return replace(self, kind=kind, cls=symbol_by_name(NAMES[kind]))

    def kept_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of an entry's options comes into its messages, by this scheduler's names."""
        if self.kind != "database":
            return options
        unpack = getattr(getattr(self.cls, "Entry", None), "_unpack_options", None)
        kept = unpack(**options) if unpack else dict.fromkeys(_KEPT)
        return {name: value for name, value in options.items() if name in kept}


def scheduler_of(app: Any) -> BeatScheduler:
    """What ``beat_scheduler`` names: a class or its path, or a name that a package registers."""
    value = app.conf.beat_scheduler
    given = celery_internals.is_given(app.conf, "beat_scheduler")
    named = value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"
    try:
        # As Beat does.
        aliases = dict(load_extension_class_names("celery.beat_schedulers"))
        cls = symbol_by_name(value, aliases=aliases)
    except Exception:  # noqa: BLE001 - whatever its module raises: Beat says it, at its start
        return BeatScheduler(_by_name(named), _by_name(named), named, given)
    return BeatScheduler(_kind(cls), _kind(cls), named, given, cls)


def _kind(cls: Any) -> Kind:
    """By the class and what it is derived from; one derived from Celery's own can do anything."""
    for base in getattr(cls, "__mro__", ()):
        kind = _PACKAGES.get(base.__module__.partition(".")[0])
        if kind is not None:
            return kind if kind != "celery" or base is cls else "other"
    return "other"


def _by_name(named: str) -> Kind:
    if named == "django":
        return "database"
    return _PACKAGES.get(named.partition(":")[0].partition(".")[0], "other")
