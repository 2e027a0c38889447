"""``python -m tests.screens``: draw the screens anew; with ``record``, ask real workers first."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.harness.memory import LIMIT, Site, memory_site
from tests.harness.memory_app import LEDGER, PRELOAD
from tests.harness.redis_server import RedisServer
from tests.harness.workers import bare_worker, wait_for
from tests.screens.audit import AUDIT_SCREEN, audit_screen
from tests.screens.draw import SCREENS, keep, recorded, screens
from worker_guard.commands.status.asking import Workers
from worker_guard.commands.status.view import Answers, document, read_fleet

GUARDED = ("images@test", "mail@test")


def record() -> Answers:
    """Let real workers get into a state that is worth a picture, and ask them."""
    settings = {
        "worker_guard_interval": 2.0,
        "worker_guard_revoked_grace": 60.0,
        "worker_guard_memory_interval": 0.5,
        "worker_guard_parent_memory_limit": 4 * LIMIT,
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer() as server,
        memory_site(server, Path(directory), **settings) as site,
        bare_worker("legacy@test", server.url()),
    ):
        environ = {LEDGER: site.url, PRELOAD: "0"}
        memory_app = "tests.harness.memory_app"
        site.fleet.expire(*(f"newsletter-{number}" for number in range(12)))
        site.fleet.start("mail", "--concurrency=4", app_module=memory_app, environ=environ)
        run_into_trouble(site)
        site.fleet.start("images", "--pool=solo", "--guard-dry-run")
        asking = Workers(site.fleet.app, destination=(), timeout_s=2.0)

        def all_there() -> list[Answers]:
            answers = asking.ask()
            swept = [document(read_fleet(answers))["workers"][name] for name in GUARDED]
            done = all(w["guard"] and w["guard"]["totals"]["sweeps"] for w in swept)
            (mail,) = [w["guard"] for name, w in zip(GUARDED, swept, strict=True) if "mail" in name]
            done = (
                done and mail["last_backfill"] and any(map(is_leaving, mail["memory"]["children"]))
            )
            return [answers] if done and len(answers.present) > len(GUARDED) else []

        (found,) = wait_for(all_there, "three workers to answer")
        site.free()
        return found


def is_leaving(child: dict[str, Any]) -> bool:
    """Whether this child is on its way out, and its task is not over."""
    return bool(child["leaving"] and child["task"])


def run_into_trouble(site: Site) -> None:
    """Revoke ids, and keep two children busy, one of them with too much memory."""
    site.fleet.app.control.revoke(["invoice-17", "invoice-18"])
    site.send("wait", 12)
    site.send("wait", 60)
    site.waiting(2)


def main(arguments: list[str]) -> int:
    """Write the pictures into the documentation."""
    if arguments == ["record"]:
        keep(record())
    elif arguments:
        print(__doc__)
        return 2
    for name, text in screens(recorded()).items():
        (SCREENS / name).write_text(text)
    (SCREENS / AUDIT_SCREEN).write_text(audit_screen())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
