"""The JSON schemas of the documentation."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.harness.workers import ROOT

REFERENCE = ROOT / "docs" / "reference"


def strict(schema: Any) -> Any:
    """The schema with no field allowed that it does not name, so that none goes undescribed."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items()}
    if "required" in closed:
        closed["additionalProperties"] = False
    return closed


def faults(name: str, document: object) -> list[str]:
    """What in this document is not as the schema says."""
    schemas = {
        path.name: strict(json.loads(path.read_text())) for path in REFERENCE.glob("*.schema.json")
    }
    registry: Any = Registry().with_resources(
        [(key, Resource.from_contents(schema)) for key, schema in schemas.items()]
    )
    validator = Draft202012Validator(schemas[name], registry=registry)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
