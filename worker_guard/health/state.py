"""What state a worker is in, and whether it is alive and ready. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "ready", "disconnected", "stalled", "no_children", "stopping"]

#: Seconds within which the main loop turns, or the worker is not alive.
LONGEST_TURN_S = 30.0

#: The same while the worker has no broker: one try to connect can hold the loop for over two
#: minutes for each address of a broker that answers nothing.
LONGEST_CONNECT_S = 300.0

_WHY_NOT_READY = {
    "starting": "it has not connected to its broker yet",
    "disconnected": "it is disconnected from its broker",
    "stalled": "its consumer has stalled: messages wait, and it takes none",
    "no_children": "no child is up",
    "stopping": "it is shutting down",
}


@dataclass(frozen=True, kw_only=True)
class HealthFacts:
    """What is known of a worker at one moment.

    ``children_*`` are None if the pool has no children. ``turned_s`` ago the main loop last turned.
    ``task_s``: a task of a solo pool, or a pool that is full, has held the loop for so long.
    """

    was_connected: bool
    connected: bool
    stalled: bool
    stopping: bool
    children_up: int | None = None
    children_expected: int | None = None
    turned_s: float = 0.0
    task_s: float | None = None


def state_of(facts: HealthFacts) -> State:
    """The state; if several apply, the one that explains the others."""
    if facts.stopping:
        return "stopping"
    if not facts.connected:
        return "disconnected" if facts.was_connected else "starting"
    if facts.stalled:
        return "stalled"
    # A pool that autoscale has made empty lacks nothing.
    return "no_children" if facts.children_expected and not facts.children_up else "ready"


def max_age_s(facts: HealthFacts) -> float | None:
    """For how long the loop may not turn from now on; None: for as long as the process exists.

    Nothing turns the loop while the last tasks end, or while tasks hold it.
    """
    if facts.stopping or facts.task_s is not None:
        return None
    return LONGEST_TURN_S if facts.connected else LONGEST_CONNECT_S


def why_not_alive(facts: HealthFacts) -> str:
    """Why the worker is not alive; empty if it is."""
    limit_s = max_age_s(facts)
    if limit_s is None or facts.turned_s <= limit_s:
        return ""
    return f"its main loop has not turned for {facts.turned_s:.0f} s (allowed: {limit_s:g} s)"


def why_not_ready(facts: HealthFacts) -> str:
    """Why the worker is not ready; empty if it is. One that is not alive is not ready."""
    return why_not_alive(facts) or _WHY_NOT_READY.get(state_of(facts), "")
