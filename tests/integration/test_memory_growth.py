"""A real child that leaks, and when the guard says that it reaches its limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.harness.memory import MB, children, happened, memory_site
from tests.harness.memory_app import HASTE
from tests.harness.redis_server import RedisServer
from tests.harness.workers import wait_for


def test_the_child_that_grows_has_a_number_until_it_reaches_its_limit(
    server: RedisServer, tmp_path: Path
) -> None:
    """The others have none: neither the idle child nor the main process. Minutes are 0.2 s here."""
    conf: dict[str, Any] = {
        "worker_guard_child_memory_limit": 300 * MB,
        "worker_guard_parent_memory_limit": 300 * MB,
        "worker_guard_memory_interval": 0.05,
    }
    with memory_site(server, tmp_path, **conf) as site:
        worker = site.start("--concurrency=2", environ={HASTE: "300"})
        site.send("drip", 0.1)
        (pid,) = site.waiting()

        def foreseen() -> list[dict[str, Any]]:
            return [child for child in children(worker) if child["limit_in_s"] is not None]

        (child,) = wait_for(foreseen, "a number")
        assert child["pid"] == pid
        assert child["limit_in_s"] > 0
        assert worker.ask("guard")["memory"]["parent"]["limit_in_s"] is None
        assert not worker.events("child_over_limit")
        assert happened(worker, "child_over_limit")[0]["child_pid"] == pid
        wait_for(lambda: not foreseen(), "the number to go")
        site.free()
        assert not worker.events("part_failed")
        assert worker.stop() == 0
