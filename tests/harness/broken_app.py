"""The harness's app with a guard whose sweep raises at every tick."""

from __future__ import annotations

from typing import Any

from tests.harness.app import app
from worker_guard.revoked.ledger import Ledger


def broken(*_args: Any, **_kwargs: Any) -> Any:
    raise AssertionError("broken; see redis://user:secret@example.org/0")


Ledger.select = broken  # type: ignore[method-assign]

__all__ = ["app"]
