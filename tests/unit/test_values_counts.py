"""Counts and lists for people."""

from __future__ import annotations

from worker_guard.values.counts import count, some


def test_one_is_one() -> None:
    """Singular and plural; what is not known is plural."""
    assert [count(n, "id") for n in (0, 1, 2, None)] == ["0 ids", "1 id", "2 ids", "? ids"]
    assert [count(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


def test_some_of_many() -> None:
    """The rest is counted; ten are named unless told otherwise."""
    assert some("ab", 3) == "a, b"
    assert some("abcd", 3) == "a, b, c and 1 more"
    assert some(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
