"""How the memory settings are read."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from worker_guard.settings import SettingError, Settings, check_shares, read_settings
from worker_guard.values.sizes import LEAST_BYTES


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
    assert settings.total_memory_limit is None
    assert settings.parent_action == "log"
    assert settings.memory_strikes == 3
    assert settings.recycle_concurrency == 1
    assert settings.recycle_min_lifetime == 60.0


def test_limits_stay_as_they_were_given() -> None:
    """What a share is of is known in the worker alone, and screens show sizes in a limit's unit."""
    settings = read(child_memory_limit="400MiB", parent_memory_limit="25%")
    assert settings.child_memory_limit == "400MiB"
    assert settings.parent_memory_limit == "25%"
    assert settings.named()["worker_guard_child_memory_limit"] == "400MiB"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("memory_interval", 0, "seconds, above 0"),
        ("memory_metric", "vms", "'uss' or 'pss' or 'rss'"),
        ("child_memory_limit", "lots", "a size such as '512MB'"),
        ("child_memory_limit", 0, "bytes as an int"),
        ("child_memory_limit", 1.5e9, "bytes as an int"),
        ("child_memory_limit", 200_000, "for KiB write '200000KiB'"),
        ("child_memory_limit", 400, "for megabytes write '400MB'"),
        ("child_memory_limit", "512m", "'2G' (KB, MB, GB, TB or K, M, G, T; KiB"),
        ("parent_memory_limit", "1MB", "16 MiB or more"),
        ("total_memory_limit", "15MiB", "16 MiB or more"),
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


def checked(available_bytes: int, **values: Any) -> None:
    app = Celery("test", set_as_current=False)
    app.conf.update({f"worker_guard_{name}": value for name, value in values.items()})
    check_shares(app.conf, read_settings(app.conf), available_bytes)


@pytest.mark.parametrize("name", ["parent_memory_limit", "total_memory_limit"])
def test_a_share_that_comes_to_too_little_is_refused(name: str) -> None:
    """The message says the setting, the share, what it is here, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        checked(1_000_000_000, **{name: "1%"})
    assert str(caught.value) == (
        f"worker_guard_{name} is '1%', which is 10 MB of the 1 GB that this "
        "worker may use; allowed: 16 MiB or more. Correct it in the app's configuration."
    )


@pytest.mark.parametrize("limit", ["2%", "100%", "16MiB", LEAST_BYTES, None])
def test_a_share_that_is_enough_is_taken(limit: Any) -> None:
    """So is whatever is no share."""
    checked(1_000_000_000, child_memory_limit=limit, parent_memory_limit=limit)
