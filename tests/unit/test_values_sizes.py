"""How limits of memory are spelt."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.values.sizes import ALLOWED, LEAST_BYTES, parse_size, size_bytes, spelt


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
    ("amount_bytes", "like", "expected"),
    [
        (432_327_885, "400MiB", "412.3 MiB"),
        (432_327_885, "400 mib", "412.3 MiB"),
        (432_327_885, "400Mi", "412.3 Mi"),
        (432_327_885, "512MB", "432.3 MB"),
        (432_327_885, "0.5GB", "0.4 GB"),
        (1_900_000_000, "2G", "1.9 G"),
        (90_000_000, "2G", "90.0 M"),
        (90_000_000, "1TiB", "85.8 MiB"),
        (0, "2G", "0.0 G"),
        (432_327_885, "200000KiB", "422195.2 KiB"),
        (432_327_885, "900000000B", "432327885 B"),
        (12_500_000_000, "512MB", "12500.0 MB"),
        (432_327_885, 419_430_400, "432.3 MB"),
        (432_327_885, "25%", "432.3 MB"),
        (432_327_885, None, "432.3 MB"),
        (432_327_885, "lots", "432.3 MB"),
    ],
)
def test_an_amount_is_spelt_as_its_limit_is(amount_bytes: int, like: object, expected: str) -> None:
    """In its unit, or a smaller one of the same spelling; else in decimal MB."""
    assert spelt(amount_bytes, like) == expected
