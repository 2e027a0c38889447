"""The broker to look at: its client, the names of its keys, its clock."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

from worker_guard import celery_internals
from worker_guard.broker.look import BrokerLook
from worker_guard.broker.notes import KEPT_S, Notes, PrivateNotes, SharedNotes
from worker_guard.broker.orphans import ReplyNames
from worker_guard.lease import Lease, SeenLease

#: All keys of the guard in the broker begin with it, behind ``global_keyprefix``.
OWN_PREFIX = "worker-guard-"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """One broker in Redis."""

    client: Any
    own_prefix: str
    names: ReplyNames
    unacked: str
    unacked_index: str

    def now(self) -> float:
        """Now (epoch, s), by the server's clock, which all workers share."""
        seconds, microseconds = self.client.time()
        return float(seconds) + float(microseconds) / 1e6

    def close(self) -> None:
        """Close the connections. Asks the server nothing."""
        self.client.connection_pool.disconnect()

    def notes(self, *, by: str, dry_run: bool, schedule_s: float | None) -> Notes:
        """What earlier looks saw. They are kept for two looks at least."""
        if dry_run:
            return PrivateNotes(self.client, self.own_prefix, by=by)
        kept_s = max(KEPT_S, 2 * (schedule_s or 0.0))
        return SharedNotes(self.client, self.own_prefix, by=by, kept_s=kept_s)

    def lease(self, *, by: str, dry_run: bool) -> Lease | SeenLease:
        """The lease on this broker, for one holder."""
        key = f"{self.own_prefix}broker-lease"
        if dry_run:
            return SeenLease(self.client, key)
        return Lease(self.client, key, f"{by}/{uuid.uuid4()}", monotonic=time.monotonic)

    def look(self, notes: Notes, *, dry_run: bool) -> BrokerLook:
        """Begin a look."""
        return BrokerLook(
            client=self.client,
            names=self.names,
            unacked=self.unacked,
            unacked_index=self.unacked_index,
            notes=notes,
            dry_run=dry_run,
            now=self.now,
        )


def open_broker(app: Any, *, timeout_s: float) -> Broker:
    """The broker of this app. Connects to nothing yet.

    Raises:
        MissingInternalError: it is not Redis, or this kombu release lacks something.
        ValueError: its URL or an option of it is wrong.
    """
    found = celery_internals.redis_broker(app, timeout_s)
    return Broker(
        client=found.client,
        own_prefix=found.prefix + OWN_PREFIX,
        names=ReplyNames(prefix=found.prefix, suffix=found.reply_suffix),
        unacked=found.unacked,
        unacked_index=found.unacked_index,
    )
