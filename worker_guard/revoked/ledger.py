"""Who put each id into the revoked set, and which ids may leave it.

Celery's set holds bare ids. The ledger remembers why each one is there. It takes plain values and
the time, and does no I/O. It never guesses: an id whose origin is unknown counts as an operator's.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Container, Iterable, KeysView
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from worker_guard.values.source import Source


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

    WOULD_CLEAR = "would_clear"
    """A dry run would have cleared it, and it is still in the set."""


class Confirmation(Enum):
    """What the result backend says of an inherited id."""

    EXPIRED = "expired"
    """REVOKED with "expired", and no guard marked the id."""

    OPERATOR = "operator"
    """A guard marked it as an operator's, or Celery recorded a revoke (from 5.6 on)."""

    UNCONFIRMED = "unconfirmed"
    """Anything else: no record, another state, one that can't be read."""


#: How many ids that Celery itself dropped are remembered: as many as its set holds by default.
_REMEMBERED = 50_000

#: The ids that Celery dropped are remembered if they have one of these origins: they may be an
#: operator's.
_REMEMBERED_ORIGINS = frozenset({Origin.OPERATOR, Origin.INHERITED, Origin.UNCONFIRMED})

#: The origins of ids that leave the set when the grace is over.
LEAVING = (Origin.EXPIRED, Origin.CONFIRMED)


class _Entry(NamedTuple):
    origin: Origin
    since_mono: float
    """When its grace began, by this host's monotonic clock. A further expiry never renews it, so
    that an id that expires again and again is still cleared. Inheriting the id again does, since a
    peer that brings an id needs that time to mark it as an operator's."""


#: The origin of an id that was not known before.
_FIRST = {
    Source.OPERATOR: Origin.OPERATOR,
    Source.INHERITED: Origin.INHERITED,
    Source.EXPIRY: Origin.EXPIRING,
}

#: The origin of an id that was known, if it differs from that of a new one.
_ADDED: dict[Source, dict[Origin | None, Origin]] = {
    Source.OPERATOR: {},
    Source.INHERITED: {o: o for o in (Origin.OPERATOR, Origin.UNCONFIRMED, Origin.CONFIRMED)},
    Source.EXPIRY: {
        **{o: o for o in (Origin.OPERATOR, Origin.UNCONFIRMED, Origin.CONFIRMED, Origin.EXPIRED)},
        Origin.INHERITED: Origin.UNCONFIRMED,
    },
}

#: The origins whose grace a further expiry does not renew.
_EXPIRES_AGAIN = frozenset({Origin.EXPIRING, Origin.EXPIRED, Origin.CONFIRMED})

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


class Ledger:
    """The origin of each id in the revoked set of this worker."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._counts: Counter[Origin] = Counter()
        self._dropped: dict[str, Origin] = {}
        #: When the newest of the ids that will be cleared came in; None before the first.
        self.last_leaving_mono: float | None = None
        # Without an event loop, messages with an ETA expire on the timer's thread. Pool children
        # never use the ledger, so it doesn't matter how they inherit the lock.
        self._lock = threading.RLock()

    # -- what happens to ids ---------------------------------------------------------------

    def changing(self) -> AbstractContextManager[object]:
        """Hold this while an id is added to the set: an id that is renewed is out for a moment."""
        return self._lock

    def added(self, task_id: str, source: Source, now: float) -> bool:
        """An id was added to the set, by ``source``.

        Returns whether the id can no longer be confirmed from now on.

        An operator's id stays an operator's. An inherited id needs the result backend's
        confirmation even if its message expires here too: the peer may have had it from an
        operator. If it expires here before the result backend was asked, nothing can confirm it any
        more: the record says "expired" from then on, whatever brought the id to the peer.
        """
        with self._lock:
            known = self._entries.get(task_id)
            before = known.origin if known else self._dropped.pop(task_id, None)
            origin = _ADDED[source].get(before, _FIRST[source])
            since = now
            if known and source is Source.EXPIRY and before in _EXPIRES_AGAIN:
                since = known.since_mono
            self._put(task_id, _Entry(origin, since))
        return origin is Origin.UNCONFIRMED and before is not Origin.UNCONFIRMED

    def confirmed_expired(self, task_id: str) -> None:
        """``task_revoked`` was sent for this id with ``expired=True``."""
        with self._lock:
            known = self._entries.get(task_id)
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
            known = self._entries.get(task_id)
            if known is None or known.origin not in (Origin.INHERITED, Origin.CONFIRMED):
                return False
            self._put(task_id, _Entry(_AFTER[confirmation], known.since_mono))
        return confirmation is Confirmation.EXPIRED and now - known.since_mono >= grace_s

    def record_mark(self, task_id: str, *, operators: bool) -> bool:
        """The result backend said whether an id that expired here bears an operator's mark.

        Returns whether the id may be cleared now, as :meth:`record_confirmation` does.
        """
        with self._lock:
            known = self._entries.get(task_id)
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
            known = self._entries.pop(task_id, None)
            if known is None:
                return
            self._counts[known.origin] -= 1
            if known.origin in _REMEMBERED_ORIGINS:
                self._dropped[task_id] = known.origin
                while len(self._dropped) > _REMEMBERED:
                    del self._dropped[next(iter(self._dropped))]

    def cleared(self, task_ids: Iterable[str], held: Container[str]) -> None:
        """A sweep cleared these ids; those still ``held`` it would have, but for a dry run."""
        with self._lock:
            for task_id in task_ids:
                known = self._entries.pop(task_id, None)
                if known is None:
                    continue
                self._counts[known.origin] -= 1
                if task_id in held:
                    self._put(task_id, _Entry(Origin.WOULD_CLEAR, known.since_mono))

    def compare(self, held: KeysView[str]) -> list[str]:
        """Forget ids that are no longer ``held``; returns those that are, but are not known here.

        The caller passes these to :meth:`added` as an operator's.
        """
        with self._lock:
            unknown = list(held - self._entries.keys())
            if len(self._entries) + len(unknown) != len(held):
                for task_id in self._entries.keys() - held:
                    self.dropped(task_id)
        return unknown

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
                entry = self._entries.get(task_id)
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
        """The ids that are known now, all or those of one origin; a copy."""
        if origin is None:
            return list(self._entries)
        return [i for i, entry in self._entries.copy().items() if entry.origin is origin]

    def origin(self, task_id: str) -> Origin | None:
        """The origin of one id; None if it is not known."""
        known = self._entries.get(task_id)
        return known.origin if known else None

    def copy(self) -> Ledger:
        """A separate ledger with the same content, for a sweep that must not change this one."""
        twin = Ledger()
        twin._entries = self._entries.copy()
        twin._counts = self._counts.copy()
        twin._dropped = self._dropped.copy()
        return twin

    def _put(self, task_id: str, entry: _Entry) -> None:
        known = self._entries.get(task_id)
        if known is not None:
            self._counts[known.origin] -= 1
        self._counts[entry.origin] += 1
        if entry.origin in LEAVING:
            self.last_leaving_mono = max(entry.since_mono, self.last_leaving_mono or 0.0)
        self._entries[task_id] = entry
