"""Which lists of control replies are orphaned, by their names and their last items."""

from __future__ import annotations

import uuid

import pytest

from worker_guard.broker.orphans import UNREAD_S, ReplyNames, Seen, read_seen, see

NOW = 1_800_000_000.0
NAMES = ReplyNames(prefix="shop:", suffix=".reply.celery.pidbox")
ID = str(uuid.UUID(int=7))


def test_the_names_of_an_apps_reply_lists() -> None:
    """The prefix, an asker's id, the namespace."""
    assert NAMES.matches(f"shop:{ID}.reply.celery.pidbox".encode())
    assert NAMES.pattern == ("shop:????????-????-????-????-????????????.reply.celery.pidbox")


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}.reply.celery.pidbox",
        f"shop:{ID}.reply.other.pidbox",
        f"shop:{ID}.reply.celery.pidbox\x06\x163",
        "shop:work.reply.celery.pidbox",
        f"shop:x{ID[1:]}.reply.celery.pidbox",
        f"shop:{ID.upper().replace('0', 'A')}.reply.celery.pidbox",
        f"shop:{ID}",
        "shop:.reply.celery.pidbox",
    ],
)
def test_other_names(name: str) -> None:
    """Another prefix, another namespace, a priority, a queue that looks like it."""
    assert not NAMES.matches(name.encode())


def test_a_prefix_stands_for_itself() -> None:
    """Redis does not take its characters for wildcards."""
    assert ReplyNames(prefix="a*[b]", suffix=".r").pattern.startswith("a\\*\\[b\\]")


def test_the_same_last_item_for_an_hour() -> None:
    """Then nobody reads the list."""
    first = see(b"120 abc", None, NOW)
    assert not first.is_orphaned(NOW)
    second = see(b"120 abc", first, NOW + UNREAD_S - 0.001)
    assert second == first
    assert not second.is_orphaned(NOW + UNREAD_S - 0.001)
    assert see(b"120 abc", second, NOW + UNREAD_S).is_orphaned(NOW + UNREAD_S)


def test_another_last_item_begins_the_time_anew() -> None:
    """Somebody took one."""
    first = see(b"120 abc", None, NOW)
    later = see(b"120 abd", first, NOW + 2 * UNREAD_S)
    assert later == Seen(b"120 abd", NOW + 2 * UNREAD_S)
    assert not later.is_orphaned(NOW + 2 * UNREAD_S)


def test_a_time_in_the_future_begins_anew() -> None:
    """The clock of the server was wrong, or is."""
    assert see(b"1 a", Seen(b"1 a", NOW + 1), NOW) == Seen(b"1 a", NOW)


def test_what_is_written_is_read() -> None:
    """To the millisecond."""
    seen = Seen(b"120 abc", NOW + 0.125)
    assert read_seen(seen.written()) == seen


@pytest.mark.parametrize("written", [None, b"", b"x 120 abc", b"\xff"])
def test_what_is_no_note(written: bytes | None) -> None:
    """Is as if nothing were there."""
    assert read_seen(written) is None
