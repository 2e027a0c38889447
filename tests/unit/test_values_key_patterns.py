"""Which patterns name keys."""

from __future__ import annotations

import pytest

from worker_guard.values.key_patterns import Glob


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("app:*", [b"app:", b"app:1:2"], [b"app", b"xapp:1"]),
        ("a?c", [b"abc", b"a\nc"], [b"ac", b"abbc"]),
        ("a[bc]d", [b"abd", b"acd"], [b"aed", b"a[bc]d"]),
        ("a[^b]d", [b"acd"], [b"abd"]),
        ("a[a-c]", [b"ab"], [b"ad", b"a-"]),
        (r"a\*", [b"a*"], [b"ab"]),
        ("a.b%c", [b"a.b%c"], [b"axb%c"]),
    ],
)
def test_a_pattern_means_what_it_means_to_redis(
    pattern: str, matching: list[bytes], others: list[bytes]
) -> None:
    """The whole key has to fit."""
    glob = Glob(pattern)
    assert all(map(glob.matches, matching))
    assert not any(map(glob.matches, others))


@pytest.mark.parametrize("pattern", ["", "*", "?*", "**", "[ab]*", "a[", "a[b", "a[]"])
def test_a_pattern_that_names_no_key_is_refused(pattern: str) -> None:
    """One that fits everything would reach the broker's queues."""
    with pytest.raises(ValueError, match=r"names no key|without its|no character"):
        Glob(pattern)


def test_many_wildcards_are_looked_for_once() -> None:
    """A key that nearly fits costs no search of each strategy to place them."""
    glob = Glob("a*a*a*a*a*a*a*a*z")
    assert glob.matches(b"a" * 300 + b"z")
    assert not glob.matches(b"a" * 300)
