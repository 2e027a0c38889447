"""Limits of memory as settings spell them: bytes, a size (``"400MiB"``, ``"2G"``), or a share."""

from __future__ import annotations

import re

#: No worker's process is this small: a limit below it was meant in another unit.
LEAST_BYTES = 16 * 1024**2

ALLOWED = (
    "None, bytes as an int, a size such as '512MB', '400MiB' or '2G' "
    "(KB, MB, GB, TB or K, M, G, T; KiB, MiB, GiB, TiB or Ki, Mi, Gi, Ti), "
    f"or a share such as '25%'; {LEAST_BYTES // 1024**2} MiB or more"
)

#: The units of each spelling, the smallest first.
_SPELLINGS = (
    (1000, ("KB", "MB", "GB", "TB")),
    (1000, ("K", "M", "G", "T")),
    (1024, ("KiB", "MiB", "GiB", "TiB")),
    (1024, ("Ki", "Mi", "Gi", "Ti")),
)
_UNIT_BYTES = {"B": 1} | {
    unit: base**power for base, units in _SPELLINGS for power, unit in enumerate(units, 1)
}

#: Case counts in a single letter alone: Kubernetes reads "m" as a thousandth, Docker as MiB.
_UNITS = {unit.lower(): unit for unit in _UNIT_BYTES if len(unit) > 1 or unit == "B"}
_UNITS |= {"B": "B", "k": "K", "K": "K", "M": "M", "G": "G", "T": "T"}

_SPELT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(%|[a-z]+)\s*", re.IGNORECASE | re.ASCII)


def parse_size(value: object) -> int | str | None:
    """The limit as it was given, for :func:`size_bytes`: an int, or the text of a size or share.

    Raises:
        ValueError: with what is allowed as its text, and what may have been meant.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        if value < LEAST_BYTES:
            raise ValueError(f"{ALLOWED}. {_meant(value)}")
        return value
    match = _SPELT.fullmatch(value) if isinstance(value, str) else None
    number, unit = match.groups() if match else ("", "")
    if unit == "%" and 0 < float(number) <= 100:
        return f"{float(number):g}%"
    size = f"{number}{_unit(unit)}"
    if _unit(unit) is None:
        raise ValueError(ALLOWED)
    if _bytes_of(size) < LEAST_BYTES:
        raise ValueError(f"{ALLOWED}. No worker is so small: another unit was meant")
    return size


def size_bytes(size: int | str | None, available_bytes: int) -> int | None:
    """What :func:`parse_size` returned, in bytes, where so much memory may be used at all."""
    if not isinstance(size, str):
        return size
    if size.endswith("%"):
        return int(available_bytes * float(size.rstrip("%")) / 100)
    return _bytes_of(size)


def spelt(amount_bytes: float, like: object) -> str:
    """An amount in the unit in which a limit was given: 412.3 MiB beside ``"400MiB"``.

    In decimal MB where it has none (bytes, a share, None); in a smaller unit of that spelling
    where the amount is below a tenth of it.
    """
    match = _SPELT.fullmatch(like) if isinstance(like, str) else None
    unit = (match and _unit(match[2])) or "MB"
    if unit == "B":
        return f"{amount_bytes:.0f} B"
    units = next(units for _, units in _SPELLINGS if unit in units)
    place = units.index(unit)
    while place and 0 < amount_bytes < _UNIT_BYTES[units[place]] / 10:
        place -= 1
    return f"{amount_bytes / _UNIT_BYTES[units[place]]:.1f} {units[place]}"


def _unit(text: str) -> str | None:
    return _UNITS.get(text) or (_UNITS.get(text.lower()) if len(text) > 1 else None)


def _bytes_of(size: str) -> int:
    match = _SPELT.fullmatch(size)
    assert match is not None
    return int(float(match[1]) * _UNIT_BYTES[match[2]])


def _meant(value: int) -> str:
    if value * 1024 < LEAST_BYTES:
        return f"A plain number is bytes; for megabytes write '{value}MB'"
    return (
        "A plain number is bytes, not KiB as in worker_max_memory_per_child; "
        f"for KiB write '{value}KiB'"
    )
