"""The app's configuration: where each setting comes from, and how it is spelled there.

Relies on: ``app.conf.maps`` (settings set on the app itself, then the configuration's source, then
Celery's defaults), ``app.conf.prefix`` and ``celery.app.defaults._TO_OLD_KEY``; read in Celery
5.3.6 to 5.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.app import defaults


def names_in_source(conf: Any) -> Mapping[str, str] | None:
    """Each setting as the configuration's source spells it; None if the app has no source.

    That is upper case under a namespace (Django), or an old name (``CELERYBEAT_SCHEDULE``).
    """
    _, *sources, celerys = _maps(conf)
    if not any(list(source) for source in sources):
        return None
    prefix = conf.prefix or ""
    if prefix:
        written = {name: prefix + name for name in defaults.DEFAULTS}
        # As in Celery, the settings have the case of the namespace.
        return {k: v.upper() if prefix.isupper() else v.lower() for k, v in written.items()}
    if "task_acks_late" not in celerys:
        old: Mapping[str, str] = getattr(defaults, "_TO_OLD_KEY", {})
        return {name: old.get(name, name) for name in defaults.DEFAULTS}
    return {name: name for name in defaults.DEFAULTS}


def is_given(conf: Any, setting: str) -> bool:
    """Whether this setting was set, in the source or on the app."""
    return is_set_on_app(conf, setting) or _stands_in(conf, setting, _maps(conf)[1:-1])


def is_set_on_app(conf: Any, setting: str) -> bool:
    """Whether this setting was set by ``app.conf.…``, which overrides the source."""
    return _stands_in(conf, setting, _maps(conf)[:1])


def _maps(conf: Any) -> list[Any]:
    # Celery reads a pending configuration when its keys are listed.
    list(conf)
    return list(conf.maps)


def _stands_in(conf: Any, setting: str, maps: list[Any]) -> bool:
    source = names_in_source(conf) or {}
    old = getattr(defaults, "_TO_OLD_KEY", {}).get(setting, setting)
    return any(name in one for one in maps for name in {setting, old, source.get(setting, setting)})
