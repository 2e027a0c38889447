"""Who put each id into the revoked set, and which ids may leave it.

Celery's set holds bare ids. The ledger remembers why each one is there. It takes plain values and
the time, and does no I/O. It never guesses: an id whose origin is unknown counts as an operator's.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Container, Iterable, KeysView, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from worker_guard.values.source import Source, Stamp, Target, Way


class Origin(Enum):
    """What is known of an id in the set."""

    OPERATOR = "operator"
    INHERITED = "inherited"
    """From a peer or the statedb, and not yet looked up in the result backend."""

    CONFIRMED = "confirmed"
    """Inherited, and the result backend said "expired" when it was first asked."""

    UNCONFIRMED = "unconfirmed"
    """Inherited, and it said anything else: kept like an operator's, whatever it says later."""

    EXPIRING = "expiring"
    """Added by an expiry here, which the signal ``task_revoked`` has not confirmed yet."""

    EXPIRED = "expired"
    """Added by an expiry here, confirmed by the signal, and by nothing else."""

    ENDED = "ended"
    """An operator's, and its lifetime is over: left to Celery, and never cleared."""

    WOULD_CLEAR = "would_clear"
    """A dry run would have cleared it, and it is still in the set."""


class Confirmation(Enum):
    """What the result backend says of an inherited id."""

    EXPIRED = "expired"
    """REVOKED with "expired", and no guard marked the id."""

    OPERATOR = "operator"
    """It is on record, or Celery recorded a revoke (from 5.6 on)."""

    TAKEN_BACK = "taken_back"
    """Someone took the revocation back."""

    UNCONFIRMED = "unconfirmed"
    """Anything else: no record, another state, one that can't be read."""


#: How many ids that Celery itself dropped are remembered: as many as its set holds by default.
_REMEMBERED = 50_000

#: The ids that Celery dropped are remembered if they have one of these origins: they may be an
#: operator's.
_REMEMBERED_ORIGINS = frozenset(
    {Origin.OPERATOR, Origin.ENDED, Origin.INHERITED, Origin.UNCONFIRMED}
)

#: The origins of ids that leave the set when the grace is over.
LEAVING = (Origin.EXPIRED, Origin.CONFIRMED)

#: A revocation on record is the one that this worker knows if it was made at most this many seconds
#: later. Else it was revoked again, and this worker missed that.
_SAME_S = 1.0


class Held(NamedTuple):
    """A revocation that an operator made."""

    since_mono: float
    way: Way


class _Entry(NamedTuple):
    origin: Origin
    since_mono: float
    """When its grace began, or when an operator revoked it, by this host's monotonic clock. A
    further expiry never renews it, so that an id that expires again and again is still cleared.
    Inheriting an id again does, since a peer that brings it needs that time to put it on record;
    but not for an operator's id, whose lifetime would never end."""

    way: Way = Way.REVOKE
    """By which way an operator revoked it."""


#: The origin of an id that was not known before.
_FIRST = {
    Source.OPERATOR: Origin.OPERATOR,
    Source.INHERITED: Origin.INHERITED,
    Source.EXPIRY: Origin.EXPIRING,
}

#: The origin of an id that was known, if it differs from that of a new one.
_ADDED: dict[Source, dict[Origin | None, Origin]] = {
    Source.OPERATOR: {},
    Source.INHERITED: {
        o: o for o in (Origin.OPERATOR, Origin.ENDED, Origin.UNCONFIRMED, Origin.CONFIRMED)
    },
    Source.EXPIRY: {
        **{o: o for o in (Origin.OPERATOR, Origin.ENDED, Origin.UNCONFIRMED)},
        **{o: o for o in (Origin.CONFIRMED, Origin.EXPIRED)},
        Origin.INHERITED: Origin.UNCONFIRMED,
    },
}

#: The origins whose time a further expiry does not renew.
_EXPIRES_AGAIN = frozenset({Origin.EXPIRING, Origin.EXPIRED, Origin.CONFIRMED, Origin.OPERATOR})

#: The origin of an inherited id once the result backend has answered.
_AFTER = {
    Confirmation.EXPIRED: Origin.CONFIRMED,
    Confirmation.OPERATOR: Origin.OPERATOR,
    Confirmation.UNCONFIRMED: Origin.UNCONFIRMED,
}


@dataclass(frozen=True)
class Selection:
    """What a sweep does with the ids that it was shown."""

    clear: tuple[str, ...] = ()
    """Only expiry here put them there, and the grace is over."""

    look_up: tuple[str, ...] = ()
    """Inherited, and to be looked up: for the first time, or confirmed and the grace is over."""


class Differences(NamedTuple):
    """How the ledger and the set differ."""

    unknown: list[str]
    """In the set, and not in the ledger."""

    missing: list[str]
    """Operators' ids that are not in the set."""


class Ledger:
    """The origin of each id in the revoked set of this worker."""

    def __init__(self) -> None:
        #: Of all origins but OPERATOR. No sweep looks at the operators' ids, which can be many.
        self._entries: dict[str, _Entry] = {}
        self._counts: Counter[Origin] = Counter()
        self._dropped: dict[str, Origin] = {}
        self._operators: dict[str, _Entry] = {}
        self._stamps: dict[Stamp, Held] = {}
        #: Celery still has them, but their lifetime is over.
        self._ended_stamps: set[Stamp] = set()
        #: When the newest of the ids that will be cleared came in; None before the first.
        self.last_leaving_mono: float | None = None
        # Without an event loop, messages with an ETA expire on the timer's thread. Pool children
        # never use the ledger, so it doesn't matter how they inherit the lock.
        self._lock = threading.RLock()

    # -- what happens to ids ---------------------------------------------------------------

    def changing(self) -> AbstractContextManager[object]:
        """Hold this while an id is added to the set: an id that is renewed is out for a moment."""
        return self._lock

    def added(self, task_id: str, source: Source, now: float, way: Way = Way.REVOKE) -> bool:
        """An id was added to the set, by ``source``; if by an operator, by this ``way``.

        Returns whether the id can no longer be confirmed from now on.

        An operator's id stays an operator's. An inherited id needs the result backend's
        confirmation even if its message expires here too: the peer may have had it from an
        operator. If it expires here before the result backend was asked, nothing can confirm it any
        more: the record says "expired" from then on, whatever brought the id to the peer.
        """
        with self._lock:
            known = self._entry(task_id)
            before = known.origin if known else self._dropped.pop(task_id, None)
            origin = _ADDED[source].get(before, _FIRST[source])
            since = now
            if known and (
                (source is Source.EXPIRY and before in _EXPIRES_AGAIN)
                or (source is Source.INHERITED and before is Origin.OPERATOR)
            ):
                since, way = known.since_mono, known.way
            self._put(task_id, _Entry(origin, since, way))
        return origin is Origin.UNCONFIRMED and before is not Origin.UNCONFIRMED

    def confirmed_expired(self, task_id: str) -> None:
        """``task_revoked`` was sent for this id with ``expired=True``."""
        with self._lock:
            known = self._entry(task_id)
            if known and known.origin is Origin.EXPIRING:
                self._put(task_id, _Entry(Origin.EXPIRED, known.since_mono))

    def record_confirmation(
        self, task_id: str, confirmation: Confirmation, now: float, grace_s: float
    ) -> bool:
        """The result backend answered for an inherited id.

        Returns whether the id may be cleared now. The ledger decides, since an operator can have
        revoked the id during the look-up.

        Any answer but "expired" is final. An expiry writes its record as it adds the id, so an id
        without that record is likely an operator's (before Celery 5.6 a revoke leaves none). A
        later record of an expiry doesn't change that.
        """
        with self._lock:
            known = self._entry(task_id)
            if known is None or known.origin not in (Origin.INHERITED, Origin.CONFIRMED):
                return False
            if confirmation is Confirmation.TAKEN_BACK:
                return True
            self._put(task_id, _Entry(_AFTER[confirmation], known.since_mono))
        return confirmation is Confirmation.EXPIRED and now - known.since_mono >= grace_s

    def record_mark(self, task_id: str, *, operators: bool) -> bool:
        """The result backend said whether an id that expired here bears an operator's mark.

        Returns whether the id may be cleared now, as :meth:`record_confirmation` does.
        """
        with self._lock:
            known = self._entry(task_id)
            if known is None or known.origin is not Origin.EXPIRED:
                return False
            if operators:
                self._put(task_id, _Entry(Origin.OPERATOR, known.since_mono))
        return not operators

    def dropped(self, task_id: str) -> None:
        """Celery itself dropped this id: the set was full, or the id was old.

        If it may be an operator's, the ledger remembers that: if an expiry brings the id back, it
        still isn't one that only expiry put there.
        """
        with self._lock:
            known = self._forget(task_id)
            if known is not None and known.origin in _REMEMBERED_ORIGINS:
                self._dropped[task_id] = known.origin
                while len(self._dropped) > _REMEMBERED:
                    del self._dropped[next(iter(self._dropped))]

    def cleared(self, task_ids: Iterable[str], held: Container[str]) -> None:
        """A sweep cleared these ids; those still ``held`` it would have, but for a dry run."""
        with self._lock:
            for task_id in task_ids:
                known = self._forget(task_id)
                if known is not None and task_id in held:
                    self._put(task_id, _Entry(Origin.WOULD_CLEAR, known.since_mono))

    def compare(self, held: KeysView[str]) -> Differences:
        """Compare with the ids that are ``held``, and forget those that are not any more.

        The caller passes the unknown ones to :meth:`added` as an operator's, and puts the missing
        ones back, or passes them to :meth:`dropped`.
        """
        with self._lock:
            if len(held) == len(self._entries) + len(self._operators):
                # To compare large sets in full would hold the loop. If one id left and another came
                # past all hooks, an operator's is put back when Celery looks for it.
                return Differences([], [])
            unknown = list(held - self._entries.keys() - self._operators.keys())
            missing = list(self._operators.keys() - held)
            for task_id in self._entries.keys() - held:
                self.dropped(task_id)
        return Differences(unknown, missing)

    # -- operators' revocations -------------------------------------------------------------

    @property
    def operators(self) -> Mapping[str, object]:
        """The operators' ids: a live view."""
        return self._operators

    def revocation(self, target: Target) -> Held | None:
        """The operator's revocation of this target; None if there is none, or it has ended."""
        if isinstance(target, Stamp):
            return self._stamps.get(target)
        known = self._operators.get(target)
        return Held(known.since_mono, known.way) if known else None

    def revocations(self) -> list[Target]:
        """All that operators revoked, ids and stamped headers."""
        return [*self._operators, *self._stamps]

    def stamped(self, stamp: Stamp, since_mono: float, way: Way) -> bool:
        """An operator revoked this stamped header; returns whether that was not known here."""
        unknown = stamp not in self._stamps
        self._ended_stamps.discard(stamp)
        self._stamps[stamp] = Held(since_mono, way)
        return unknown

    def knows_stamp(self, stamp: Stamp) -> bool:
        """Whether an operator revoked this stamped header, also if that has ended."""
        return stamp in self._stamps or stamp in self._ended_stamps

    def restored(self, task_id: str, since_mono: float, way: Way) -> bool:
        """The id is on record as an operator's; returns whether that was not known here."""
        with self._lock:
            known = self._entry(task_id)
            origin = known.origin if known else None
            if (
                known is not None
                and origin in (Origin.OPERATOR, Origin.ENDED)
                and since_mono <= known.since_mono + _SAME_S
            ):
                return False
            self._dropped.pop(task_id, None)
            self._put(task_id, _Entry(Origin.OPERATOR, since_mono, way))
        return origin is not Origin.OPERATOR

    def ended(self, target: Target) -> None:
        """The lifetime of this operator's revocation is over."""
        if isinstance(target, Stamp):
            if self._stamps.pop(target, None) is not None:
                self._ended_stamps.add(target)
            return
        with self._lock:
            known = self._operators.get(target)
            if known is not None:
                self._put(target, known._replace(origin=Origin.ENDED))

    def forget(self, task_id: str) -> Origin | None:
        """The revocation was taken back; returns the origin that the id had, if it was known."""
        with self._lock:
            self._dropped.pop(task_id, None)
            known = self._forget(task_id)
        return known.origin if known else None

    # -- what to do with them --------------------------------------------------------------

    def select(
        self,
        task_ids: Iterable[str],
        now: float,
        *,
        held: Container[str],
        grace_s: float,
        confirmed_grace_s: float,
    ) -> Selection:
        """Decide what to do with those of ``task_ids`` that are ``held``; changes nothing.

        ``grace_s`` is for ids that expired here, ``confirmed_grace_s`` for confirmed ones.
        """
        clear: list[str] = []
        look_up: list[str] = []
        with self._lock:
            for task_id in task_ids:
                entry = self._entry(task_id)
                if entry is None or task_id not in held:
                    continue
                age_s = now - entry.since_mono
                if entry.origin is Origin.EXPIRED and age_s >= grace_s:
                    clear.append(task_id)
                elif entry.origin is Origin.INHERITED or (
                    entry.origin is Origin.CONFIRMED and age_s >= confirmed_grace_s
                ):
                    look_up.append(task_id)
        return Selection(tuple(clear), tuple(look_up))

    # -- what is known ---------------------------------------------------------------------

    def count(self, origin: Origin) -> int:
        """How many ids have this origin."""
        return self._counts[origin]

    def ids(self, origin: Origin | None = None) -> Collection[str]:
        """The ids of one origin, or those of all origins but OPERATOR; a copy."""
        if origin is None:
            return list(self._entries)
        if origin is Origin.OPERATOR:
            return list(self._operators)
        return [i for i, entry in self._entries.copy().items() if entry.origin is origin]

    def origin(self, task_id: str) -> Origin | None:
        """The origin of one id; None if it is not known."""
        known = self._entry(task_id)
        return known.origin if known else None

    def copy(self) -> Ledger:
        """A separate ledger with the same content, for a sweep that must not change this one."""
        twin = Ledger()
        twin._entries = self._entries.copy()
        twin._counts = self._counts.copy()
        twin._dropped = self._dropped.copy()
        twin._operators = self._operators.copy()
        return twin

    def _entry(self, task_id: str) -> _Entry | None:
        return self._entries.get(task_id) or self._operators.get(task_id)

    def _put(self, task_id: str, entry: _Entry) -> None:
        self._forget(task_id)
        self._counts[entry.origin] += 1
        if entry.origin is Origin.OPERATOR:
            self._operators[task_id] = entry
            return
        if entry.origin in LEAVING:
            self.last_leaving_mono = max(entry.since_mono, self.last_leaving_mono or 0.0)
        self._entries[task_id] = entry

    def _forget(self, task_id: str) -> _Entry | None:
        known = self._entries.pop(task_id, None) or self._operators.pop(task_id, None)
        if known is not None:
            self._counts[known.origin] -= 1
        return known
