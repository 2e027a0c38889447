"""The demo's second act: a child that leaks is replaced while it works, and nothing is lost.

Alone: ``python -m tests.demo.memory``; exit code 1 where a claim does not hold.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.harness.memory import LEAK_MB, LIMIT, MB, assert_unharmed, happened, memory_site
from tests.harness.redis_server import RedisServer

Say = Callable[[str], None]
Claims = list[tuple[str, bool]]


def act(say: Say) -> Claims:
    """Play the act; returns each claim with whether it held."""
    with (
        RedisServer() as server,
        tempfile.TemporaryDirectory() as directory,
        memory_site(server, Path(directory)) as site,
    ):
        worker = site.start("--concurrency=2")
        say(f"A worker with two children, and a limit of {LIMIT // MB} MB for each.")

        say(f"A task leaks {LEAK_MB} MB and goes on working; tasks that leak 10 MB run beside it.")
        long_task = site.send("wait", LEAK_MB)
        leaks = [site.send("work", 0.05, 10) for _ in range(60)]
        requested = happened(worker, "child_recycle_requested")
        asked = next(e for e in happened(worker, "child_recycle_requested") if e["busy"])
        used = asked["used_bytes"] / MB
        say(
            f"  the guard: child {asked['child_pid']} holds {used:.0f} MB, "
            f"runs {asked['task_name']}, and is to leave after it"
        )
        for leak in leaks:
            leak.get(timeout=60)
        say("Now the long task may come to its end.")
        site.free()
        arrived = long_task.get(timeout=60)
        requested = worker.events("child_recycle_requested")
        recycled = happened(worker, "child_recycled", len(requested))
        for event in recycled:
            say(
                f"  the guard: child {event['child_pid']} was replaced by "
                f"{event['replacement_pid']}, {event['freed_bytes'] / MB:.0f} MB are free again"
            )
        suspect = requested[-1]["suspects"][0]["task"]
        say(f"  the guard suspects: {suspect}")
        once = set(site.finished().values()) == {1} and len(site.finished()) == len(leaks)
        stopped = worker.stop() == 0
        try:
            assert_unharmed(worker)
        except AssertionError:
            unharmed = False
        else:
            unharmed = stopped
        named = any(e["task_id"] == long_task.id for e in requested)
        return [
            ("the child that held too much was asked while its task ran, and named it", named),
            ("its task came to its end in that child, and the result arrived", arrived > 0),
            (f"all {len(leaks)} tasks beside it ran, each once", once),
            ("each child that was asked was replaced by a smaller one", _smaller(recycled)),
            ("no child was killed, and the worker ended with exit code 0", unharmed),
        ]


def _smaller(recycled: list[dict[str, int]]) -> bool:
    return bool(recycled) and all(event["freed_bytes"] > 0 for event in recycled)


def main() -> int:
    """Play the act by itself."""
    claims = act(print)
    for claim, held in claims:
        print(("held  " if held else "FAILED"), claim)
    return 0 if all(held for _, held in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
