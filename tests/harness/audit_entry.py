"""The Beat entries that a test gives the harness's apps, as JSON in the environment."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.schedules import crontab

#: The options of the entry, as JSON. ``every_s`` is how often it runs, half a second without it.
#: ``expires``, ``eta`` and ``countdown`` can be objects:
#: ``{"at": seconds from import, "naive": bool}`` or ``{"timedelta": seconds}``; so can they and
#: ``schedule`` (``{"crontab": minutes}`` too) in ``entry``, which holds keys of the entry itself,
#: to add to it or put in place of its own. ``entries`` holds further such options, by the name of
#: the entry that has them.
ENTRY = "WORKER_GUARD_TEST_ENTRY"


def given_schedule(every_s: float = 0.5) -> dict[str, Any] | None:
    """The schedule that the environment gives; None where it gives none."""
    if ENTRY not in os.environ:
        return None
    options = json.loads(os.environ[ENTRY])
    all_options = options.get("entries", {"entry": options})
    return {name: _entry(one, every_s) for name, one in all_options.items()}


def _entry(options: dict[str, Any], every_s: float) -> dict[str, Any]:
    options = {key: _value(value) for key, value in options.items()}
    given = {key: _value(value) for key, value in options.pop("entry", {}).items()}
    every_s = options.pop("every_s", every_s)
    entry = {"task": "harness.add", "args": (1, 2), "schedule": every_s, "options": options}
    return {**entry, **given}


def _value(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "timedelta" in value:
        return timedelta(seconds=value["timedelta"])
    if "crontab" in value:
        return crontab(minute=value["crontab"])
    if "at" in value:
        now = datetime.now() if value.get("naive") else datetime.now(timezone.utc)  # noqa: DTZ005
        return now + timedelta(seconds=value["at"])
    return value
