"""By which way an id came into the revoked set."""

from __future__ import annotations

from enum import Enum


class Source(Enum):
    """By which way an id came into the revoked set."""

    OPERATOR = "operator"
    """A revoke or a terminate, or any way that did not say otherwise."""

    INHERITED = "inherited"
    """From a peer (mingle, hello) or from the statedb: nobody here knows why."""

    EXPIRY = "expiry"
    """``Request.maybe_expire`` of this worker put it there."""
