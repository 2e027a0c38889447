"""The job that enters what is on record into the set, and keeps the record whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import ClassVar, Protocol

from worker_guard.events import Event, RevocationsRestored, Trigger
from worker_guard.revoked.batches import batches
from worker_guard.revoked.ledger import Ledger
from worker_guard.revoked.record import Record, TakenBack
from worker_guard.values.source import Stamp, Target, Way

#: Revocations to enter, or to look for on record, in one slice.
_CHUNK = 250


class Entrance(Protocol):
    """Where revocations on record are entered, and what was taken back leaves."""

    def enter(self, target: Target, since_mono: float, way: Way) -> bool:
        """Revoke this here too; returns whether that was not known."""

    def take_back(self, target: Target) -> bool:
        """Take this back here too; returns whether it was revoked here."""

    def record_again(self, targets: Sequence[Target]) -> None:
        """Record these once more."""


class Restorer:
    """Reads the record: all of it for each connection to the broker, before the first message.

    A worker that was away has missed what was revoked, and what was taken back. Without an
    ``entrance`` (a dry run) nothing is entered, and what would be is reported.
    """

    name: ClassVar[str] = "revocations"

    #: Seconds between the first tries, and at most. Until one succeeds, a revoked task can run.
    first_pause_s: ClassVar[float] = 5.0
    longest_pause_s: ClassVar[float] = 60.0

    def __init__(
        self,
        *,
        interval_s: float,
        record: Record,
        ledger: Ledger,
        entrance: Entrance | None,
        pending: Collection[Target],
        report: Callable[[Event], None],
        monotonic: Callable[[], float],
    ) -> None:
        self.interval_s = interval_s
        self._record = record
        self._ledger = ledger
        self._entrance = entrance
        self._pending = pending
        self._report = report
        self._monotonic = monotonic
        self._first = True
        #: Whether all that is on record was read since the worker last connected.
        self.has_read = False
        self._looked_at = 0

    def connected(self) -> None:
        """The worker connects (again): read all of the record; in a dry run only once."""
        self.has_read = self._entrance is None and not self._first

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """Read what is on record if that is due, and keep the record whole."""
        if not self.has_read:
            yield from self._read()
        if self._entrance is not None:
            yield from self.look_for_losses()
            yield from self._record.purge()

    def _read(self) -> Iterator[None]:
        entrance, ledger = self._entrance, self._ledger
        known = {Stamp: 0, str: 0}
        entered = {Stamp: 0, str: 0}
        # First, since an old statedb may have brought it, and the time before the first message is
        # short.
        yield from self._take_back(self._record.taken_back(last=True))
        for page in self._record.pages():
            for chunk in batches(page, _CHUNK):
                now = self._monotonic()
                for each in chunk:
                    kind = type(each.target)
                    known[kind] += 1
                    if entrance is not None:
                        since_mono = now - each.age_s
                        entered[kind] += entrance.enter(each.target, since_mono, each.way)
                    else:
                        entered[kind] += ledger.revocation(each.target) is None
                yield
        # After the revocations: one that was taken back while they were read leaves again.
        yield from self._take_back(self._record.taken_back())
        counted = known if self._first else entered
        self.has_read, self._first = True, False
        if any(counted.values()):
            self._report(RevocationsRestored(revocations=counted[str], stamps=counted[Stamp]))

    def _take_back(self, pages: Iterator[list[TakenBack]]) -> Iterator[None]:
        asked_mono = self._monotonic()
        for page in pages:
            for target, age_s in page:
                held = self._ledger.revocation(target)
                # One that was made later stays; if it still waits, it is recorded then.
                later = held is not None and held.since_mono > asked_mono - age_s
                if self._entrance is not None and not later:
                    self._entrance.take_back(target)
            yield
            asked_mono = self._monotonic()

    def look_for_losses(self) -> Iterator[None]:
        """Record again what the record has lost, as after a flush.

        One look at some of what this worker holds; as long as some of it is lost, a look at more.
        """
        held = self._ledger.revocations()
        start = self._looked_at % len(held) if held else 0
        for batch in batches(chain(held[start:], held[:start]), _CHUNK):
            self._looked_at = start = start + len(batch)
            lost = self._record.lost([each for each in batch if each not in self._pending])
            if not lost or self._entrance is None:
                return
            self._entrance.record_again(lost)
            yield
