"""How messages name a server: the broker or result backend, its address and its setting.

Nothing here connects to a server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from worker_guard.values.masking import masked

#: The options of kombu's transports, redis-py and Python's ssl that name a file.
_FILES = re.compile(r"(ssl_)?(ca_certs|ca_path|certfile|keyfile)")

#: One setting can hold several URLs.
_NEXT_URL = re.compile(r";(?=[a-z+]+://)")

#: Without a namespace Celery still accepts these names of Celery 3.
_OLD_NAMES = {
    "broker_url": "BROKER_URL",
    "broker_use_ssl": "BROKER_USE_SSL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "redis_backend_use_ssl": "CELERY_REDIS_BACKEND_USE_SSL",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server as a message names it; ``url`` has no password.

    ``files`` are those that its connections need, each with the setting that names it.
    """

    name: str
    url: str = ""
    setting: str = ""
    files: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """``redis://host:6379/0 (broker_url)``."""
        return f"{self.url} ({self.setting})" if self.url else self.setting

    def unreadable_file(self) -> str | None:
        """The first file that is missing or can't be read, with its setting and the reason."""
        for path, setting in self.files:
            if not os.access(path, os.R_OK):
                why = "Permission denied" if os.path.exists(path) else "No such file or directory"
                return f"{path} ({setting}): {why}"
        return None


def broker(app: Any) -> Server:
    """The broker that this app publishes to. Never raises."""
    # In Celery's order.
    for name in ("broker_write_url", "broker_url"):
        variable = f"CELERY_{name.upper()}"
        if url := os.environ.get(variable):
            return _server(app, "broker", url, f"environment variable {variable}", _BROKER)
        if url := _value(app, name):
            return _server(app, "broker", url, _spelt(app, name), _BROKER)
    setting = f"{_spelt(app, 'broker_url')} is not set"
    return _server(app, "broker", "amqp://guest@localhost:5672//", setting, _BROKER)


def result_backend(app: Any) -> Server:
    """The result backend of this app. Never raises."""
    variable = "CELERY_RESULT_BACKEND"
    if url := os.environ.get(variable):
        return _server(app, "result backend", url, f"environment variable {variable}", _RESULTS)
    url, setting = _value(app, "result_backend"), _spelt(app, "result_backend")
    return _server(app, "result backend", url or "", setting, _RESULTS)


#: The settings, other than the URL, that can name a file.
_BROKER = ("broker_use_ssl", "broker_transport_options")
_RESULTS = ("redis_backend_use_ssl", "result_backend_transport_options")


def _server(app: Any, name: str, url: Any, setting: str, more: tuple[str, ...]) -> Server:
    text = url if isinstance(url, str) else ";".join(map(str, url))
    urls = _NEXT_URL.split(text)
    files = [(path, setting) for one in urls for path in _files(_query(one))]
    for other in more:
        files += [(path, _spelt(app, other)) for path in _files(_value(app, other))]
    shown = ";".join(str(masked(one)) for one in urls)
    return Server(name=name, url=shown, setting=setting, files=tuple(files))


def _query(url: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(urlsplit(url).query))
    except ValueError:
        return {}


def _files(options: Any) -> Iterator[str]:
    if not isinstance(options, Mapping):
        return
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _files(value)
        elif isinstance(value, str) and _FILES.fullmatch(str(name)):
            yield value


def _value(app: Any, name: str) -> Any:
    """A setting; None if the configuration can't be read, which another message reports."""
    try:
        return app.conf.get(name)
    except Exception:  # noqa: BLE001 - whatever the app's configuration raises
        return None


def _spelt(app: Any, name: str) -> str:
    """The setting as this app's configuration spells it, such as Django's ``CELERY_BROKER_URL``."""
    try:
        keys = list(app.conf)  # this makes Celery read a pending configuration and its prefix
        prefix = str(app.conf.prefix or "")
    except Exception:  # noqa: BLE001 - whatever the app's configuration raises
        return name
    if prefix:
        return f"{prefix}{name.upper() if prefix.isupper() else name}"
    old = _OLD_NAMES.get(name)
    return old if old is not None and old in keys else name
