"""Which scheduler Beat uses, and which of an entry's options it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from celery.utils.imports import load_extension_class_names, symbol_by_name

from worker_guard import celery_internals

#: ``other``: the application's own scheduler, which can do anything with an entry.
Kind = Literal["celery", "redbeat", "database", "other"]

#: The kind of scheduler that reads each store.
OF_STORES: Mapping[str, Kind] = {"redbeat": "redbeat", "django-celery-beat": "database"}
#: The value of ``beat_scheduler`` for each kind.
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
#: The packages of the known schedulers, and of their base classes.
_PACKAGES: Mapping[str, Kind] = {
    "django_celery_beat": "database",
    "redbeat": "redbeat",
    "celery": "celery",
}
#: The options that DatabaseScheduler keeps, if the installed one can't tell.
_KEPT = ("queue", "exchange", "routing_key", "priority", "headers", "expire_seconds")


@dataclass(frozen=True)
class BeatScheduler:
    """The scheduler whose rules the audit applies."""

    kind: Kind
    #: The kind that ``beat_scheduler`` names.
    named_kind: Kind
    #: The value of ``beat_scheduler``.
    named: str
    #: Whether ``beat_scheduler`` is set. Beat's command line can still name another scheduler.
    given: bool
    #: The class; None if it can't be imported.
    cls: Any = None

    def taken_for(self, kind: Kind) -> BeatScheduler:
        """The scheduler of a store's kind, unless ``beat_scheduler`` is set."""
        if self.given or kind == self.kind:
            return self
        return replace(self, kind=kind, cls=symbol_by_name(NAMES[kind]))

    def kept_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of an entry that this scheduler puts into its messages."""
        if self.kind != "database":
            return options
        unpack = getattr(getattr(self.cls, "Entry", None), "_unpack_options", None)
        kept = unpack(**options) if unpack else dict.fromkeys(_KEPT)
        return {name: value for name, value in options.items() if name in kept}


def scheduler_of(app: Any) -> BeatScheduler:
    """The scheduler in ``beat_scheduler``: a class, its path, or a name from a package."""
    value = app.conf.beat_scheduler
    given = celery_internals.is_given(app.conf, "beat_scheduler")
    named = value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"
    try:
        # As Beat resolves it.
        aliases = dict(load_extension_class_names("celery.beat_schedulers"))
        cls = symbol_by_name(value, aliases=aliases)
    except Exception:  # noqa: BLE001 - any error of its module: Beat reports it at its start
        return BeatScheduler(_by_name(named), _by_name(named), named, given)
    return BeatScheduler(_kind(cls), _kind(cls), named, given, cls)


def _kind(cls: Any) -> Kind:
    """By the class and its bases. A subclass of Celery's own scheduler can do anything."""
    for base in getattr(cls, "__mro__", ()):
        kind = _PACKAGES.get(base.__module__.partition(".")[0])
        if kind is not None:
            return kind if kind != "celery" or base is cls else "other"
    return "other"


def _by_name(named: str) -> Kind:
    if named == "django":
        return "database"
    return _PACKAGES.get(named.partition(":")[0].partition(".")[0], "other")
