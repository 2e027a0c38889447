"""Who put each id into the revoked set, and which ids may leave it.

Celery's set holds bare ids. The ledger remembers beside it why each one is there. It takes plain
values and the time, does no I/O, and decides nothing by guessing: an id that came in without
saying why counts as an operator's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Source(Enum):
    """By which way an id came into the revoked set."""

    OPERATOR = "operator"
    """A revoke or a terminate, or any way that did not say otherwise."""

    FOREIGN = "foreign"
    """From a peer (mingle, hello) or from the statedb: nobody here knows why."""

    EXPIRY = "expiry"
    """``Request.maybe_expire`` of this worker put it there."""


class Origin(Enum):
    """What is known of an id in the set."""

    OPERATOR = "operator"
    FOREIGN = "foreign"
    EXPIRING = "expiring"
    """Put there by an expiry here that the signal ``task_revoked`` has not confirmed."""

    EXPIRED = "expired"
    """Put there by an expiry here, confirmed by the signal, and by nothing else."""


class Verdict(Enum):
    """What the result backend says of an id from elsewhere."""

    EXPIRED = "expired"
    """REVOKED with "expired", and no guard recorded an operator's revocation."""

    OPERATOR = "operator"
    """A guard recorded that an operator revoked it, or Celery did (from 5.6 on)."""

    UNPROVEN = "unproven"
    """Anything else: no record, another state, one that can't be read."""


class _Entry(NamedTuple):
    origin: Origin
    since_mono: float
    """When it came in last, by any way: the stamp that Celery's own set has."""


class _Lookup(NamedTuple):
    attempts: int
    due_mono: float


@dataclass(frozen=True)
class Selection:
    """What a sweep does with the ids that it was shown."""

    clear: tuple[str, ...] = ()
    """Only expiry put them there, and the grace is over."""

    look_up: tuple[str, ...] = ()
    """From elsewhere, the grace is over, and it is time to ask the result backend."""

    age_out: tuple[str, ...] = ()
    """Older than Celery's own ``REVOKE_EXPIRES``, whatever put them there."""

    gone: tuple[str, ...] = ()
    """No longer in the set: Celery dropped them."""


#: An id from elsewhere without proof is asked for again after this many graces, then twice as
#: many, and so on up to the limit: its record may still be written.
_LOOKUP_BACKOFF_LIMIT = 64


class Ledger:
    """The origin of each id in the revoked set of this worker."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._lookups: dict[str, _Lookup] = {}
        self._counts: Counter[Origin] = Counter()

    # -- what happens to ids ---------------------------------------------------------------

    def added(self, task_id: str, source: Source, now: float) -> None:
        """An id was added to the set, by ``source``.

        An operator's stays an operator's. An id from elsewhere needs the result backend's proof
        even when its message expires here too: the peer may have had it from an operator.
        """
        known = self._entries.get(task_id)
        origin = known.origin if known else None
        if source is Source.OPERATOR or origin is Origin.OPERATOR:
            origin = Origin.OPERATOR
        elif source is Source.FOREIGN or origin is Origin.FOREIGN:
            origin = Origin.FOREIGN
        else:
            origin = Origin.EXPIRING
        self._put(task_id, _Entry(origin, now))
        self._lookups.pop(task_id, None)

    def confirmed_expired(self, task_id: str, now: float) -> None:
        """``task_revoked`` was sent for this id with ``expired=True``."""
        known = self._entries.get(task_id)
        if known and known.origin is Origin.EXPIRING:
            self._put(task_id, _Entry(Origin.EXPIRED, now))

    def judged(self, task_id: str, verdict: Verdict, now: float, grace_s: float) -> bool:
        """The result backend gave its verdict on an id from elsewhere.

        Returns whether the id may be cleared now. That is asked again here because an operator
        can have revoked it while the look-up was under way.
        """
        known = self._entries.get(task_id)
        if known is None or known.origin is not Origin.FOREIGN:
            return False
        if verdict is Verdict.EXPIRED:
            return True
        if verdict is Verdict.OPERATOR:
            self._put(task_id, _Entry(Origin.OPERATOR, known.since_mono))
            self._lookups.pop(task_id, None)
            return False
        attempts = self._lookups[task_id].attempts + 1 if task_id in self._lookups else 1
        pause_s = max(grace_s, 1.0) * min(2.0**attempts, _LOOKUP_BACKOFF_LIMIT)
        self._lookups[task_id] = _Lookup(attempts, now + pause_s)
        return False

    def forget(self, task_ids: Iterable[str]) -> None:
        """These ids have left the set (or, in a dry run, would have)."""
        for task_id in task_ids:
            known = self._entries.pop(task_id, None)
            if known is not None:
                self._counts[known.origin] -= 1
            self._lookups.pop(task_id, None)

    # -- what to do with them --------------------------------------------------------------

    def select(
        self,
        task_ids: Iterable[str],
        now: float,
        *,
        held: Container[str],
        grace_s: float,
        max_age_s: float,
    ) -> Selection:
        """Decide what becomes of ``task_ids``; changes nothing.

        ``held`` is the set itself. ``max_age_s`` is Celery's ``REVOKE_EXPIRES``; 0 is no limit.
        """
        clear: list[str] = []
        look_up: list[str] = []
        age_out: list[str] = []
        gone: list[str] = []
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is None:
                continue
            age_s = now - entry.since_mono
            if task_id not in held:
                gone.append(task_id)
            elif entry.origin is Origin.EXPIRED and age_s >= grace_s:
                clear.append(task_id)
            elif max_age_s and age_s >= max_age_s:
                age_out.append(task_id)
            elif entry.origin is Origin.FOREIGN and age_s >= grace_s:
                lookup = self._lookups.get(task_id)
                if lookup is None or now >= lookup.due_mono:
                    look_up.append(task_id)
        return Selection(tuple(clear), tuple(look_up), tuple(age_out), tuple(gone))

    # -- what is known ---------------------------------------------------------------------

    def count(self, origin: Origin) -> int:
        """How many ids have this origin."""
        return self._counts[origin]

    def ids(self, origin: Origin | None = None) -> Collection[str]:
        """The ids that are known now, all or those of one origin; a copy."""
        if origin is None:
            return list(self._entries)
        return [i for i, entry in self._entries.copy().items() if entry.origin is origin]

    def origin(self, task_id: str) -> Origin | None:
        """The origin of one id; None where it is not known."""
        known = self._entries.get(task_id)
        return known.origin if known else None

    def copy(self) -> Ledger:
        """A ledger of its own with the same content, for a sweep that must not leave a trace."""
        twin = Ledger()
        twin._entries = self._entries.copy()
        twin._lookups = self._lookups.copy()
        twin._counts = self._counts.copy()
        return twin

    def _put(self, task_id: str, entry: _Entry) -> None:
        known = self._entries.get(task_id)
        if known is not None:
            self._counts[known.origin] -= 1
        self._counts[entry.origin] += 1
        self._entries[task_id] = entry
