"""What a record of the result backend says of an id."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.revoked.ledger import Confirmation
from worker_guard.revoked.stored_state import read_record


def revoked(message: Any, **fields: Any) -> dict[str, Any]:
    result = {"exc_type": "TaskRevokedError", "exc_message": message, "exc_module": "celery"}
    return {"status": "REVOKED", "result": {**result, **fields}}


@pytest.mark.parametrize(
    ("record", "confirmation"),
    [
        (revoked(["expired"]), Confirmation.EXPIRED),
        (revoked("expired"), Confirmation.EXPIRED),
        (revoked(("expired",)), Confirmation.EXPIRED),
        (revoked(["revoked"]), Confirmation.OPERATOR),
        (revoked(["terminated"]), Confirmation.OPERATOR),
        (revoked(["expired", "revoked"]), Confirmation.UNCONFIRMED),
        (revoked([]), Confirmation.UNCONFIRMED),
        (revoked(None), Confirmation.UNCONFIRMED),
        (revoked(["expired"], exc_type="Expired"), Confirmation.UNCONFIRMED),
        ({**revoked(["expired"]), "status": "FAILURE"}, Confirmation.UNCONFIRMED),
        ({"status": "REVOKED", "result": "expired"}, Confirmation.UNCONFIRMED),
        ({"status": "SUCCESS", "result": revoked(["expired"])}, Confirmation.UNCONFIRMED),
        ({"status": "PENDING", "result": None}, Confirmation.UNCONFIRMED),
        ([], Confirmation.UNCONFIRMED),
        (None, Confirmation.UNCONFIRMED),
        ("expired", Confirmation.UNCONFIRMED),
    ],
)
def test_what_a_record_says(record: Any, confirmation: Confirmation) -> None:
    """Only REVOKED with exactly "expired" confirms an id."""
    assert read_record(record) is confirmation
