"""The name, the address and the setting of a server, from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from worker_guard.commands.server_names import broker, result_backend


def app_of(namespace: str | None = None, **conf: Any) -> Celery:
    """An app that is configured so, under a namespace where one is given."""
    app = Celery("named", set_as_current=False)
    app.config_from_object(SimpleNamespace(**conf), namespace=namespace)
    return app


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (app_of(broker_url="redis://u:secret@h:1/0"), "redis://u:**@h:1/0 (broker_url)"),
        (
            app_of(broker_url="redis://h/0", broker_write_url="redis://w/0"),
            "redis://w/0 (broker_write_url)",
        ),
        (app_of("CELERY", CELERY_BROKER_URL="redis://h/0"), "redis://h/0 (CELERY_BROKER_URL)"),
        (app_of(BROKER_URL="redis://h/0"), "redis://h/0 (BROKER_URL)"),
        (
            app_of(broker_url="sentinel://:secret@a:1;sentinel://:secret@b:2"),
            "sentinel://:**@a:1;sentinel://:**@b:2 (broker_url)",
        ),
        (app_of(broker_url=["redis://a/0", "redis://b/0"]), "redis://a/0;redis://b/0 (broker_url)"),
        (app_of(broker_url="redis://:a;secret@h/0"), "redis://:**@h/0 (broker_url)"),
        (app_of(), "amqp://guest@localhost:5672// (broker_url is not set)"),
    ],
)
def test_the_broker(app: Celery, expected: str) -> None:
    """As the app spells it, and without a password."""
    assert str(broker(app)) == expected


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (app_of(result_backend="redis://:secret@h:1/0"), "redis://:**@h:1/0 (result_backend)"),
        (app_of("CELERY", CELERY_RESULT_BACKEND="redis://h"), "redis://h (CELERY_RESULT_BACKEND)"),
        (app_of(CELERY_RESULT_BACKEND="redis://h"), "redis://h (CELERY_RESULT_BACKEND)"),
        (app_of(), "result_backend"),
    ],
)
def test_the_result_backend(app: Celery, expected: str) -> None:
    """The same for results."""
    assert str(result_backend(app)) == expected


def test_an_environment_variable_stands_before_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in Celery, whose --broker sets it."""
    app = app_of(broker_url="redis://h/0", result_backend="redis://h/1")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://e/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://e/1")
    assert str(broker(app)) == "redis://e/0 (environment variable CELERY_BROKER_URL)"
    assert str(result_backend(app)) == "redis://e/1 (environment variable CELERY_RESULT_BACKEND)"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Wherever it is named; one that is there is none."""
    there = tmp_path / "ca.pem"
    there.touch()
    url = f"rediss://h/0?ssl_ca_certs={there}"
    assert broker(app_of(broker_url=url)).unreadable_file() is None
    gone = {"ssl_keyfile": "/gone", "ssl_certfile": str(there)}
    missing = "No such file or directory"
    ssl = broker(app_of(broker_url=url, broker_use_ssl=gone))
    assert ssl.unreadable_file() == f"/gone (broker_use_ssl): {missing}"
    options = {"sentinel_kwargs": {"ssl_ca_certs": "/gone"}}
    sentinel = broker(app_of(broker_url="sentinel://h", broker_transport_options=options))
    assert sentinel.unreadable_file() == f"/gone (broker_transport_options): {missing}"
    results = result_backend(app_of(result_backend="rediss://h/0?ssl_ca_certs=%2Fgone"))
    assert results.unreadable_file() == f"/gone (result_backend): {missing}"


def test_a_configuration_that_cannot_be_read_is_another_message() -> None:
    """The name alone is left."""
    app = Celery("named", set_as_current=False)
    app.config_from_object("there.is.no.such.module")
    assert str(broker(app)) == "amqp://guest@localhost:5672// (broker_url is not set)"
    assert str(result_backend(app)) == "result_backend"
