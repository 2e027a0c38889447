"""The marks, with a fake for the result backend."""

from __future__ import annotations

import pytest

from tests.fakes.revoked import FakeRecords, OneByOne
from worker_guard.revoked.batches import LOOKUP_BATCH
from worker_guard.revoked.marker import RENEW_S, Marker
from worker_guard.scheduler import run_to_end


def test_marks_are_written_in_batches_and_kept_until_they_are() -> None:
    """A mark leaves the list when it is written, not before.

    An operator's id is marked even if a full set dropped it as it was added.
    """
    store = FakeRecords()
    ids = [f"{n}" for n in range(LOOKUP_BATCH + 1)]
    dropped = {"operators": True, "nobodys": False}
    pending = {**dict.fromkeys(ids, True), "unconfirmed": False, **dropped}
    now = [0.0]
    marker = Marker(
        interval_s=30.0,
        longest_pause_s=30.0,
        pending=pending,
        held={*ids, "unconfirmed"},
        kept=lambda: {"unconfirmed": False, "kept": True},
        store=store,
        monotonic=lambda: now[0],
    )
    store.error = ConnectionError("refused")
    with pytest.raises(ConnectionError):
        run_to_end(marker.run())
    assert len(pending) == LOOKUP_BATCH + 4
    store.error = None
    assert sum(1 for _ in marker.run()) == 2
    assert sorted(store.operators) == sorted([*ids, "operators"])
    assert (store.unproven, pending) == (["unconfirmed"], {})
    # Marks end by themselves; those of ids that are still held are renewed.
    now[0] = RENEW_S
    run_to_end(marker.run())
    assert (store.operators[-1], store.unproven) == ("kept", ["unconfirmed", "unconfirmed"])


def test_an_id_that_cannot_be_a_key_does_not_block_the_others() -> None:
    """It is tried again after the others, and each key has a slice of its own."""
    store = OneByOne()
    pending = dict.fromkeys(["no/key", "a", "b"], True)
    marker = Marker(
        interval_s=30.0,
        longest_pause_s=30.0,
        pending=pending,
        held=(),
        kept=dict,
        store=store,
        monotonic=lambda: 0.0,
    )
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            run_to_end(marker.run())
    assert (store.operators, pending) == (["a", "b"], {"no/key": True})
