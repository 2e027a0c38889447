"""How settings are read."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from worker_guard.errors import SettingError
from worker_guard.settings import Settings, read_settings


def conf(**values: Any) -> Any:
    app = Celery("test", set_as_current=False)
    app.conf.update(values)
    return app.conf


def test_defaults_are_the_contracts() -> None:
    """Without any setting the defaults hold."""
    assert read_settings(conf()) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("enabled", "yes", "True or False"),
        ("dry_run", 1, "True or False"),
        ("interval", 0, "seconds, above 0"),
        ("interval", "30", "seconds, above 0"),
        ("interval", True, "seconds, above 0"),
        ("interval", float("nan"), "seconds, above 0"),
        ("interval", float("inf"), "seconds, above 0"),
        ("revoked_grace", -1, "seconds, 0 or more"),
        ("revoked_verify", None, "True or False"),
        ("log_format", "xml", "'json' or 'console' or 'inherit'"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    """The error says the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        read_settings(conf(**{f"worker_guard_{name}": value}))
    message = str(caught.value)
    assert f"worker_guard_{name} is {value!r}" in message
    assert f"allowed: {allowed}" in message
