"""What an operator revokes, by which way, and how an id came into the revoked set."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple


class Source(Enum):
    """How an id came into the revoked set."""

    OPERATOR = "operator"
    """A revoke, a terminate, or anything else that is none of the below."""

    INHERITED = "inherited"
    """From a peer (mingle, hello) or from the statedb: nobody here knows why."""

    EXPIRY = "expiry"
    """``Request.maybe_expire`` of this worker put it there."""


class Way(Enum):
    """By which way an operator revoked something."""

    REVOKE = "revoke"
    TERMINATE = "terminate"
    STAMPS = "stamps"
    APPLICATION = "application"
    """The application's own code, or one that the guard does not know."""


class Stamp(NamedTuple):
    """A stamped header that an operator revoked: each task that bears it is."""

    header: str
    value: Any


Target = str | Stamp
"""What is revoked: the id of a task, or a stamped header."""
