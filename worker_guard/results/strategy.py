"""What the strategies of a cleanup share: counts, actor, pace, cursor, and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from worker_guard.events import CleanupCompleted, Trigger
from worker_guard.results import scripts
from worker_guard.results.selection import KeyDecision, KeyVerdict, Policy


@dataclass(frozen=True)
class CleanupCounts:
    """What a cleanup, or some of its calls, did; in a dry run, what it would have done."""

    keys_scanned: int = 0
    expired_results_deleted: int = 0
    task_states_cleaned: int = 0
    keys_unreadable: int = 0
    keys_with_longer_ttl: int = 0

    def __add__(self, other: CleanupCounts) -> CleanupCounts:
        return CleanupCounts(
            self.keys_scanned + other.keys_scanned,
            self.expired_results_deleted + other.expired_results_deleted,
            self.task_states_cleaned + other.task_states_cleaned,
            self.keys_unreadable + other.keys_unreadable,
            self.keys_with_longer_ttl + other.keys_with_longer_ttl,
        )

    def event(self, *, trigger: Trigger, duration_s: float) -> CleanupCompleted:
        """The event for a cleanup with these counts."""
        return CleanupCompleted(
            target="results", trigger=trigger, duration_s=duration_s, **asdict(self)
        )


@dataclass(frozen=True, kw_only=True)
class ResultsActor:
    """Changes keys for a cleanup: by a script, or by commands in a MULTI."""

    script: str
    queue: Callable[[Any, bytes, KeyDecision, Policy], None]
    changes: bool


def _queue_change(pipe: Any, key: bytes, decision: KeyDecision, policy: Policy) -> None:
    if decision.verdict is KeyVerdict.DELETE:
        pipe.unlink(key)
    else:
        pipe.pexpire(key, policy.ttl_ms)


def _queue_nothing(_pipe: Any, _key: bytes, _decision: KeyDecision, _policy: Policy) -> None:
    """Send no command: a dry run."""


REAL = ResultsActor(script=scripts.REAL, queue=_queue_change, changes=True)
DRY_RUN = ResultsActor(script=scripts.DRY_RUN, queue=_queue_nothing, changes=False)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much one call asks of the server: how many keys, and for how long."""

    page_keys: int
    budget_s: float


#: For a process that does nothing else.
FULL_SPEED = Pace(page_keys=400, budget_s=0.002)

#: For a worker's event loop, which waits for the answer.
IN_WORKER = Pace(page_keys=200, budget_s=0.001)


class Cursor:
    """Where the scan is, and the keys of its last page that were not looked at yet.

    ``refused`` is the first change that the user may not make; the cleanup goes on without it.
    ``failed`` ends the cleanup, after the counts of the same call are added.
    """

    def __init__(self) -> None:
        self.at: bytes | None = b"0"
        self.pending: list[bytes] = []
        self.refused: Exception | None = None
        self.failed: Exception | None = None

    @property
    def finished(self) -> bool:
        return self.at is None and not self.pending and self.failed is None

    def moved(self, at: Any) -> None:
        """Note the cursor that SCAN returned; 0 is the end."""
        self.at = None if int(at) == 0 else str(int(at)).encode()


class Strategy(Protocol):
    name: str

    def turn(self, cursor: Cursor) -> Iterator[CleanupCounts]:
        """Look at some more keys, with one round trip before each yield of what was done.

        Errors are redis-py's, and leave the cursor where it was.
        """


def scan(client: Any, cursor: Cursor, page_keys: int) -> Iterator[CleanupCounts]:
    """Take the next page of keys into the cursor."""
    assert cursor.at is not None
    at, cursor.pending = client.scan(int(cursor.at), count=page_keys)
    cursor.moved(at)
    yield CleanupCounts()


@contextmanager
def changing(actor: ResultsActor) -> Iterator[None]:
    """Wrap a call that changes keys: if its answer is lost, the error says so."""
    from redis import exceptions as redis

    try:
        yield
    except (redis.AuthenticationError, redis.BusyLoadingError):
        raise  # the server answered, and did nothing
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        if not actor.changes:
            raise
        raise type(exc)(
            f"{exc} The answer is lost: what this last call changed, if anything, is not counted."
        ) from exc


def is_refusal(text: str) -> bool:
    """Whether a server's error says that this user may not run the command on these keys.

    Redis 7 and Valkey begin it with NOPERM; Redis 6 says it in a sentence if it is in a script.
    """
    return "NOPERM" in text or "The user executing the script can't" in text
