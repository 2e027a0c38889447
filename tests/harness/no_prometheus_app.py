"""The tests' app in an environment without prometheus_client."""

from __future__ import annotations

import sys

sys.modules["prometheus_client"] = None  # type: ignore[assignment]

from tests.harness.app import app  # noqa: E402

__all__ = ["app"]
