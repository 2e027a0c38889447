"""What every test can ask for."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.redis_server import RedisServer
from tests.harness.workers import NEVER_DUE, Fleet, fleet
from worker_guard.event_log import LOGGER
from worker_guard.log_destination import WorkersOwnDestination

#: Fast enough for a test, and each still many times the time that a step of it takes.
FAST = {"worker_guard_interval": 0.3, "worker_guard_revoked_grace": 0.6, **NEVER_DUE}

# How long an example takes is the machine's affair: Hypothesis's own limit is 0.2 s.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


# What is ignored here is ignored by every process that a test starts: so it is under nohup, and in
# the background of a shell script.
for _signum, _usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _usual)


@pytest.fixture(autouse=True)
def no_log_is_left_open() -> Iterator[None]:
    """A guard that a test leaves behind would write, and fail, in the tests after it."""
    yield
    left = [type(handler).__name__ for handler in logging.getLogger(LOGGER).handlers]
    assert WorkersOwnDestination.__name__ not in left


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer() as server:
        yield server


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[MakeFleet]:
    """Makes a fleet on this Redis, broker and results, with a fast guard; settings can differ."""
    with ExitStack() as stack:

        def make(**conf: Any) -> Fleet:
            urls = {"broker_url": redis_server.url(0), "result_backend": redis_server.url(1)}
            return stack.enter_context(fleet(tmp_path, **{**urls, **FAST, **conf}))

        yield make
