"""One look at what control leaves in the broker, one round trip after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker_guard.broker.notes import Notes
from worker_guard.broker.orphans import ReplyNames, Seen, see
from worker_guard.broker.scripts import DELETE, READ, WITHOUT_INDEX
from worker_guard.events import CleanupCompleted, Trigger

#: Keys that one SCAN goes through. Redis takes about 1.7 µs for each.
_KEYS_A_PAGE = 1000

#: Lists of one call. The server copies the last item of each, which takes 0.9 ms for 1.3 MB.
_LISTS_A_CALL = 4

#: Up to so many entries of ``unacked`` are compared with the index one by one: 2 ms of the server.
MOST_COMPARED = 2000


@dataclass
class Found:
    """What a look has found and done so far.

    ``deleted`` is how many lists it deleted; in a dry run, how many it would have. ``unread`` are
    those that may become orphaned, the first at ``next_delete_at`` (epoch, s).
    """

    lists: int = 0
    deleted: int = 0
    unread: int = 0
    next_delete_at: float | None = None
    without_index: int = 0

    def note_unread(self, seen: Seen) -> None:
        """Count a list whose last item is not old enough."""
        self.unread += 1
        self.next_delete_at = min(self.next_delete_at or seen.deletable_at, seen.deletable_at)

    def event(self, *, trigger: Trigger, duration_s: float) -> CleanupCompleted:
        """The event for a look that found this."""
        return CleanupCompleted(
            target="broker",
            broker_keys_cleaned=self.deleted,
            keys_scanned=self.lists,
            trigger=trigger,
            duration_s=duration_s,
        )


@dataclass(kw_only=True)
class BrokerLook:
    """Deletes the orphaned replies, notes the unread ones, counts what ``unacked`` has lost.

    It changes nothing but these lists and the guard's own notes. ``now`` (epoch, s) is the
    server's clock. Errors are redis-py's.
    """

    client: Any
    names: ReplyNames
    unacked: str
    unacked_index: str
    notes: Notes
    dry_run: bool
    now: Callable[[], float]
    found: Found = field(default_factory=Found, init=False)
    finished: bool = field(default=False, init=False)
    #: What the server answered when it had no memory for notes.
    _full: Exception | None = field(default=None, init=False)

    def run(self) -> Iterator[None]:
        """Look to the end, with a round trip or a few quick ones before each ``yield``."""
        yield from self._look_at_replies()
        if self._full is not None:
            raise self._full
        yield from self._look_at_unacked()
        self.notes.end(self.now(), without_index=self.found.without_index)
        self.finished = True
        yield

    # -- replies -----------------------------------------------------------------------------

    def _look_at_replies(self) -> Iterator[None]:
        cursor = 0
        while True:
            cursor, page = self.client.scan(
                cursor, match=self.names.pattern, count=_KEYS_A_PAGE, _type="list"
            )
            yield
            lists = [key for key in page if self.names.matches(key)]
            for at in range(0, len(lists), _LISTS_A_CALL):
                yield from self._judge(lists[at : at + _LISTS_A_CALL])
            if not cursor:
                return

    def _judge(self, lists: Sequence[bytes]) -> Iterator[None]:
        now = self.now()
        items = self._script(READ)(keys=lists)
        yield
        before = self.notes.read(lists)
        orphaned: dict[bytes, bytes] = {}
        unread: dict[bytes, Seen] = {}
        for key, item, held in zip(lists, items, before, strict=True):
            if not item:
                continue
            self.found.lists += 1
            seen = see(item, held, now)
            if seen.is_orphaned(now):
                orphaned[key] = item
            else:
                unread[key] = seen
                self.found.note_unread(seen)
        yield
        if orphaned:
            self.found.deleted += self._delete(orphaned)
            yield
        if unread and self._full is None:
            self._note(unread)
        yield

    def _note(self, unread: dict[bytes, Seen]) -> None:
        """Write it down; a server without memory can still delete what was seen before."""
        from redis.exceptions import ResponseError

        try:
            self.notes.write(unread)
        except ResponseError as exc:
            if "maxmemory" not in str(exc):
                raise
            self._full = exc

    def _delete(self, orphaned: dict[bytes, bytes]) -> int:
        if self.dry_run:
            return len(orphaned)
        return int(self._script(DELETE)(keys=list(orphaned), args=list(orphaned.values())))

    # -- unacked -----------------------------------------------------------------------------

    def _look_at_unacked(self) -> Iterator[None]:
        keys = [self.unacked, self.unacked_index]
        found = self._script(WITHOUT_INDEX)(keys=keys, args=[MOST_COMPARED])
        self.found.without_index = int(found)
        yield

    def _script(self, text: str) -> Any:
        return self.client.register_script(text)
