"""How amounts of memory are spelt."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.memory.size import ALLOWED, parse_size, size_bytes


@pytest.mark.parametrize(
    ("spelt", "parsed"),
    [
        (None, None),
        (1, 1),
        (512_000_000, 512_000_000),
        ("512MB", 512_000_000),
        ("400MiB", 400 * 1024**2),
        ("400 mib", 400 * 1024**2),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("2GB", 2_000_000_000),
        ("64KB", 64_000),
        ("64KiB", 65_536),
        ("1TB", 10**12),
        ("1TiB", 1024**4),
        ("900B", 900),
        ("25%", "25%"),
        (" 12.50 % ", "12.5%"),
        ("100%", "100%"),
    ],
)
def test_what_is_allowed(spelt: Any, parsed: Any) -> None:
    """Bytes, decimal and binary units, a share, or nothing."""
    assert parse_size(spelt) == parsed


@pytest.mark.parametrize(
    "spelt",
    [0, -1, True, 1.5, "", "512", "512M", "MB", "-5MB", "0MB", "0.1B", "0%", "101%", "5XB", b"1MB"],
)
def test_what_is_not(spelt: Any) -> None:
    """Whatever could mean two things, or nothing, is refused with what is allowed."""
    with pytest.raises(ValueError, match="512MB") as caught:
        parse_size(spelt)
    assert str(caught.value) == ALLOWED


@pytest.mark.parametrize(
    ("size", "expected"), [(None, None), (7, 7), ("25%", 250), ("12.5%", 125), ("100%", 1000)]
)
def test_a_share_is_of_what_may_be_used(size: Any, expected: int | None) -> None:
    """A share is of the memory that there is for this process; bytes are what they are."""
    assert size_bytes(size, 1000) == expected
