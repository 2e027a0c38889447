"""Who put each id into the revoked set, and which ids may leave it.

Celery's set holds bare ids. The ledger remembers beside it why each one is there. It takes plain
values and the time, does no I/O, and decides nothing by guessing: an id that came in without
saying why counts as an operator's.
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
    INHERITED = "foreign"
    """From elsewhere, and not yet asked for in the result backend."""

    CONFIRMED = "proven"
    """From elsewhere, and the result backend said "expired" when it was first asked."""

    UNCONFIRMED = "unproven"
    """From elsewhere, and it did not: kept like an operator's, whatever it says later."""

    EXPIRING = "expiring"
    """Put there by an expiry here that the signal ``task_revoked`` has not confirmed."""

    EXPIRED = "expired"
    """Put there by an expiry here, confirmed by the signal, and by nothing else."""

    WOULD_CLEAR = "would_clear"
    """A dry run would have cleared it, and it is still in the set."""


class Confirmation(Enum):
    """What the result backend says of an id from elsewhere."""

    EXPIRED = "expired"
    """REVOKED with "expired", and no guard recorded an operator's revocation."""

    OPERATOR = "operator"
    """A guard marked it as an operator's, or Celery recorded a revoke (from 5.6 on)."""

    UNCONFIRMED = "unproven"
    """Anything else: no record, another state, one that can't be read."""


#: Of ids that Celery itself dropped, so many are remembered: as many as its set holds by default.
_REMEMBERED = 50_000

#: What is remembered of an id that Celery dropped: that it may be an operator's.
_REMEMBERED_ORIGINS = frozenset({Origin.OPERATOR, Origin.INHERITED, Origin.UNCONFIRMED})
#: The origins of ids that leave the set when the grace is over.
LEAVING = (Origin.EXPIRED, Origin.CONFIRMED)


class _Entry(NamedTuple):
    origin: Origin
    since_mono: float
    """From when its grace counts, by this host's clock: an expiry never renews it, so that an id
    which expires again and again gets free; an arrival from elsewhere does, since a peer that
    brings an id needs that time to mark it as an operator's."""


#: What an id becomes that was not known before.
_FIRST = {
    Source.OPERATOR: Origin.OPERATOR,
    Source.INHERITED: Origin.INHERITED,
    Source.EXPIRY: Origin.EXPIRING,
}

#: What an id becomes that was known, where that is not the same as for one that was not.
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

#: What an id from elsewhere becomes by a confirmation.
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
    """From elsewhere, and to be asked for: it never was, or it is proven and the grace is over."""


class Ledger:
    """The origin of each id in the revoked set of this worker."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._counts: Counter[Origin] = Counter()
        self._dropped: dict[str, Origin] = {}
        #: When the last of the ids that are on their way out came in; None before the first.
        self.last_leaving_mono: float | None = None
        # Without an event loop, messages with an ETA expire on the timer's thread. Pool children
        # never come here, so that it does not matter how they inherit it.
        self._lock = threading.RLock()

    # -- what happens to ids ---------------------------------------------------------------

    def changing(self) -> AbstractContextManager[object]:
        """To be held while an id is added to the set: an id that is renewed is out for a moment."""
        return self._lock

    def added(self, task_id: str, source: Source, now: float) -> bool:
        """An id was added to the set, by ``source``.

        Returns whether that took away the proof that it could have had.

        An operator's stays an operator's. An id from elsewhere needs the result backend's proof
        even when its message expires here too: the peer may have had it from an operator. And
        where it expires here before the result backend was asked, there is no proof to be had:
        the record says "expired" from then on, whatever brought the id to the peer.
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
        """The result backend gave its confirmation on an id from elsewhere.

        Returns whether the id may be cleared now. That is asked again here because an operator
        can have revoked it while the look-up was under way.

        Anything but "expired" is final. An expiry writes its record as it adds the id, so an id
        that is there without the record is likely an operator's (before Celery 5.6 a revoke
        leaves none); and a record of an expiry that is written later does not make it less so.
        """
        with self._lock:
            known = self._entries.get(task_id)
            if known is None or known.origin not in (Origin.INHERITED, Origin.CONFIRMED):
                return False
            self._put(task_id, _Entry(_AFTER[confirmation], known.since_mono))
        return confirmation is Confirmation.EXPIRED and now - known.since_mono >= grace_s

    def record_mark(self, task_id: str, *, operators: bool) -> bool:
        """The result backend was asked whether an id that expired here bears an operator's mark.

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

        Where it may be an operator's, that is remembered: an expiry that brings the id back does
        not make it one that only expiry put there.
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
        """A sweep cleared these ids; what is still ``held`` it would have, but for a dry run."""
        with self._lock:
            for task_id in task_ids:
                known = self._entries.pop(task_id, None)
                if known is None:
                    continue
                self._counts[known.origin] -= 1
                if task_id in held:
                    self._put(task_id, _Entry(Origin.WOULD_CLEAR, known.since_mono))

    def compare(self, held: KeysView[str]) -> list[str]:
        """Forget what is not ``held`` any more; returns what is, and nobody said why.

        To be given to :meth:`added` as an operator's.
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
        """Decide what becomes of ``task_ids``, as far as they are ``held``; changes nothing.

        ``grace_s`` is that of ids that expired here, ``confirmed_grace_s`` that of proven ones.
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
        """The origin of one id; None where it is not known."""
        known = self._entries.get(task_id)
        return known.origin if known else None

    def copy(self) -> Ledger:
        """A ledger of its own with the same content, for a sweep that must not leave a trace."""
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
