"""What a record of the result backend proves."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.revoked.ledger import Verdict
from worker_guard.revoked.record import judge


def revoked(message: Any, **fields: Any) -> dict[str, Any]:
    result = {"exc_type": "TaskRevokedError", "exc_message": message, "exc_module": "celery"}
    return {"status": "REVOKED", "result": {**result, **fields}}


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (revoked(["expired"]), Verdict.EXPIRED),
        (revoked("expired"), Verdict.EXPIRED),
        (revoked(("expired",)), Verdict.EXPIRED),
        (revoked(["revoked"]), Verdict.OPERATOR),
        (revoked(["terminated"]), Verdict.OPERATOR),
        (revoked(["expired", "revoked"]), Verdict.UNPROVEN),
        (revoked([]), Verdict.UNPROVEN),
        (revoked(None), Verdict.UNPROVEN),
        (revoked(["expired"], exc_type="Expired"), Verdict.UNPROVEN),
        ({**revoked(["expired"]), "status": "FAILURE"}, Verdict.UNPROVEN),
        ({"status": "REVOKED", "result": "expired"}, Verdict.UNPROVEN),
        ({"status": "SUCCESS", "result": revoked(["expired"])}, Verdict.UNPROVEN),
        ({"status": "PENDING", "result": None}, Verdict.UNPROVEN),
        ([], Verdict.UNPROVEN),
        (None, Verdict.UNPROVEN),
        ("expired", Verdict.UNPROVEN),
    ],
)
def test_judge(record: Any, verdict: Verdict) -> None:
    """Only REVOKED with exactly "expired" is a proof."""
    assert judge(record) is verdict
