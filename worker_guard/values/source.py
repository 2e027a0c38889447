"""How an id came into the revoked set."""

from __future__ import annotations

from enum import Enum


class Source(Enum):
    """How an id came into the revoked set."""

    OPERATOR = "operator"
    """A revoke, a terminate, or anything else that is none of the below."""

    INHERITED = "inherited"
    """From a peer (mingle, hello) or from the statedb: nobody here knows why."""

    EXPIRY = "expiry"
    """``Request.maybe_expire`` of this worker put it there."""
