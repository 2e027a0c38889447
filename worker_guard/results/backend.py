"""The result backend to clean: its client, the names of its keys, and its age limit."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from math import ceil
from typing import Any

from celery import states

from worker_guard import celery_internals
from worker_guard.errors import WorkerGuardError
from worker_guard.results.cleanup_run import (
    CleanupRun,
    Pace,
    ResultsActor,
    check_server,
    server_time,
)
from worker_guard.results.protected_keys import OWN_PREFIX, protected
from worker_guard.results.selection import Policy
from worker_guard.settings import Settings
from worker_guard.values.key_patterns import Glob

#: A TTL that differs from the backend's by less comes from a host with another clock.
_CLOCKS_APART_S = 300.0

#: If no age is configured, an age given by hand leads to no shorter TTL than this.
_DAY_S = 86_400.0

#: Seconds for a connect, and for an answer, in a process that does nothing but clean.
TIMEOUT_S = 10.0


class NoRedisResultsError(WorkerGuardError):
    """The app does not keep its results in Redis; the message says where.

    Celery's own ``celery.backend_cleanup`` serves the backends that don't expire by themselves.
    """


class BackendUnreadableError(WorkerGuardError):
    """The URL of the result backend is invalid; the message says what it has to look like."""


class NoPrefixError(WorkerGuardError):
    """The names of results are not distinct from those of other keys, so nothing may be deleted.

    Give the backend's class a ``task_keyprefix``, ``group_keyprefix`` and ``chord_keyprefix``.
    """


@dataclass(frozen=True, kw_only=True)
class ResultBackend:
    """One result backend. ``configured_max_age_s`` is None if results are meant to stay."""

    client: Any
    changer: Any
    own_prefix: str
    task_prefix: bytes
    state_prefixes: tuple[bytes, ...]
    state_patterns: tuple[Glob, ...]
    protected: tuple[Glob, ...]
    naive_ahead_s: int
    configured_max_age_s: float | None
    backend_ttls_s: tuple[float, ...]

    def check(self) -> None:
        """Make sure that a cleanup of this server is possible, before anything is written to it.

        Raises:
            CleanupImpossibleError: the server is a node of a cluster.
            redis.exceptions.RedisError: the server is away, or refuses scripts.
        """
        check_server(self.client, self.own_prefix)

    def begin(
        self, *, max_age_s: float, actor: ResultsActor, pace: Pace, ignore_ttl: bool = False
    ) -> CleanupRun:
        """Start a cleanup with this age, after :meth:`check`. Changes nothing yet.

        Raises:
            redis.exceptions.RedisError: the server is away.
        """
        now = int(server_time(self.client, time.time))
        # A connection of the last cleanup can be stale, and this client retries nothing.
        self.changer.connection_pool.disconnect()
        return CleanupRun(
            self.client,
            self._policy(now, max_age_s, ignore_ttl=ignore_ttl),
            actor=actor,
            pace=pace,
            changer=self.changer,
        )

    def _policy(self, now: int, max_age_s: float, *, ignore_ttl: bool = False) -> Policy:
        # The age of one cleanup says which results are old, not how soon a state may be lost.
        ttl_s = max(max_age_s, self.configured_max_age_s or _DAY_S)
        return Policy(
            task_prefix=self.task_prefix,
            state_prefixes=self.state_prefixes,
            state_patterns=self.state_patterns,
            protected=self.protected,
            ready_states=frozenset(states.READY_STATES),
            now=now,
            done_before=now - ceil(max_age_s),
            ttl_ms=max(1, ceil(ttl_s * 1000)),
            naive_ahead_s=self.naive_ahead_s,
            backend_ttls_s=tuple(
                self._about(given_s) for given_s in self.backend_ttls_s if given_s > max_age_s
            ),
            ignore_ttl=ignore_ttl,
        )

    def _about(self, ttl_s: float) -> tuple[int, int]:
        """The range in which a TTL of the backend lies if the clocks of two hosts differ."""
        apart_s = min(_CLOCKS_APART_S, ttl_s / 10)
        return int(ttl_s - apart_s - self.naive_ahead_s) - 2, ceil(ttl_s + apart_s) + 2


def open_result_backend(app: Any, settings: Settings, *, timeout_s: float) -> ResultBackend:
    """The result backend of this app. Connects to nothing yet.

    Raises:
        NoRedisResultsError: it is not Redis.
        BackendUnreadableError: its URL is invalid.
        NoPrefixError: its keys have no prefix.
    """
    backend = backend_of(app)
    if not celery_internals.is_redis(backend):
        raise NoRedisResultsError(f"no Redis result backend: it is {type(backend).__name__}")
    own_prefix = celery_internals.key_prefix(backend) + OWN_PREFIX
    prefixes = celery_internals.result_key_prefixes(backend)
    if any(own_prefix.encode().startswith(prefix) for prefix in prefixes):
        raise NoPrefixError(
            "task_keyprefix, group_keyprefix or chord_keyprefix of the result backend is empty, "
            "so any key could be a result; give each a value"
        )
    task_prefix, *state_prefixes = prefixes
    return ResultBackend(
        client=celery_internals.results_client(backend, timeout_s),
        changer=celery_internals.results_client(backend, timeout_s, again=False),
        own_prefix=own_prefix,
        task_prefix=task_prefix,
        state_prefixes=tuple(state_prefixes),
        state_patterns=tuple(map(Glob, settings.state_patterns)),
        protected=protected(
            # Each name makes each call a little slower, and only a pattern can reach a queue.
            queues=[app.conf.task_default_queue, *app.amqp.queues]
            if settings.state_patterns
            else [],
            broker_options=app.conf.get("broker_transport_options") or {},
            redbeat_prefix=app.conf.get("redbeat_key_prefix"),
        ),
        naive_ahead_s=celery_internals.naive_date_ahead_s(app),
        configured_max_age_s=_max_age_s(settings.results_max_age, backend),
        backend_ttls_s=celery_internals.result_ttls_s(backend),
    )


def backend_of(app: Any) -> Any:
    """The result backend of this app, as Celery makes it; of any kind.

    Raises:
        BackendUnreadableError: its URL is invalid.
    """
    try:
        return app.backend
    except ValueError:
        # Without the original error, which may quote a piece of a password.
        raise BackendUnreadableError(
            "result_backend is not a URL that can be read; it has to look like redis://host:6379/0 "
            "(rediss:// also needs ?ssl_cert_reqs=required, or another of its values), with "
            "user:password@ before the host if there is one, and /, #, ? and @ in a password as "
            "%2F, %23, %3F, %40"
        ) from None


def _max_age_s(setting: float | None, backend: Any) -> float | None:
    """The configured age; 0 means for ever, as in ``result_expires``."""
    max_age_s = celery_internals.result_ttl_s(backend) if setting is None else setting
    return max_age_s or None


def this_process() -> str:
    """How the history names this process, which is no worker."""
    return f"cli@{socket.gethostname()}"
