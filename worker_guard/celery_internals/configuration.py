"""Where an app's settings stand, and how they are written there.

Relies on ``app.conf.maps`` (what was set on the app itself, then the configuration's source, last
Celery's defaults), on ``app.conf.prefix``, and on ``celery.app.defaults._TO_OLD_KEY``. Read in
Celery 5.3.6, 5.5.3, 5.6.3 and 5.7.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.app import defaults


def names_in_source(conf: Any) -> Mapping[str, str] | None:
    """Each setting as the configuration's source writes it; None where the app has no source.

    In upper case under a namespace (Django), or by its old name (``CELERYBEAT_SCHEDULE``).
    """
    _, *sources, celerys = _maps(conf)
    if not any(list(source) for source in sources):
        return None
    prefix = conf.prefix or ""
    if prefix:
        written = {name: prefix + name for name in defaults.DEFAULTS}
        # As Celery does: the namespace's case is that of its settings.
        return {k: v.upper() if prefix.isupper() else v.lower() for k, v in written.items()}
    if "task_acks_late" not in celerys:
        old: Mapping[str, str] = getattr(defaults, "_TO_OLD_KEY", {})
        return {name: old.get(name, name) for name in defaults.DEFAULTS}
    return {name: name for name in defaults.DEFAULTS}


def is_given(conf: Any, setting: str) -> bool:
    """Whether somebody has set this setting: in the source, or on the app."""
    return is_set_on_app(conf, setting) or _stands_in(conf, setting, _maps(conf)[1:-1])


def is_set_on_app(conf: Any, setting: str) -> bool:
    """Whether it was set by ``app.conf.…``, which outweighs the source."""
    return _stands_in(conf, setting, _maps(conf)[:1])


def _maps(conf: Any) -> list[Any]:
    # The keys first: Celery reads a pending configuration by that.
    list(conf)
    return list(conf.maps)


def _stands_in(conf: Any, setting: str, maps: list[Any]) -> bool:
    source = names_in_source(conf) or {}
    old = getattr(defaults, "_TO_OLD_KEY", {}).get(setting, setting)
    return any(name in one for one in maps for name in {setting, old, source.get(setting, setting)})
