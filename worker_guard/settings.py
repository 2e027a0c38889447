"""The settings: what they are, and the one place that reads, checks and converts them."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import IO, Any, Protocol

from celery.exceptions import CeleryCommandException, ImproperlyConfigured

from worker_guard.errors import WorkerGuardError
from worker_guard.values.sizes import LEAST_BYTES, parse_size, size, size_bytes

PREFIX = "worker_guard_"
LOG_FORMATS = ("json", "console", "inherit")
MEMORY_METRICS = ("uss", "pss", "rss")
PARENT_ACTIONS = ("log", "shutdown")
STALL_ACTIONS = ("log", "reconnect", "shutdown")

Parse = Callable[[Any], Any]

#: What ``conf.get`` returns for a key that it lists but can't look up, such as an upper-case one.
_UNREADABLE = object()


class SettingError(WorkerGuardError, ImproperlyConfigured, CeleryCommandException):
    """A ``worker_guard_*`` setting is misspelt or has a value that is not allowed.

    The worker does not start. Correct the setting that the message names, or remove it to get
    its default. On the command line this is one line and exit code 2; in Python it is an
    :exc:`~celery.exceptions.ImproperlyConfigured`.
    """

    def __init__(self, message: str) -> None:
        CeleryCommandException.__init__(self, message, 2)

    def __str__(self) -> str:
        return str(self.message)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line that the command ends with."""
        print(f"ImproperlyConfigured: {self.message}", file=file or sys.stderr)


class Configuration(Protocol):
    """What the guard uses of ``app.conf``."""

    prefix: str | None

    def __iter__(self) -> Iterator[str]: ...
    def get(self, key: str, default: Any = None) -> Any: ...


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def _seconds(*, least: float | None = None, most: float | None = None) -> Parse:
    allowed = "seconds, above 0" if least is None else f"seconds, {least:g} or more"
    if most is not None:
        allowed += f", {most:g} at the most"

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(allowed)
        # The comparison is written so that it is false for a NaN too.
        if not (value > 0 if least is None else value >= least) or value == float("inf"):
            raise ValueError(allowed)
        if most is not None and value > most:
            raise ValueError(allowed)
        return float(value)

    return parse


def _lifetime(value: Any) -> float | None:
    return None if value is None else _above_zero(value, "None (for ever), or seconds, above 0")


def _or_never(allowed: str, *, least: float = 0.0) -> Parse:
    def parse(value: Any) -> float | None:
        seconds = None if value is None else _above_zero(value, allowed)
        if seconds is not None and seconds < least:
            raise ValueError(allowed)
        return seconds

    return parse


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("an int, 1 or more")
    return value


def _threshold(value: Any) -> float | None:
    return _number(value, "None, or a number, 0 or more", most=float("inf"))


def _share(value: Any) -> float | None:
    return _number(value, "None, or a share, 0 to 1, such as 0.8", most=1.0)


def _number(value: Any, allowed: str, *, most: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(allowed)
    # Written so that it is false for a NaN too.
    if not 0 <= value <= most or value == float("inf"):
        raise ValueError(allowed)
    return value


def _heartbeat_file(value: Any) -> str | None:
    allowed = "None, or a path such as '/run/worker/%n.json' (%n: name, %h: host, %d: domain)"
    if value is None:
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or value.endswith("/") or "\0" in value:
        raise ValueError(allowed)
    if set(re.findall("%(.?)", value.replace("%%", ""))) - set("nhdpiI"):
        raise ValueError(allowed)
    return value


def _port(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError("None, or a port, 1 to 65535")
    return value


def _host(value: Any) -> str:
    from ipaddress import ip_address

    # No host names: if the name server hangs, looking one up would hold the worker.
    allowed = "an address such as '127.0.0.1', '0.0.0.0' or '::1', or 'localhost'"
    if value == "localhost":
        return str(value)
    try:
        ip_address(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise ValueError(allowed) from exc
    return str(value)


def _one_of(*choices: str) -> Parse:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(" or ".join(map(repr, choices)))
        return str(value)

    return parse


def _results_schedule(value: Any) -> Any:
    from celery.schedules import BaseSchedule

    if value is None or isinstance(value, BaseSchedule):
        return value
    return _above_zero(value, "a Celery schedule such as crontab(hour=5), seconds above 0, or None")


def _results_max_age(value: Any) -> float | None:
    allowed = "seconds or a timedelta, 0 (results stay for ever) or more, or None (result_expires)"
    if value is None:
        return None
    if value in (0, timedelta(0)) and not isinstance(value, bool):
        return 0.0
    return _above_zero(value, allowed)


def _above_zero(value: Any, allowed: str) -> float:
    """Seconds or a timedelta, as seconds."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(allowed)
    # Beyond a thousand years, a TTL in milliseconds is more than Redis takes.
    if not 0 < seconds < 3.2e10:
        raise ValueError(allowed)
    return float(seconds)


def _state_patterns(value: Any) -> tuple[str, ...]:
    from worker_guard.values.key_patterns import Glob

    allowed = "a tuple or list of Redis key patterns such as ('app-state:*',)"
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
        raise ValueError(allowed)
    try:
        for pattern in value:
            Glob(pattern)
    except ValueError as exc:
        raise ValueError(f"{allowed}; {exc}") from exc
    return tuple(value)


def _default_schedule() -> Any:
    from celery.schedules import crontab

    return crontab(hour=5, minute=0)


def _setting(default: Any, parse: Parse) -> Any:
    return field(default=default, metadata={"parse": parse})


def _plain(value: Any) -> object:
    """The value as JSON can hold it; a schedule as Celery prints it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the guard, converted and checked.

    The setting ``worker_guard_interval`` is the field ``interval``, and so on.
    """

    enabled: bool = _setting(True, _boolean)
    dry_run: bool = _setting(False, _boolean)
    interval: float = _setting(30.0, _seconds())
    revoked_grace: float = _setting(60.0, _seconds(least=0.0))
    revoked_verify: bool = _setting(True, _boolean)
    revocation_lifetime: float | None = _setting(604_800.0, _lifetime)
    memory_interval: float = _setting(5.0, _seconds())
    memory_metric: str = _setting("uss", _one_of(*MEMORY_METRICS))
    child_memory_limit: int | str | None = _setting(None, parse_size)
    parent_memory_limit: int | str | None = _setting(None, parse_size)
    total_memory_limit: int | str | None = _setting(None, parse_size)
    parent_action: str = _setting("log", _one_of(*PARENT_ACTIONS))
    memory_strikes: int = _setting(3, _count)
    recycle_concurrency: int = _setting(1, _count)
    recycle_min_lifetime: float = _setting(60.0, _seconds(least=0.0))
    results_schedule: Any = field(
        default_factory=_default_schedule, metadata={"parse": _results_schedule}
    )
    results_max_age: float | None = _setting(None, _results_max_age)
    state_patterns: tuple[str, ...] = _setting((), _state_patterns)
    broker_schedule: float | None = _setting(3600.0, _or_never("None (never), or seconds, above 0"))
    stall_after: float | None = _setting(120.0, _or_never("None (never), or seconds, above 0"))
    stall_action: str = _setting("log", _one_of(*STALL_ACTIONS))
    unblock_after: float | None = _setting(
        None, _or_never("None (never), or seconds, 30 or more", least=30.0)
    )
    heartbeat_file: str | None = _setting(None, _heartbeat_file)
    heartbeat_interval: float = _setting(5.0, _seconds(most=10.0))
    log_format: str = _setting("json", _one_of(*LOG_FORMATS))
    alert_revoked: float | None = _setting(10, _threshold)
    alert_redis_memory: float | None = _setting(0.8, _share)
    alert_recycles_per_hour: float | None = _setting(1, _threshold)
    metrics_port: int | None = _setting(None, _port)
    metrics_host: str = _setting("127.0.0.1", _host)

    def named(self) -> dict[str, object]:
        """Each value under the full name of its setting."""
        return {PREFIX + f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def read_settings(
    conf: Configuration, *, dry_run: bool = False, structlog_configured: bool = False
) -> Settings:
    """Read the settings from ``app.conf``.

    ``dry_run`` is the command line's flag: it switches a dry run on, never off.
    ``structlog_configured`` makes ``"inherit"`` the default log format.

    Raises:
        SettingError: a value is not allowed, or a ``worker_guard_*`` key is unknown.
    """
    parsers = {f.name: f.metadata["parse"] for f in fields(Settings)}
    values: dict[str, Any] = {}
    for name, given in given_keys(conf).items():
        value = conf.get(PREFIX + name, _UNREADABLE)
        if name not in parsers or value is _UNREADABLE:
            raise SettingError(_unknown(given, parsers, shout=bool(conf.prefix)))
        try:
            values[name] = parsers[name](value)
        except ValueError as exc:
            raise SettingError(
                f"{given} is {value!r}; allowed: {exc}. Correct it in the app's configuration."
            ) from exc
    if structlog_configured:
        values.setdefault("log_format", "inherit")
    if dry_run:
        values["dry_run"] = True
    return Settings(**values)


def check_shares(conf: Configuration, settings: Settings, available_bytes: int) -> None:
    """Check that no memory limit is too small, now that the size of a share is known.

    Raises:
        SettingError: a share comes to less than the smallest limit.
    """
    names = given_keys(conf)
    for name in (f.name for f in fields(Settings) if f.metadata["parse"] is parse_size):
        limit = getattr(settings, name)
        limit_bytes = size_bytes(limit, available_bytes)
        if limit_bytes is not None and limit_bytes < LEAST_BYTES:
            raise SettingError(
                f"{names.get(name, PREFIX + name)} is {limit!r}, which is "
                f"{size(limit_bytes)} of the {size(available_bytes)} that this "
                f"worker may use; allowed: {LEAST_BYTES // 1024**2} MiB or more. Correct it in the "
                "app's configuration."
            )


def given_keys(conf: Configuration) -> Mapping[str, str]:
    """The guard's keys that are set, without their prefix, with the name as the user wrote it.

    Under a namespace (Django) ``app.conf`` answers for the plain name, but lists the key as it
    stands in the source: ``CELERY_WORKER_GUARD_INTERVAL``.
    """
    # List the keys first: that makes Celery read a pending configuration and learn its prefix.
    keys = list(conf)
    namespace = (conf.prefix or "").lower()
    given: dict[str, str] = {}
    for key in keys:
        lowered = str(key).lower()
        plain = lowered.removeprefix(namespace)
        # A key of the source without the namespace is not a Celery setting. But a plain lower-case
        # key can have been set on app.conf itself.
        if namespace and plain == lowered and key != lowered:
            continue
        if plain.startswith(PREFIX):
            given[plain.removeprefix(PREFIX)] = str(key)
    return given


def _unknown(given: str, known: Iterable[str], *, shout: bool) -> str:
    """Name the nearest setting, written the way this configuration has to write it."""
    start = given.lower().find(PREFIX)
    names = [PREFIX + name for name in known]
    near = difflib.get_close_matches(given.lower()[start:], names, n=1, cutoff=0.0)[0]
    if shout and given.isupper():
        near = given[:start] + near.upper()
    return f"{given} is not a setting of worker_guard; did you mean {near}?"
