"""The ledger: what it knows of each id, and what it lets go."""

from __future__ import annotations

import pytest

from worker_guard.revoked.ledger import Ledger, Origin, Selection, Source, Verdict

GRACE_S = 60.0
MAX_AGE_S = 10_800.0

OPERATOR, FOREIGN, EXPIRY = Source.OPERATOR, Source.FOREIGN, Source.EXPIRY
CONFIRM = "task_revoked(expired=True)"


def history(*events: Source | Verdict | str) -> Ledger:
    """A ledger in which this happened to the id "x", one after another, at 0 s."""
    ledger = Ledger()
    for event in events:
        if isinstance(event, Source):
            ledger.added("x", event, 0.0)
        elif isinstance(event, Verdict):
            ledger.record_verdict("x", event, 0.0, GRACE_S)
        else:
            ledger.confirmed_expired("x", 0.0)
    return ledger


def select(ledger: Ledger, at: float, *, max_age_s: float = MAX_AGE_S) -> Selection:
    return ledger.select(["x"], at, held={"x"}, grace_s=GRACE_S, max_age_s=max_age_s)


@pytest.mark.parametrize(
    ("events", "origin"),
    [
        ([EXPIRY], Origin.EXPIRING),
        ([EXPIRY, CONFIRM], Origin.EXPIRED),
        ([EXPIRY, CONFIRM, EXPIRY], Origin.EXPIRING),
        ([EXPIRY, CONFIRM, EXPIRY, CONFIRM], Origin.EXPIRED),
        ([FOREIGN], Origin.FOREIGN),
        # It expires before the result backend was asked: its record proves nothing any more.
        ([FOREIGN, EXPIRY, CONFIRM], Origin.UNPROVEN),
        ([FOREIGN, Verdict.EXPIRED, EXPIRY, CONFIRM], Origin.PROVEN),
        ([FOREIGN, Verdict.EXPIRED, FOREIGN], Origin.PROVEN),
        ([FOREIGN, Verdict.EXPIRED, OPERATOR], Origin.OPERATOR),
        ([FOREIGN, Verdict.UNPROVEN, EXPIRY, CONFIRM], Origin.UNPROVEN),
        ([FOREIGN, Verdict.UNPROVEN, FOREIGN], Origin.UNPROVEN),
        ([FOREIGN, Verdict.UNPROVEN, OPERATOR], Origin.OPERATOR),
        ([EXPIRY, FOREIGN, CONFIRM], Origin.FOREIGN),
        ([EXPIRY, CONFIRM, FOREIGN], Origin.FOREIGN),
        ([OPERATOR], Origin.OPERATOR),
        ([OPERATOR, EXPIRY, CONFIRM], Origin.OPERATOR),
        ([EXPIRY, OPERATOR, CONFIRM], Origin.OPERATOR),
        ([EXPIRY, CONFIRM, OPERATOR], Origin.OPERATOR),
        ([OPERATOR, FOREIGN, EXPIRY, CONFIRM], Origin.OPERATOR),
        ([FOREIGN, OPERATOR, FOREIGN], Origin.OPERATOR),
        # The signal alone, as for a revoke by stamped headers, says nothing of the set.
        ([CONFIRM], None),
    ],
)
def test_an_operators_id_stays_an_operators(
    events: list[Source | Verdict | str], origin: Origin | None
) -> None:
    """An operator's word outweighs all, a peer's outweighs an expiry here."""
    assert history(*events).origin("x") is origin


@pytest.mark.parametrize(
    ("events", "at", "selection"),
    [
        ([EXPIRY, CONFIRM], GRACE_S - 0.1, Selection()),
        ([EXPIRY, CONFIRM], GRACE_S, Selection(clear=("x",))),
        ([EXPIRY], GRACE_S, Selection()),
        ([FOREIGN], 0.0, Selection(look_up=("x",))),
        ([FOREIGN, Verdict.EXPIRED], GRACE_S - 0.1, Selection()),
        ([FOREIGN, Verdict.EXPIRED], GRACE_S, Selection(look_up=("x",))),
        ([FOREIGN, Verdict.UNPROVEN], GRACE_S, Selection()),
        ([FOREIGN, Verdict.OPERATOR], GRACE_S, Selection()),
        ([OPERATOR], GRACE_S, Selection()),
        ([OPERATOR, EXPIRY, CONFIRM], MAX_AGE_S - 0.1, Selection()),
        ([OPERATOR], MAX_AGE_S, Selection(age_out=("x",))),
        ([FOREIGN], MAX_AGE_S, Selection(age_out=("x",))),
        ([EXPIRY], MAX_AGE_S, Selection(age_out=("x",))),
        ([EXPIRY, CONFIRM], MAX_AGE_S, Selection(clear=("x",))),
    ],
)
def test_selection(events: list[Source | Verdict | str], at: float, selection: Selection) -> None:
    """Only what expiry alone put there is cleared; Celery's own lifetime is enforced on time."""
    assert select(history(*events), at) == selection


def test_no_lifetime() -> None:
    """``REVOKE_EXPIRES`` of 0 means none."""
    assert select(history(OPERATOR), 1e9, max_age_s=0.0) == Selection()


def test_what_celery_dropped_is_gone() -> None:
    """An id that is no longer in the set needs no clearing."""
    found = history(OPERATOR).select(["x"], 0.0, held=(), grace_s=0.0, max_age_s=0.0)
    assert found == Selection(gone=("x",))


@pytest.mark.parametrize(
    ("first", "second", "may_go", "origin"),
    [
        (Verdict.EXPIRED, Verdict.EXPIRED, True, Origin.PROVEN),
        (Verdict.EXPIRED, Verdict.UNPROVEN, False, Origin.UNPROVEN),
        (Verdict.EXPIRED, Verdict.OPERATOR, False, Origin.OPERATOR),
        (Verdict.UNPROVEN, Verdict.EXPIRED, False, Origin.UNPROVEN),
        (Verdict.OPERATOR, Verdict.EXPIRED, False, Origin.OPERATOR),
    ],
)
def test_an_id_from_elsewhere_is_proven_at_first_and_after_the_grace(
    first: Verdict, second: Verdict, may_go: bool, origin: Origin
) -> None:
    """Whatever once was no proof stays none: the expiry came after the revocation then."""
    ledger = history(FOREIGN)
    assert ledger.record_verdict("x", first, 0.0, GRACE_S) is False
    assert ledger.record_verdict("x", second, GRACE_S, GRACE_S) is may_go
    assert ledger.origin("x") is origin


def test_a_proof_that_comes_after_the_grace_is_enough() -> None:
    """The result backend was down meanwhile; its first answer is fresh."""
    assert history(FOREIGN).record_verdict("x", Verdict.EXPIRED, GRACE_S, GRACE_S) is True


@pytest.mark.parametrize("meanwhile", [OPERATOR, EXPIRY])
def test_a_verdict_that_comes_too_late(meanwhile: Source) -> None:
    """What happens to the id while it is looked up counts."""
    ledger = history(FOREIGN)
    ledger.added("x", meanwhile, 1.0)
    assert ledger.record_verdict("x", Verdict.EXPIRED, 2 * GRACE_S, GRACE_S) is False


def test_counts_follow_each_change() -> None:
    """The counts that ``inspect guard`` shows are those of the entries."""
    ledger = Ledger()
    for n in range(5):
        ledger.added(f"{n}", EXPIRY, 0.0)
        ledger.confirmed_expired(f"{n}", 0.0)
    ledger.added("0", OPERATOR, 0.0)
    ledger.added("1", FOREIGN, 0.0)
    ledger.forget(["2", "unknown"])
    counts = {origin: ledger.count(origin) for origin in Origin}
    expected = dict.fromkeys(Origin, 0)
    expected |= {Origin.OPERATOR: 1, Origin.FOREIGN: 1, Origin.EXPIRED: 2}
    assert counts == expected
    assert {o: len(ledger.ids(o)) for o in Origin} == expected


def test_a_copy_leaves_no_trace() -> None:
    """What happens to the copy does not happen to the original."""
    ledger = history(FOREIGN)
    twin = ledger.copy()
    twin.record_verdict("x", Verdict.UNPROVEN, 0.0, GRACE_S)
    assert twin.origin("x") is Origin.UNPROVEN
    twin.forget(["x"])
    assert (ledger.origin("x"), ledger.count(Origin.FOREIGN)) == (Origin.FOREIGN, 1)
    assert select(ledger, GRACE_S).look_up == ("x",)


def test_it_knows_when_the_last_of_those_that_leave_came_in() -> None:
    """Of those that expired here, and of those that the result backend proves."""
    ledger = Ledger()
    ledger.added("o", OPERATOR, 9.0)
    assert ledger.last_leaving_mono is None
    ledger.added("a", EXPIRY, 1.0)
    ledger.confirmed_expired("a", 1.0)
    assert ledger.last_leaving_mono == 1.0
    ledger.added("b", FOREIGN, 3.0)
    assert ledger.last_leaving_mono == 1.0
    ledger.record_verdict("b", Verdict.EXPIRED, 5.0, GRACE_S)
    assert ledger.last_leaving_mono == 3.0
