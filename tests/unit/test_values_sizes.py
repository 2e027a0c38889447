"""How limits of memory are spelt."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.values.sizes import ALLOWED, LEAST_BYTES, parse_size, size, size_bytes

MB, MIB = 1000**2, 1024**2


@pytest.mark.parametrize(
    ("given", "parsed", "in_bytes"),
    [
        (None, None, None),
        (512_000_000, 512_000_000, 512_000_000),
        (LEAST_BYTES, LEAST_BYTES, LEAST_BYTES),
        ("16MiB", "16MiB", LEAST_BYTES),
        ("512MB", "512MB", 512_000_000),
        ("400MiB", "400MiB", 400 * 1024**2),
        ("400 mib", "400MiB", 400 * 1024**2),
        ("1.5GiB", "1.5GiB", 3 * 1024**3 // 2),
        ("2GB", "2GB", 2_000_000_000),
        ("200000KB", "200000KB", 200_000_000),
        ("200000KiB", "200000KiB", 204_800_000),
        ("1TB", "1TB", 10**12),
        ("1TiB", "1TiB", 1024**4),
        ("900000000B", "900000000B", 900_000_000),
        ("900000000b", "900000000B", 900_000_000),
        # As Kubernetes spells them.
        ("200000k", "200000K", 200_000_000),
        ("200000K", "200000K", 200_000_000),
        ("512M", "512M", 512_000_000),
        ("2G", "2G", 2_000_000_000),
        ("1.5T", "1.5T", 1_500_000_000_000),
        ("200000Ki", "200000Ki", 204_800_000),
        ("400Mi", "400Mi", 400 * 1024**2),
        ("400mi", "400Mi", 400 * 1024**2),
        ("2Gi", "2Gi", 2 * 1024**3),
        ("1Ti", "1Ti", 1024**4),
        ("25%", "25%", 250),
        (" 12.50 % ", "12.5%", 125),
        ("100%", "100%", 1000),
    ],
)
def test_what_is_allowed(given: Any, parsed: Any, in_bytes: int | None) -> None:
    """A limit stays as it was given, and is so many bytes where 1,000 may be used."""
    assert parse_size(given) == parsed
    assert size_bytes(parsed, 1000) == in_bytes
    assert parse_size(parsed) == parsed


@pytest.mark.parametrize(
    "given",
    [0, -1, True, 1.5, "", "512", "MB", "-5MB", "0%", "101%", "5XB", b"1GB",
     "9" * 400 + "GB", "\u0664\u0660\u0660MB",
     # A thousandth in Kubernetes, MiB in Docker; and GiB in Docker, where a G is 10**9.
     "512000000000m", "512m", "2g", "1t", "200000"],
)  # fmt: skip
def test_what_is_not(given: Any) -> None:
    """Whatever could mean two things, or nothing, is refused."""
    with pytest.raises(ValueError, match="512MB") as caught:
        parse_size(given)
    assert str(caught.value) == ALLOWED


@pytest.mark.parametrize("given", ["0MB", "0.1B", "400KB", "15MiB", "16MB", "16.7M", "16383Ki"])
def test_what_is_too_small(given: str) -> None:
    """It was meant in another unit."""
    with pytest.raises(ValueError, match="another unit was meant") as caught:
        parse_size(given)
    assert str(caught.value).startswith(ALLOWED)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (200_000, "not KiB as in worker_max_memory_per_child; for KiB write '200000KiB'"),
        (LEAST_BYTES - 1, "for KiB write '16777215KiB'"),
        (400, "A plain number is bytes; for megabytes write '400MB'"),
        (1, "for megabytes write '1MB'"),
    ],
)
def test_a_number_in_another_unit_is_refused_with_what_may_be_meant(given: int, hint: str) -> None:
    """The spelling that the message names is one that is allowed, or the next too small."""
    with pytest.raises(ValueError, match="16 MiB or more") as caught:
        parse_size(given)
    assert str(caught.value).startswith(ALLOWED)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("limit", "amount_bytes", "expected"),
    [
        ("400MiB", 400 * MIB, "400 MiB"),
        ("400MiB", 130 * MIB, "130 MiB"),
        ("400MiB", 130 * MB, "124.0 MiB"),
        ("400MiB", 2048 * MIB, "2048 MiB"),
        ("400MiB", 90_000, "87.9 KiB"),
        ("512MB", 512 * MB, "512 MB"),
        ("512MB", 1_234_567_890, "1234.6 MB"),
        ("2GB", 2000 * MB, "2 GB"),
        ("2GB", 130 * MB, "130 MB"),
        ("1500MB", 1500 * MB, "1500 MB"),
        ("200000KiB", 204_800_000, "204.8 MB"),
        (50_000_000, 88_012_345, "88.0 MB"),
        (1024**3, 1024**3, "1 GiB"),
        (1_234_567_891, 1_234_567_891, "1.2 GB"),
        (None, 130 * MB, "130 MB"),
        (None, 204_800, "204.8 KB"),
        (None, 999, "999 B"),
        (None, 0, "0 B"),
    ],
)
def test_an_amount_is_in_the_unit_of_its_limit(
    limit: str | int | None, amount_bytes: int, expected: str
) -> None:
    """As the setting was given, if its value tells; a smaller amount in a smaller unit."""
    assert size(amount_bytes, size_bytes(parse_size(limit), 0)) == expected
