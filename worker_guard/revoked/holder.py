"""Holds operators' revocations in the set, whatever Celery or the application does to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import ClassVar, Protocol

from worker_guard.events import Event, PutBackReason, RevocationsEnded, RevocationsPutBack, Trigger
from worker_guard.revoked.batches import batches
from worker_guard.revoked.ledger import Ledger
from worker_guard.scheduler import SLICE_S
from worker_guard.values.source import Target

#: Revocations to decide on between two looks at the clock.
_CHUNK = 200

_NEVER = float("inf")


class Room(Protocol):
    """Where operators' ids are put, so that the set never drops them."""

    def put(self, task_id: str) -> None:
        """Put an id into the set, or renew it."""

    def release(self, task_id: str) -> None:
        """Leave this id to Celery, as the oldest of the set."""

    def remove(self, task_id: str) -> None:
        """Take this id out of the set."""


class Holder:
    """Keeps operators' ids in the set for their lifetime. It is also the job that ends them.

    ``lifetime_s`` None: for ever. ``held_messages`` returns the ids of the messages that the worker
    holds; a revocation of one of them does not end. ``on_ended`` is called with the ids that are
    left to Celery. Without a ``room`` (a dry run) nothing is changed, and what would be is
    reported.
    """

    name: ClassVar[str] = "held_revocations"

    def __init__(
        self,
        *,
        interval_s: float,
        ledger: Ledger,
        lifetime_s: float | None,
        held_messages: Callable[[], Collection[str]],
        on_ended: Callable[[Sequence[str]], None],
        report: Callable[[Event], None],
        monotonic: Callable[[], float],
    ) -> None:
        self.interval_s = interval_s
        self.room: Room | None = None
        self._ledger = ledger
        self._lifetime_s = _NEVER if lifetime_s is None else lifetime_s
        self._held_messages = held_messages
        self._on_ended = on_ended
        self._report = report
        self._monotonic = monotonic
        self._put_back: Counter[PutBackReason] = Counter()
        self._next_end_mono = _NEVER

    # -- what happens to the set -----------------------------------------------------------

    def will_end(self, since_mono: float) -> None:
        """A revocation that was made then is held from now on."""
        self._next_end_mono = min(self._next_end_mono, since_mono + self._lifetime_s)

    def put_back(self, task_ids: Iterable[str], reason: PutBackReason) -> None:
        """Put operators' ids back that the set has lost."""
        for task_id in task_ids:
            self._put_back[reason] += 1
            with self._ledger.changing():
                if self.room is None:
                    self._ledger.dropped(task_id)
                else:
                    self.room.put(task_id)

    # -- the job ---------------------------------------------------------------------------

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:  # noqa: ARG002
        """End what has been held for its lifetime, and report what was put back."""
        put_back, self._put_back = self._put_back, Counter()
        for reason, count in put_back.items():
            self._report(RevocationsPutBack(revocations=count, reason=reason))
        yield
        if self._monotonic() >= self._next_end_mono:
            yield from self._end()

    def _end(self) -> Iterator[None]:
        ended = 0
        due_mono, self._next_end_mono = self._next_end_mono, _NEVER
        next_end = _NEVER
        try:
            messages = self._held_messages()
            slice_started = self._monotonic()
            for chunk in batches(self._ledger.revocations(), _CHUNK):
                now = self._monotonic()
                if now - slice_started >= SLICE_S:
                    yield
                    slice_started = now = self._monotonic()
                over: list[Target] = []
                for target in chunk:
                    made = self._ledger.revocation(target)
                    if made is None:
                        continue
                    end_mono = made.since_mono + self._lifetime_s
                    if end_mono > now:
                        next_end = min(next_end, end_mono)
                    elif target in messages:
                        next_end = now
                    else:
                        over.append(target)
                self._leave_to_celery(over)
                ended += len(over)
            due_mono = next_end
        finally:
            # After a failure the rest is still due.
            self._next_end_mono = min(due_mono, self._next_end_mono)
        if ended:
            self._report(RevocationsEnded(revocations=ended))

    def _leave_to_celery(self, targets: Sequence[Target]) -> None:
        task_ids = [target for target in targets if isinstance(target, str)]
        with self._ledger.changing():
            for target in targets:
                self._ledger.ended(target)
            if self.room is not None:
                for task_id in task_ids:
                    self.room.release(task_id)
        if task_ids:
            self._on_ended(task_ids)
