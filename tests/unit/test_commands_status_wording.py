"""Time spans, sizes and counts for people."""

from __future__ import annotations

import pytest

from worker_guard.commands.status.reply import Process
from worker_guard.commands.status.troubles import share
from worker_guard.commands.status.wording import count, duration, size, some
from worker_guard.values.sizes import parse_size, size_bytes

MB, MIB = 10**6, 2**20


@pytest.mark.parametrize(
    ("used", "limit", "expected"),
    [(50, 100, 0.5), (150, 100, 1.5), (None, 100, None), (50, None, None), (50, 0, None)],
)
def test_the_share_of_a_limit(used: int | None, limit: int | None, expected: float | None) -> None:
    """Unknown without a limit, and before the first reading."""
    assert share(Process(pid=1, used_bytes=used), limit) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (86_400, "1 d"),
        (86_400 * 12 + 3_600 * 4 + 59, "12 d 4 h"),
    ],
)
def test_time_spans_for_people(seconds: float, expected: str) -> None:
    """Rounded down, in the two largest units."""
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("limit", "number_of_bytes", "expected"),
    [
        ("400MiB", None, "400 MiB"),
        ("400MiB", 130 * MIB, "130 MiB"),
        ("400MiB", 130 * MB, "124.0 MiB"),
        ("400MiB", 2048 * MIB, "2048 MiB"),
        ("512MB", None, "512 MB"),
        ("512MB", 1_234_567_890, "1234.6 MB"),
        ("2GB", None, "2 GB"),
        ("2GB", 130 * MB, "130 MB"),
        ("1500MB", None, "1500 MB"),
        (50_000_000, 88_012_345, "88.0 MB"),
        (2**30, None, "1 GiB"),
        (1_234_567_891, None, "1.2 GB"),
        (None, 130 * MB, "130 MB"),
        (None, 0, "0 B"),
    ],
)
def test_sizes_are_in_the_unit_of_their_limit(
    limit: str | int | None, number_of_bytes: int | None, expected: str
) -> None:
    """As the setting was given; smaller ones in the next unit."""
    like = size_bytes(parse_size(limit), 0)
    assert size(number_of_bytes if number_of_bytes is not None else like or 0, like) == expected


def test_one_is_one() -> None:
    """Singular and plural; what is not known is plural."""
    assert [count(n, "id") for n in (0, 1, 2, None)] == ["0 ids", "1 id", "2 ids", "? ids"]


def test_some_of_many() -> None:
    """The rest is counted."""
    assert some("ab", 3) == "a, b"
    assert some("abcd", 3) == "a, b, c and 1 more"
