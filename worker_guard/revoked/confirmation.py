"""The result backend's records of revoked ids, and the marks of ids that are not to be cleared.

A result alone confirms nothing. If an operator revokes a task and its message expires as well, the
expiry overwrites the result of the revoke (and before Celery 5.6 a revoke leaves none). So each
guarded worker that hears an operator's revoke puts it on record
(:mod:`worker_guard.revoked.record`); in a key-value backend other than Redis it leaves a mark
beside the results. It also marks an inherited id that the result backend does not confirm. An
inherited id is confirmed only if its result says "expired", it is not on record, and it has no
mark.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from worker_guard import celery_internals
from worker_guard.errors import WorkerGuardError
from worker_guard.revoked.ledger import Confirmation
from worker_guard.revoked.record import Made, Record
from worker_guard.revoked.stored_state import read_record
from worker_guard.values.source import Target

MARK_PREFIX = "worker-guard-operator-"

#: What a mark says: an operator revoked the id, or it was not confirmed when a guard first asked.
_OPERATORS, _UNCONFIRMED = b"operator", b"unproven"

#: A longer record confirms nothing: that of an expired message is a few hundred bytes, and reading
#: a batch of large results would hold the event loop.
RECORD_LIMIT_BYTES = 4 * 1024

#: Each serializer leaves this name readable, so a record without it is not decoded.
_REVOKED = b"TaskRevokedError"


#: A mark lasts at least this long, and is renewed while a worker holds its id.
MARK_TTL_S = 7 * 86_400.0


class RecordsUnavailableError(WorkerGuardError):
    """This result backend can't hold marks, and its records can't be read; the message says why.

    Inherited ids stay in the set, as Celery leaves them. To have expired ones cleared, use a
    key-value result backend such as Redis.
    """


class Records(Protocol):
    """Looks up and marks ids in the result backend. Errors are the backend's own.

    ``unreadable`` says why the records can't be read, such as that they are pickled; else it is
    empty. ``one_trip``: many keys cost one round trip; else each key costs one.
    """

    unreadable: str
    one_trip: bool

    def marked(self, task_ids: Sequence[str]) -> set[str]:
        """Which of these ids are an operator's; one round trip."""

    def confirmations(self, task_ids: Sequence[str]) -> dict[str, Confirmation]:
        """What the results and marks say of each id; one round trip."""

    def mark(
        self, operators: Mapping[Target, Made], unconfirmed: Collection[str]
    ) -> Collection[Target]:
        """Record operators' revocations, and mark unconfirmed ids; the latter replace no former.

        Returns the revocations that were taken back since they were made.
        """

    def unmark(self, task_ids: Collection[str]) -> None:
        """These ids are revoked no more."""


class RedisRecords:
    """Records in Redis, through a client of the guard's own with short timeouts."""

    one_trip = True

    def __init__(
        self,
        client: Any,
        record: Record,
        *,
        record_key: Callable[[str], str | bytes],
        mark_prefix: str,
        decode: Callable[[bytes], Any],
        mark_ttl_s: float,
        unreadable: str = "",
    ) -> None:
        self._client = client
        self._record = record
        self._record_key = record_key
        self._mark_prefix = mark_prefix
        self._decode = decode
        self._mark_ttl_ms = int(mark_ttl_s * 1000)
        self.unreadable = unreadable

    def marked(self, task_ids: Sequence[str]) -> set[str]:
        """Which of these ids are an operator's; one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            self._record.ask_standing(pipe, task_ids)
            standing, _ = self._record.read_standing(task_ids, *pipe.execute())
        return standing

    def confirmations(self, task_ids: Sequence[str]) -> dict[str, Confirmation]:
        """What the results and marks say of each id; one round trip."""
        # Results before marks: in the other order, a mark and an expiry written in between would
        # look like an expiry alone.
        keys = _keys(task_ids, self._record_key)
        task_ids = list(keys)
        if not task_ids:
            return {}
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys.values():
                pipe.getrange(key, 0, RECORD_LIMIT_BYTES)
            pipe.mget([_mark_key(self._mark_prefix, task_id) for task_id in task_ids])
            self._record.ask_standing(pipe, task_ids)
            # A result that is not a string is an error of its own, and confirms nothing.
            *payloads, marks, since, taken = pipe.execute(raise_on_error=False)
        for answer in (marks, since, taken):
            if isinstance(answer, Exception):
                raise answer
        standing, taken_back = self._record.read_standing(task_ids, since, taken)
        return {
            **{
                task_id: Confirmation.UNCONFIRMED if mark is not None else self._read(payload)
                for task_id, payload, mark in zip(task_ids, payloads, marks, strict=True)
            },
            **dict.fromkeys(standing, Confirmation.OPERATOR),
            **dict.fromkeys(taken_back, Confirmation.TAKEN_BACK),
        }

    def mark(
        self, operators: Mapping[Target, Made], unconfirmed: Collection[str]
    ) -> Collection[Target]:
        """Record operators' revocations, and mark unconfirmed ids."""
        with self._client.pipeline(transaction=False) as pipe:
            for task_id in unconfirmed:
                key = _mark_key(self._mark_prefix, task_id)
                pipe.set(key, _UNCONFIRMED, px=self._mark_ttl_ms)
            pipe.execute()
        return self._record.put(operators)

    def unmark(self, task_ids: Collection[str]) -> None:
        """Take these ids off the record."""
        self._record.remove(list(task_ids))

    def _read(self, payload: Any) -> Confirmation:
        if not isinstance(payload, bytes | str) or not 0 < len(payload) <= RECORD_LIMIT_BYTES:
            return Confirmation.UNCONFIRMED
        return _read_payload(payload, self._decode)


class KeyValueRecords:
    """Records in any other key-value backend, through Celery's own backend class."""

    one_trip = False

    def __init__(self, backend: Any, *, mark_prefix: str, unreadable: str = "") -> None:
        self._backend = backend
        self._mark_prefix = mark_prefix
        self.unreadable = unreadable

    def marked(self, task_ids: Sequence[str]) -> set[str]:
        """Which of these ids bear an operator's mark; one round trip if it has ``mget``."""
        return _operators(task_ids, self._get([self._mark_key(task_id) for task_id in task_ids]))

    def confirmations(self, task_ids: Sequence[str]) -> dict[str, Confirmation]:
        """What the records and marks say of each id; one round trip if it has ``mget``."""
        backend = self._backend
        keys = _keys(task_ids, backend.get_key_for_task)
        payloads = self._get(list(keys.values()))
        marks = self._get([self._mark_key(task_id) for task_id in keys])
        return {
            task_id: _read_mark(mark) if mark else _read_payload(payload, backend.decode)
            for task_id, payload, mark in zip(keys, payloads, marks, strict=True)
        }

    def mark(
        self, operators: Mapping[Target, Made], unconfirmed: Collection[str]
    ) -> Collection[Target]:
        """Mark operators' ids and unconfirmed ones; the latter never replace an operator's mark."""
        for target in operators:
            if isinstance(target, str):  # a stamped header is looked up by nobody
                self._backend.set(self._mark_key(target), _OPERATORS)
        for task_id in unconfirmed:
            if not self._backend.get(self._mark_key(task_id)):
                self._backend.set(self._mark_key(task_id), _UNCONFIRMED)
        return ()

    def unmark(self, task_ids: Collection[str]) -> None:
        """Remove the marks of these ids."""
        for task_id in task_ids:
            self._backend.delete(self._mark_key(task_id))

    def _mark_key(self, task_id: str) -> Any:
        return self._backend.key_t(_mark_key(self._mark_prefix, task_id))

    def _get(self, keys: list[Any]) -> list[Any]:
        try:
            values = self._backend.mget(keys)
        except NotImplementedError:
            return [self._backend.get(key) for key in keys]
        # memcached answers with a mapping of the keys that it has, the others with a list.
        return [values.get(key) for key in keys] if hasattr(values, "get") else list(values)


def _keys(task_ids: Sequence[str], key: Callable[[str], Any]) -> dict[str, Any]:
    """The record's key for each id, except those that can't have one, such as a number."""
    keys = {}
    for task_id in task_ids:
        with contextlib.suppress(TypeError, ValueError):
            keys[task_id] = key(task_id)
    return keys


def _mark_key(prefix: str, task_id: object) -> bytes:
    """A key for whatever an operator gave as an id: a strange one must not block the others."""
    return f"{prefix}{task_id}".encode("utf-8", "surrogatepass")


def _operators(task_ids: Sequence[str], marks: Sequence[Any]) -> set[str]:
    found = zip(task_ids, marks, strict=True)
    return {i for i, mark in found if mark and _read_mark(mark) is Confirmation.OPERATOR}


def _read_mark(mark: bytes | str) -> Confirmation:
    unconfirmed = mark in (_UNCONFIRMED, _UNCONFIRMED.decode())
    return Confirmation.UNCONFIRMED if unconfirmed else Confirmation.OPERATOR


def _read_payload(payload: Any, decode: Callable[[bytes], Any]) -> Confirmation:
    revoked = _REVOKED if isinstance(payload, bytes) else _REVOKED.decode()
    if not payload or revoked not in payload:
        return Confirmation.UNCONFIRMED
    try:
        return read_record(decode(payload))
    except Exception:  # noqa: BLE001 - another program's record confirms nothing
        return Confirmation.UNCONFIRMED


def open_records(backend: Any, record: Record | None, *, revoke_expires_s: float) -> Records:
    """The records of this result backend; in Redis with the ``record`` of revocations there.

    Connects to nothing yet.

    Raises:
        RecordsUnavailableError: with the reason, for the start event.
    """
    kind = type(backend).__name__
    if not celery_internals.is_key_value(backend):
        raise RecordsUnavailableError(f"the result backend {kind} is not a key-value store")
    pickled = "pickle" in str(backend.serializer)
    unreadable = "results are pickled, and the guard unpickles nothing" if pickled else ""
    mark_prefix = celery_internals.key_prefix(backend) + MARK_PREFIX
    if record is None:
        return KeyValueRecords(backend, mark_prefix=mark_prefix, unreadable=unreadable)
    return RedisRecords(
        celery_internals.results_client(backend, celery_internals.REDIS_TIMEOUT_S),
        record,
        record_key=backend.get_key_for_task,
        mark_prefix=mark_prefix,
        decode=backend.decode,
        mark_ttl_s=max(MARK_TTL_S, 2 * revoke_expires_s, backend.expires or 0),
        unreadable=unreadable,
    )
