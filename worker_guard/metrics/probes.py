"""The answers of ``/livez`` and ``/readyz``. Pure."""

from __future__ import annotations

import json
from http import HTTPStatus

from worker_guard.metrics.http import READYZ, Answer
from worker_guard.status_model import HealthStatus


def probe_answer(path: str, health: HealthStatus | None) -> Answer:
    """200 if the worker is alive, or ready, by the path; else 503. The body says why not.

    If nothing is known of its health, the answer is 200: a failure of the guard is no reason to
    kill the worker.
    """
    known = HealthStatus(state="unknown") if health is None else health
    yes = known.ready if path == READYZ else known.alive
    body = {
        ("ready" if path == READYZ else "alive"): yes,
        "state": known.state,
        "why_not": None if yes else known.why_not,
    }
    return Answer(
        HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE,
        json.dumps(body).encode() + b"\n",
        "application/json",
    )
