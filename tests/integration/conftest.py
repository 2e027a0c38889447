"""What the tests with real servers and workers can ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.memory import Site, memory_site
from tests.harness.redis_server import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis for all tests of a module."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Any:
    """A client of that Redis, which is empty."""
    server.client.flushall()
    return server.client


@pytest.fixture
def site(server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    """Workers whose children can grow."""
    with memory_site(server, tmp_path) as made:
        yield made
