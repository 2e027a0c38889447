"""The answer of ``inspect guard``, and the schema that describes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from tests.harness.answers import FULL
from tests.harness.schemas import faults
from tests.screens.draw import recorded
from worker_guard.commands.status.view import document, read_fleet


def answer() -> Any:
    """A status by JSON."""
    return json.loads(json.dumps(asdict(FULL)))


def test_the_schema_names_each_field() -> None:
    """And no other: it takes no field that it does not name."""
    assert faults("inspect.schema.json", {"w@test": answer()}) == []


def test_what_real_workers_answered_is_as_the_schema_says() -> None:
    """Recorded answers, and the document that is made of them."""
    assert faults("inspect.schema.json", dict(recorded().replies)) == []
    assert faults("status.schema.json", document(read_fleet(recorded()))) == []


@pytest.mark.parametrize("change", ["type", "missing", "more"])
def test_the_schema_finds_what_is_not_as_it_says(change: str) -> None:
    """A value of the wrong type, a missing field and one that it does not name."""
    given = answer()
    if change == "missing":
        del given["revoked"]["operator"]
    else:
        given["revoked"]["operator" if change == "type" else "more"] = "2"
    assert (
        faults(
            "status.schema.json",
            {
                **document(read_fleet(recorded())),
                "workers": {"w@test": {"guard": given, "troubles": []}},
            },
        )
        != []
    )
