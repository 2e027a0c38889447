"""What a record of the result backend says of an id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker_guard.revoked.ledger import Confirmation


def read_record(record: Any) -> Confirmation:
    """Read a decoded result record (``celery-task-meta-…``).

    Celery stores ``TaskRevokedError('expired')`` for an expired message and, from 5.6 on,
    ``TaskRevokedError('revoked')`` for an operator's revoke
    (``celery/worker/request.py``, ``celery/worker/control.py``).
    """
    if not isinstance(record, Mapping) or record.get("status") != "REVOKED":
        return Confirmation.UNCONFIRMED
    result = record.get("result")
    if not isinstance(result, Mapping) or result.get("exc_type") != "TaskRevokedError":
        return Confirmation.UNCONFIRMED
    message = result.get("exc_message")
    if isinstance(message, list | tuple):
        message = message[0] if len(message) == 1 else None
    if message == "expired":
        return Confirmation.EXPIRED
    return (
        Confirmation.OPERATOR if message in ("revoked", "terminated") else Confirmation.UNCONFIRMED
    )
