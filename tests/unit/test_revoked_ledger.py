"""The ledger: what it knows of each id, and what it lets go."""

from __future__ import annotations

import pytest

from worker_guard.revoked.ledger import Confirmation, Held, Ledger, Origin, Selection
from worker_guard.values.source import Source, Stamp, Way

GRACE_S = 60.0
LONG_S = 1e9

OPERATOR, INHERITED, EXPIRY = Source.OPERATOR, Source.INHERITED, Source.EXPIRY
CONFIRM = "task_revoked(expired=True)"
ENDED = "its lifetime is over"


def history(*events: Source | Confirmation | str) -> Ledger:
    """A ledger in which this happened to the id "x", one after another, at 0 s."""
    ledger = Ledger()
    for event in events:
        if isinstance(event, Source):
            ledger.added("x", event, 0.0)
        elif isinstance(event, Confirmation):
            ledger.record_confirmation("x", event, 0.0, GRACE_S)
        elif event == ENDED:
            ledger.ended("x")
        else:
            ledger.confirmed_expired("x")
    return ledger


def select(ledger: Ledger, at: float) -> Selection:
    return ledger.select(["x"], at, held={"x"}, grace_s=GRACE_S, confirmed_grace_s=GRACE_S)


@pytest.mark.parametrize(
    ("events", "origin"),
    [
        ([EXPIRY], Origin.EXPIRING),
        ([EXPIRY, CONFIRM], Origin.EXPIRED),
        # It was known to be there by expiry alone; another expiry does not make that less so.
        ([EXPIRY, CONFIRM, EXPIRY], Origin.EXPIRED),
        ([EXPIRY, CONFIRM, EXPIRY, CONFIRM], Origin.EXPIRED),
        ([INHERITED], Origin.INHERITED),
        # It expires before the result backend was asked: its record confirms nothing any more.
        ([INHERITED, EXPIRY, CONFIRM], Origin.UNCONFIRMED),
        ([INHERITED, Confirmation.EXPIRED, EXPIRY, CONFIRM], Origin.CONFIRMED),
        ([INHERITED, Confirmation.EXPIRED, INHERITED], Origin.CONFIRMED),
        ([INHERITED, Confirmation.EXPIRED, OPERATOR], Origin.OPERATOR),
        ([INHERITED, Confirmation.UNCONFIRMED, EXPIRY, CONFIRM], Origin.UNCONFIRMED),
        ([INHERITED, Confirmation.UNCONFIRMED, INHERITED], Origin.UNCONFIRMED),
        ([INHERITED, Confirmation.UNCONFIRMED, OPERATOR], Origin.OPERATOR),
        ([EXPIRY, INHERITED, CONFIRM], Origin.INHERITED),
        ([EXPIRY, CONFIRM, INHERITED], Origin.INHERITED),
        ([OPERATOR], Origin.OPERATOR),
        ([OPERATOR, EXPIRY, CONFIRM], Origin.OPERATOR),
        ([EXPIRY, OPERATOR, CONFIRM], Origin.OPERATOR),
        ([EXPIRY, CONFIRM, OPERATOR], Origin.OPERATOR),
        ([OPERATOR, INHERITED, EXPIRY, CONFIRM], Origin.OPERATOR),
        ([INHERITED, OPERATOR, INHERITED], Origin.OPERATOR),
        # After its lifetime it is left to Celery, until an operator revokes it again.
        ([OPERATOR, ENDED], Origin.ENDED),
        ([OPERATOR, ENDED, EXPIRY, CONFIRM], Origin.ENDED),
        ([OPERATOR, ENDED, INHERITED], Origin.ENDED),
        ([OPERATOR, ENDED, OPERATOR], Origin.OPERATOR),
        ([EXPIRY, CONFIRM, ENDED], Origin.EXPIRED),
        # The signal alone, as for a revoke by stamped headers, says nothing of the set.
        ([CONFIRM], None),
    ],
)
def test_an_operators_id_stays_an_operators(
    events: list[Source | Confirmation | str], origin: Origin | None
) -> None:
    """An operator's word outweighs all, a peer's outweighs an expiry here."""
    assert history(*events).origin("x") is origin


@pytest.mark.parametrize(
    ("events", "at", "selection"),
    [
        ([EXPIRY, CONFIRM], GRACE_S - 0.1, Selection()),
        ([EXPIRY, CONFIRM], GRACE_S, Selection(clear=("x",))),
        ([EXPIRY], GRACE_S, Selection()),
        ([INHERITED], 0.0, Selection(look_up=("x",))),
        ([INHERITED, Confirmation.EXPIRED], GRACE_S - 0.1, Selection()),
        ([INHERITED, Confirmation.EXPIRED], GRACE_S, Selection(look_up=("x",))),
        ([INHERITED, Confirmation.UNCONFIRMED], GRACE_S, Selection()),
        ([INHERITED, Confirmation.OPERATOR], GRACE_S, Selection()),
        ([OPERATOR], GRACE_S, Selection()),
        # Nothing else leaves, however old it is.
        ([OPERATOR], LONG_S, Selection()),
        ([OPERATOR, ENDED], LONG_S, Selection()),
        ([OPERATOR, EXPIRY, CONFIRM], LONG_S, Selection()),
        ([INHERITED, Confirmation.UNCONFIRMED], LONG_S, Selection()),
        ([EXPIRY], LONG_S, Selection()),
        ([INHERITED], LONG_S, Selection(look_up=("x",))),
        ([EXPIRY, CONFIRM], LONG_S, Selection(clear=("x",))),
    ],
)
def test_selection(
    events: list[Source | Confirmation | str], at: float, selection: Selection
) -> None:
    """Only what expiry alone put there is cleared, and nothing ages out."""
    assert select(history(*events), at) == selection


def test_an_id_that_is_not_held_needs_no_clearing() -> None:
    """It has left the set meanwhile."""
    found = history(EXPIRY, CONFIRM).select(
        ["x"], LONG_S, held=(), grace_s=0.0, confirmed_grace_s=0.0
    )
    assert found == Selection()


@pytest.mark.parametrize(
    ("events", "again", "due_at"),
    [
        ([EXPIRY, CONFIRM], EXPIRY, GRACE_S),
        ([EXPIRY], EXPIRY, None),
        ([INHERITED, Confirmation.EXPIRED], EXPIRY, GRACE_S),
        # A peer that brings the id again needs the time to mark it as an operator's.
        ([INHERITED, Confirmation.EXPIRED], INHERITED, 50.0 + GRACE_S),
    ],
)
def test_the_grace_counts_from_the_first_expiry(
    events: list[Source | Confirmation | str], again: Source, due_at: float | None
) -> None:
    """An id that expires again and again is cleared in the end."""
    ledger = history(*events)
    ledger.added("x", again, 50.0)
    if due_at is not None:
        assert select(ledger, due_at - 0.1) == Selection()
    assert (select(ledger, due_at or LONG_S) != Selection()) == (due_at is not None)


def test_the_grace_counts_anew_after_the_id_was_cleared() -> None:
    """What was known of the id before no longer counts."""
    ledger = history(EXPIRY, CONFIRM)
    ledger.cleared(["x"], held=())
    ledger.added("x", EXPIRY, 100.0)
    ledger.confirmed_expired("x")
    assert select(ledger, 100.0 + GRACE_S - 0.1) == Selection()
    assert select(ledger, 100.0 + GRACE_S) == Selection(clear=("x",))


@pytest.mark.parametrize(
    ("marked", "may_go", "origin"),
    [(False, True, Origin.EXPIRED), (True, False, Origin.OPERATOR)],
)
def test_a_mark_makes_an_id_that_expired_here_an_operators(
    marked: bool, may_go: bool, origin: Origin
) -> None:
    """Another worker heard the revoke."""
    ledger = history(EXPIRY, CONFIRM)
    assert ledger.record_mark("x", operators=marked) is may_go
    assert ledger.origin("x") is origin


@pytest.mark.parametrize("meanwhile", [OPERATOR, INHERITED])
def test_an_answer_on_a_mark_that_comes_too_late(meanwhile: Source) -> None:
    """What happens to the id while its mark is looked up counts."""
    ledger = history(EXPIRY, CONFIRM)
    ledger.added("x", meanwhile, 1.0)
    assert ledger.record_mark("x", operators=False) is False


@pytest.mark.parametrize(
    ("events", "after_expiry"),
    [
        ([OPERATOR], Origin.OPERATOR),
        ([INHERITED], Origin.UNCONFIRMED),
        ([INHERITED, Confirmation.UNCONFIRMED], Origin.UNCONFIRMED),
        ([OPERATOR, ENDED], Origin.ENDED),
        ([INHERITED, Confirmation.EXPIRED], Origin.EXPIRED),
        ([EXPIRY, CONFIRM], Origin.EXPIRED),
    ],
)
def test_what_celery_dropped_is_remembered_where_it_may_be_an_operators(
    events: list[Source | Confirmation | str], after_expiry: Origin
) -> None:
    """An expiry brings the id back, and says nothing of how it came in first."""
    ledger = history(*events)
    ledger.dropped("x")
    assert (ledger.origin("x"), set(ledger.ids())) == (None, set())
    ledger.added("x", EXPIRY, 0.0)
    ledger.confirmed_expired("x")
    assert ledger.origin("x") is after_expiry


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first."""
    monkeypatch.setattr("worker_guard.revoked.ledger._REMEMBERED", 2)
    ledger = Ledger()
    for task_id in ("a", "b", "c"):
        ledger.added(task_id, OPERATOR, 0.0)
        ledger.dropped(task_id)
    for task_id in ("a", "b", "c"):
        ledger.added(task_id, EXPIRY, 0.0)
    assert [ledger.origin(i) for i in ("a", "b", "c")] == [
        Origin.EXPIRING,
        Origin.OPERATOR,
        Origin.OPERATOR,
    ]


def test_the_set_has_the_last_word() -> None:
    """Ids that are no longer in it are forgotten, but for those that operators revoked."""
    ledger = Ledger()
    for task_id in ("known", "lost"):
        ledger.added(task_id, OPERATOR, 0.0)
    ledger.added("gone", EXPIRY, 0.0)
    differences = ledger.compare({"known": 1, "merged": 2}.keys())
    assert differences == (["merged"], ["lost"])
    assert (set(ledger.operators), ledger.ids()) == ({"known", "lost"}, [])


def test_an_id_that_a_dry_run_would_have_cleared_is_counted_once() -> None:
    """It is still in the set, and is ignored until it comes in again."""
    ledger = history(EXPIRY, CONFIRM)
    ledger.cleared(["x"], held={"x"})
    assert (ledger.origin("x"), select(ledger, LONG_S)) == (Origin.WOULD_CLEAR, Selection())
    assert ledger.compare({"x": 1}.keys()) == ([], [])
    ledger.added("x", OPERATOR, 0.0)
    assert ledger.origin("x") is Origin.OPERATOR


@pytest.mark.parametrize(
    ("first", "second", "may_go", "origin"),
    [
        (Confirmation.EXPIRED, Confirmation.EXPIRED, True, Origin.CONFIRMED),
        (Confirmation.EXPIRED, Confirmation.UNCONFIRMED, False, Origin.UNCONFIRMED),
        (Confirmation.EXPIRED, Confirmation.OPERATOR, False, Origin.OPERATOR),
        (Confirmation.UNCONFIRMED, Confirmation.EXPIRED, False, Origin.UNCONFIRMED),
        (Confirmation.OPERATOR, Confirmation.EXPIRED, False, Origin.OPERATOR),
        (Confirmation.EXPIRED, Confirmation.TAKEN_BACK, True, Origin.CONFIRMED),
    ],
)
def test_an_inherited_id_is_confirmed_at_first_and_after_the_grace(
    first: Confirmation, second: Confirmation, may_go: bool, origin: Origin
) -> None:
    """What was not confirmed once never is: the expiry came after the revocation then."""
    ledger = history(INHERITED)
    assert ledger.record_confirmation("x", first, 0.0, GRACE_S) is False
    assert ledger.record_confirmation("x", second, GRACE_S, GRACE_S) is may_go
    assert ledger.origin("x") is origin


def test_a_confirmation_that_comes_after_the_grace_is_enough() -> None:
    """The result backend was down meanwhile; its first answer is fresh."""
    assert (
        history(INHERITED).record_confirmation("x", Confirmation.EXPIRED, GRACE_S, GRACE_S) is True
    )


@pytest.mark.parametrize("meanwhile", [OPERATOR, EXPIRY])
def test_an_answer_that_comes_too_late(meanwhile: Source) -> None:
    """What happens to the id while it is looked up counts."""
    ledger = history(INHERITED)
    ledger.added("x", meanwhile, 1.0)
    assert ledger.record_confirmation("x", Confirmation.EXPIRED, 2 * GRACE_S, GRACE_S) is False


def test_counts_follow_each_change() -> None:
    """The counts that ``inspect guard`` shows are those of the entries."""
    ledger = Ledger()
    for n in range(5):
        ledger.added(f"{n}", EXPIRY, 0.0)
        ledger.confirmed_expired(f"{n}")
    ledger.added("0", OPERATOR, 0.0)
    ledger.added("1", INHERITED, 0.0)
    ledger.cleared(["2", "unknown"], held=())
    counts = {origin: ledger.count(origin) for origin in Origin}
    expected = dict.fromkeys(Origin, 0)
    expected |= {Origin.OPERATOR: 1, Origin.INHERITED: 1, Origin.EXPIRED: 2}
    assert counts == expected
    assert {o: len(ledger.ids(o)) for o in Origin} == expected


def test_a_copy_leaves_no_trace() -> None:
    """What happens to the copy does not happen to the original."""
    ledger = history(INHERITED)
    twin = ledger.copy()
    twin.record_confirmation("x", Confirmation.UNCONFIRMED, 0.0, GRACE_S)
    assert twin.origin("x") is Origin.UNCONFIRMED
    twin.cleared(["x"], held=())
    assert (ledger.origin("x"), ledger.count(Origin.INHERITED)) == (Origin.INHERITED, 1)
    assert select(ledger, GRACE_S).look_up == ("x",)


def test_it_knows_when_the_last_of_those_that_leave_came_in() -> None:
    """Of those that expired here, and of those that the result backend confirms."""
    ledger = Ledger()
    ledger.added("o", OPERATOR, 9.0)
    assert ledger.last_leaving_mono is None
    ledger.added("a", EXPIRY, 1.0)
    ledger.confirmed_expired("a")
    assert ledger.last_leaving_mono == 1.0
    ledger.added("b", INHERITED, 3.0)
    assert ledger.last_leaving_mono == 1.0
    ledger.record_confirmation("b", Confirmation.EXPIRED, 5.0, GRACE_S)
    assert ledger.last_leaving_mono == 3.0


# -- operators' revocations ----------------------------------------------------------------

STAMP = Stamp("customer", 17)


def test_a_revocation_has_a_time_and_a_way() -> None:
    """Of ids and of stamped headers; there is none for what only expired, or has ended."""
    ledger = Ledger()
    ledger.added("x", OPERATOR, 5.0, Way.TERMINATE)
    ledger.added("expired", EXPIRY, 5.0)
    assert ledger.stamped(STAMP, 7.0, Way.STAMPS) is True
    assert ledger.stamped(STAMP, 8.0, Way.STAMPS) is False
    assert ledger.revocations() == ["x", STAMP]
    assert list(ledger.operators) == ["x"]
    assert ledger.revocation("x") == Held(5.0, Way.TERMINATE)
    assert ledger.revocation(STAMP) == Held(8.0, Way.STAMPS)
    assert ledger.revocation("expired") is ledger.revocation(Stamp("customer", 18)) is None
    for target in ("x", "expired", "unknown", STAMP, STAMP):
        ledger.ended(target)
    assert ledger.revocations() == []


@pytest.mark.parametrize(
    ("again", "since"),
    [
        (EXPIRY, 5.0),
        # Else a fleet whose workers start one after another would never end it.
        (INHERITED, 5.0),
        (OPERATOR, 50.0),
    ],
)
def test_the_lifetime_counts_from_the_last_revocation(again: Source, since: float) -> None:
    """An expiry renews nothing, nor does a peer that brings the id back."""
    ledger = Ledger()
    ledger.added("x", OPERATOR, 5.0, Way.TERMINATE)
    ledger.added("x", again, 50.0, Way.TERMINATE)
    assert ledger.revocation("x") == Held(since, Way.TERMINATE)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [EXPIRY, CONFIRM],
        [INHERITED],
        [INHERITED, Confirmation.EXPIRED],
        [INHERITED, Confirmation.UNCONFIRMED],
    ],
)
def test_what_is_on_record_is_an_operators(events: list[Source | Confirmation | str]) -> None:
    """Whatever was known of the id; it is entered once."""
    ledger = history(*events)
    assert ledger.restored("x", -100.0, Way.REVOKE) is True
    assert ledger.restored("x", -100.0, Way.REVOKE) is False
    assert ledger.revocation("x") == Held(-100.0, Way.REVOKE)
    assert ledger.count(Origin.OPERATOR) == 1


@pytest.mark.parametrize(
    ("events", "unknown"), [([OPERATOR], False), ([OPERATOR, ENDED], True)], ids=["held", "ended"]
)
def test_what_was_revoked_again_elsewhere_is_held_from_then_on(
    events: list[Source | Confirmation | str], unknown: bool
) -> None:
    """This worker was away; its own revocation, as the record has it, tells it nothing new."""
    ledger = history(*events)
    before = ledger.origin("x")
    assert ledger.restored("x", 0.2, Way.REVOKE) is False  # the time of a round trip later
    assert ledger.origin("x") is before
    assert ledger.restored("x", 100.0, Way.REVOKE) is unknown
    assert ledger.revocation("x") == Held(100.0, Way.REVOKE)


def test_what_was_taken_back_is_forgotten() -> None:
    """An operator can revoke it again, and it can expire."""
    ledger = history(OPERATOR)
    assert ledger.forget("x") is Origin.OPERATOR
    assert (ledger.origin("x"), ledger.revocations()) == (None, [])
    assert ledger.forget("x") is None
    ledger.added("x", EXPIRY, 1.0)
    assert ledger.origin("x") is Origin.EXPIRING
    ledger.added("x", OPERATOR, 2.0)
    assert ledger.forget("x") is Origin.OPERATOR


def test_what_was_taken_back_after_celery_dropped_it() -> None:
    """An expiry that brings the id back is only an expiry then."""
    ledger = history(OPERATOR)
    ledger.dropped("x")
    ledger.forget("x")
    ledger.added("x", EXPIRY, 0.0)
    assert ledger.origin("x") is Origin.EXPIRING


def test_the_result_backend_can_say_that_it_was_taken_back() -> None:
    """A peer that has not heard brought it: it may be cleared at once."""
    ledger = history(INHERITED)
    assert ledger.record_confirmation("x", Confirmation.TAKEN_BACK, 0.0, GRACE_S) is True
    operators = history(OPERATOR)
    assert operators.record_confirmation("x", Confirmation.TAKEN_BACK, 0.0, GRACE_S) is False


@pytest.mark.parametrize(
    ("events", "operators"),
    [
        ([OPERATOR], True),
        ([OPERATOR, ENDED], False),
        ([INHERITED], False),
        ([EXPIRY, CONFIRM], False),
        ([], False),
    ],
)
def test_what_the_application_took_out_is_forgotten(
    events: list[Source | Confirmation | str], operators: bool
) -> None:
    """It is told whether an operator had revoked it, so that it leaves the record too."""
    ledger = history(*events)
    assert (ledger.forget("x") is Origin.OPERATOR) is operators
    assert (ledger.origin("x"), ledger.revocations()) == (None, [])
    ledger.added("x", EXPIRY, 0.0)
    assert ledger.origin("x") is Origin.EXPIRING
