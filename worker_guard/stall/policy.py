"""When the consumer has stalled, and what is due then. Pure: no I/O, time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: Looks in a row that must find the same.
LOOKS = 3

#: So many intervals between two looks mean that the main loop was blocked. At least so many
#: seconds: while nothing happens, the event loop runs its timers once a second.
BLOCKED_INTERVALS, BLOCKED_S = 3, 5.0

#: Reconnects in an hour, at most; before ``shutdown`` shuts down there is one.
RECONNECTS = 3

HOUR_S = 3600.0

#: The limits of the time between two looks.
SHORTEST_LOOK_S, LONGEST_LOOK_S = 1.0, 5.0

Action = Literal["log", "reconnect", "shutdown", "wait"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at the consumer found.

    ``consuming``: it is connected, and not on its way out. ``free``: it would take a message now.
    ``waiting`` are the messages by queue; None: not asked, or no answer. ``held`` are tasks handed
    to the pool whose messages are not acknowledged: a reconnect would make them run again.
    """

    consuming: bool
    free: bool = False
    waiting: Mapping[str, int] | None = None
    held: int = 0

    @property
    def fullest(self) -> tuple[str, int] | None:
        """The queue in which most messages wait, with their number; None if none waits."""
        found = max((self.waiting or {}).items(), key=lambda each: each[1], default=None)
        return found if found is not None and found[1] > 0 else None


@dataclass(frozen=True, kw_only=True)
class ActionDue:
    """The consumer has stalled, and this is to be done now."""

    action: Action


@dataclass(frozen=True, kw_only=True)
class NoLongerStalled:
    """Messages come again, or none waits any more. ``action`` was the last one."""

    action: Action


def look_interval_s(after_s: float) -> float:
    """Seconds between two looks."""
    return min(max(after_s / 10, SHORTEST_LOOK_S), LONGEST_LOOK_S)


class StallPolicy:
    """Judges one look after the other.

    The consumer has stalled if three looks in a row found that messages wait and that it would take
    one, none came between these looks, and none came for ``after_s``. Each doubt begins the count
    anew. If Celery heals a dead connection by itself within a known time, the looks must have found
    that for as long.
    What can't be done (``can_reconnect``, ``can_shut_down``) is left out of ``action``.
    """

    def __init__(
        self,
        *,
        after_s: float,
        interval_s: float,
        action: str,
        can_reconnect: bool,
        can_shut_down: bool,
        now: float,
    ) -> None:
        self.after_s, self.interval_s = after_s, interval_s
        self.action = action
        self.can_reconnect, self.can_shut_down = can_reconnect, can_shut_down
        #: When the last message came; it may be set from outside, at each message.
        self.message_mono = now
        #: Since when the consumer would have taken a message.
        self._free_mono = now
        self._looked_mono: float | None = None
        self._waiting_looks = 0
        self._waiting_mono = now
        self._healing_s = 0.0
        self._calm_looks = 0
        self.since_mono: float | None = None
        self._last_action: Action | None = None
        self._acted_mono = float("-inf")
        self._reconnects: deque[float] = deque()
        self._shutting_down = False

    @property
    def last_action(self) -> Action | None:
        """What was done about the present stall; None if there is none."""
        return self._last_action if self.since_mono is not None else None

    def connected(self, now: float, *, healing_s: float = 0.0) -> None:
        """The consumer has a new connection.

        Within ``healing_s`` Celery notices by itself if that is dead; 0: nobody knows.
        """
        self._free_mono = now
        self._healing_s = healing_s
        self._waiting_looks = 0

    def idle_s(self, now: float) -> float:
        """Seconds since the last message, or since the consumer could take one."""
        return max(0.0, now - max(self.message_mono, self._free_mono))

    def wants_depth(self, now: float) -> bool:
        """Whether the next verdict needs to know how many messages wait."""
        needed_s = (LOOKS + 2) * self.interval_s
        return self.since_mono is not None or self.idle_s(now) >= self.after_s - needed_s

    def reconnects(self, now: float) -> int:
        """The reconnects of the last hour."""
        while self._reconnects and now - self._reconnects[0] >= HOUR_S:
            self._reconnects.popleft()
        return len(self._reconnects)

    def judge(self, look: Look, now: float) -> ActionDue | NoLongerStalled | None:
        """What changed by this look, or what is due now."""
        blocked = self._looked_mono is not None and now - self._looked_mono >= max(
            BLOCKED_S, BLOCKED_INTERVALS * self.interval_s
        )
        came = self._looked_mono is None or self.message_mono >= self._looked_mono
        self._looked_mono = now
        if came:
            self._waiting_looks = 0
        if look.consuming and not blocked and look.free and look.fullest is not None:
            if not self._waiting_looks:
                self._waiting_mono = now
            self._waiting_looks += 1
        else:
            self._waiting_looks = 0
            if look.consuming and (blocked or not look.free):
                self._free_mono = now
        if self._waiting_looks >= LOOKS and self._waited_long_enough(now):
            self._calm_looks = 0
            return self._stalled(look, now)
        return self._perhaps_ended(look)

    def _waited_long_enough(self, now: float) -> bool:
        idle_s = self.idle_s(now)
        return idle_s >= self.after_s and min(idle_s, now - self._waiting_mono) >= self._healing_s

    def _stalled(self, look: Look, now: float) -> ActionDue | None:
        if self.since_mono is None:
            self.since_mono, self._acted_mono = now, float("-inf")
        if now - self._acted_mono < self.after_s or self._shutting_down:
            return None
        action = self._due(look, now)
        if action == self._last_action and action in ("log", "wait"):
            return None  # said before
        self._last_action = action
        if action not in ("log", "wait"):
            self._acted_mono = now
        return ActionDue(action=action)

    def _due(self, look: Look, now: float) -> Action:
        most = {"reconnect": RECONNECTS, "shutdown": 1}.get(self.action, 0)
        if self.can_reconnect and self.reconnects(now) < most:
            if look.held:
                return "wait"
            self._reconnects.append(now)
            return "reconnect"
        if self.action == "shutdown" and self.can_shut_down:
            self._shutting_down = True
            return "shutdown"
        return "log"

    def _perhaps_ended(self, look: Look) -> NoLongerStalled | None:
        if self.since_mono is None:
            return None
        told = look.consuming and (not look.free or look.waiting is not None)
        if told and look.fullest is None:
            self._calm_looks += 1
        elif told:
            self._calm_looks = 0
        if self.message_mono <= self.since_mono and self._calm_looks < LOOKS:
            return None
        action = self._last_action or "log"
        self.since_mono = self._last_action = None
        self._calm_looks, self._shutting_down = 0, False
        return NoLongerStalled(action=action)
