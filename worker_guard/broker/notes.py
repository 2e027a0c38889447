"""What earlier looks saw, in the broker itself, so that another worker can take the next look."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from worker_guard.broker.orphans import Seen, read_seen
from worker_guard.broker.scripts import REPLACE

#: Seconds after which notes that no look renews are gone.
KEPT_S = 7 * 86_400.0

#: Seconds after which the notes of a look that did not end are gone.
_UNFINISHED_S = 3600.0


@dataclass(frozen=True)
class LastLook:
    """When the last look ended (epoch, s), who looked, and what it found for all to tell.

    None: not known.
    """

    at: float | None = None
    by: str = ""
    without_index: int | None = None


class Notes(Protocol):
    """What earlier looks saw. Errors are redis-py's."""

    def read(self, lists: Sequence[bytes]) -> list[Seen | None]:
        """What was seen of each of these lists."""

    def write(self, seen: Mapping[bytes, Seen]) -> None:
        """Note what this look sees of some lists."""

    def end(self, at: float, *, without_index: int) -> None:
        """This look has ended, and its notes replace the earlier ones."""

    def last_look(self) -> LastLook:
        """The last look that ended."""


class SharedNotes:
    """Notes in Redis, which the workers of a fleet share. For one look at a time."""

    def __init__(self, client: Any, own_prefix: str, *, by: str, kept_s: float = KEPT_S) -> None:
        self._client, self._by, self._kept_s = client, by, kept_s
        self._held = f"{own_prefix}broker-replies"
        self._last = f"{own_prefix}broker-last-look"
        self._new = f"{self._held}-{uuid.uuid4()}"
        self._replace = client.register_script(REPLACE)

    def read(self, lists: Sequence[bytes]) -> list[Seen | None]:
        """What was seen of each of these lists."""
        return [read_seen(written) for written in self._client.hmget(self._held, lists)]

    def write(self, seen: Mapping[bytes, Seen]) -> None:
        """Note what this look sees of some lists: for itself, and also if it does not end."""
        written = {key: each.written() for key, each in seen.items()}
        with self._client.pipeline() as pipe:
            pipe.hset(self._held, mapping=written).expire(self._held, int(self._kept_s))
            pipe.hset(self._new, mapping=written).expire(self._new, int(_UNFINISHED_S))
            pipe.execute()

    def end(self, at: float, *, without_index: int) -> None:
        """Put the notes of this look in the place of all, so that what is gone is forgotten."""
        self._client.expire(self._new, int(self._kept_s))
        self._replace(keys=[self._held, self._new])
        record = json.dumps(asdict(LastLook(at, self._by, without_index)))
        self._client.set(self._last, record, ex=int(self._kept_s))

    def last_look(self) -> LastLook:
        """The last look that ended, of any process."""
        try:
            record = json.loads(self._client.get(self._last) or "{}")
            return LastLook(float(record["at"]), str(record["by"]), int(record["without_index"]))
        except (ValueError, TypeError, KeyError):
            return LastLook()


class PrivateNotes:
    """The notes of a dry run: it reads those in Redis, and keeps its own in memory."""

    def __init__(self, client: Any, own_prefix: str, *, by: str) -> None:
        self._shared = SharedNotes(client, own_prefix, by=by)
        self._by = by
        self._seen: dict[bytes, Seen] = {}
        self._new: dict[bytes, Seen] = {}
        self._last = LastLook()

    def read(self, lists: Sequence[bytes]) -> list[Seen | None]:
        """What was seen of each of these lists, here or by a real look."""
        shared = self._shared.read(lists)
        return [self._seen.get(key, seen) for key, seen in zip(lists, shared, strict=True)]

    def write(self, seen: Mapping[bytes, Seen]) -> None:
        """Note what this look sees of some lists."""
        self._new.update(seen)

    def end(self, at: float, *, without_index: int) -> None:
        """Forget what this look has not seen."""
        self._seen, self._new = self._new, {}
        self._last = LastLook(at, self._by, without_index)

    def last_look(self) -> LastLook:
        """The last look of this process that ended."""
        return self._last
