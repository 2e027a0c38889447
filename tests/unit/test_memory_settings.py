"""How the memory settings are read."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from worker_guard.errors import SettingError
from worker_guard.settings import Settings, read_settings


def read(**values: Any) -> Settings:
    app = Celery("test", set_as_current=False)
    app.conf.update({f"worker_guard_{name}": value for name, value in values.items()})
    return read_settings(app.conf)


def test_defaults_are_the_contracts() -> None:
    """Without any setting the worker is watched, and nothing is done."""
    settings = read()
    assert settings.memory_interval == 5.0
    assert settings.memory_metric == "uss"
    assert settings.child_memory_limit is None
    assert settings.parent_memory_limit is None
    assert settings.parent_action == "log"
    assert settings.memory_strikes == 3
    assert settings.recycle_concurrency == 1
    assert settings.recycle_min_lifetime == 60.0


def test_sizes_are_bytes_and_shares_stay_shares() -> None:
    """What a share is of is known in the worker alone."""
    settings = read(child_memory_limit="400MiB", parent_memory_limit="25%")
    assert settings.child_memory_limit == 400 * 1024**2
    assert settings.parent_memory_limit == "25%"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("memory_interval", 0, "seconds, above 0"),
        ("memory_metric", "vms", "'uss' or 'pss' or 'rss'"),
        ("child_memory_limit", "lots", "a size such as '512MB'"),
        ("child_memory_limit", 0, "bytes as an int above 0"),
        ("child_memory_limit", 1.5e9, "bytes as an int above 0"),
        ("parent_memory_limit", "120%", "a share such as '25%'"),
        ("parent_action", "kill", "'log' or 'shutdown'"),
        ("memory_strikes", 0, "an int, 1 or more"),
        ("memory_strikes", True, "an int, 1 or more"),
        ("memory_strikes", 2.5, "an int, 1 or more"),
        ("recycle_concurrency", 0, "an int, 1 or more"),
        ("recycle_min_lifetime", -1, "seconds, 0 or more"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    """The error says the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        read(**{name: value})
    message = str(caught.value)
    assert f"worker_guard_{name} is {value!r}" in message
    assert allowed in message
