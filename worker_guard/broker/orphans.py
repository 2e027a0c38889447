"""Which lists of control replies nobody reads. Pure: no I/O, time is an argument."""

from __future__ import annotations

import re
from dataclasses import dataclass

from worker_guard.values.key_patterns import literal

#: Seconds for which the last item of a list must stay the same. An asker takes replies from the end
#: of its list, one after the other, so nobody reads a list whose end stays as it is.
UNREAD_S = 3600.0

#: An asker's id is a UUID, so no queue of the application has such a name.
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ID_PATTERN = "-".join("?" * length for length in (8, 4, 4, 4, 12))


@dataclass(frozen=True, kw_only=True)
class ReplyNames:
    """How the lists of control replies of one app are named."""

    prefix: str
    suffix: str

    @property
    def pattern(self) -> str:
        """Redis's pattern for them. It also matches names that :meth:`matches` refuses."""
        return literal(self.prefix) + _ID_PATTERN + literal(self.suffix)

    def matches(self, key: bytes) -> bool:
        """Whether this is the name of such a list."""
        prefix, suffix = self.prefix.encode(), self.suffix.encode()
        if not (key.startswith(prefix) and key.endswith(suffix)):
            return False
        return _ID.fullmatch(key[len(prefix) : len(key) - len(suffix)]) is not None


@dataclass(frozen=True)
class Seen:
    """The last item of a list, by its length and digest, and since when (epoch, s) it is that."""

    item: bytes
    since: float

    @property
    def deletable_at(self) -> float:
        """From when on the list is orphaned, if its last item stays the same."""
        return self.since + UNREAD_S

    def is_orphaned(self, now: float) -> bool:
        """Whether nobody read the list for long enough."""
        return now >= self.deletable_at

    def written(self) -> bytes:
        """For the notes in Redis."""
        return b"%.3f %b" % (self.since, self.item)


def read_seen(written: bytes | None) -> Seen | None:
    """What an earlier look has written; None if it wrote nothing that can be read."""
    since, _, item = (written or b"").partition(b" ")
    try:
        return Seen(item, float(since))
    except ValueError:
        return None


def see(item: bytes, before: Seen | None, now: float) -> Seen:
    """What a look sees. If the last item is another than before, the time begins anew.

    So it does if the time before is in the future: a clock was wrong.
    """
    if before is not None and before.item == item and before.since <= now:
        return before
    return Seen(item, now)
