"""What the strategies of a cleanup share: how fast, how far, with what, and to what end."""

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
    """What a cleanup, or some of its calls, came to. In a dry run: what it would have come to."""

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
        """What is logged of the cleanup that came to this."""
        return CleanupCompleted(
            target="results", trigger=trigger, duration_s=duration_s, **asdict(self)
        )


@dataclass(frozen=True, kw_only=True)
class ResultsActor:
    """What a cleanup changes with: by a script, or by commands within a MULTI."""

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
    """How much a cleanup asks of the server in one call: keys, and time after which it ends."""

    page_keys: int
    budget_s: float


#: For a process of its own.
FULL_SPEED = Pace(page_keys=400, budget_s=0.002)

#: For a worker's event loop, which waits for the answer.
IN_WORKER = Pace(page_keys=200, budget_s=0.001)


class Cursor:
    """Where the scan stands, and the keys of its last page that are still to be looked at.

    ``refused`` is the first change that the user may not make; the cleanup goes on without it.
    ``failed`` ends the cleanup, once what the same call did is counted.
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
        """Take over what SCAN returned; 0 is its end."""
        self.at = None if int(at) == 0 else str(int(at)).encode()


class Strategy(Protocol):
    name: str

    def turn(self, cursor: Cursor) -> Iterator[CleanupCounts]:
        """Look at some more keys, with one round trip before each yield of what it came to.

        Errors are redis-py's; the cursor then stands where it stood.
        """


def scan(client: Any, cursor: Cursor, page_keys: int) -> Iterator[CleanupCounts]:
    """Take the next page of keys into the cursor."""
    assert cursor.at is not None
    at, cursor.pending = client.scan(int(cursor.at), count=page_keys)
    cursor.moved(at)
    yield CleanupCounts()


@contextmanager
def changing(actor: ResultsActor) -> Iterator[None]:
    """Around a call that changes keys: have an error that lost its answer say so."""
    from redis import exceptions as redis

    try:
        yield
    except (redis.AuthenticationError, redis.BusyLoadingError):
        raise  # an answer: nothing was done
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        if not actor.changes:
            raise
        raise type(exc)(
            f"{exc} The answer is lost: what this last call changed, if anything, is not counted."
        ) from exc


def is_refusal(text: str) -> bool:
    """Whether a server's error says that this user may not run the command on these keys.

    Redis 7 and Valkey begin it with NOPERM; within a script Redis 6 says it in a sentence.
    """
    return "NOPERM" in text or "The user executing the script can't" in text
