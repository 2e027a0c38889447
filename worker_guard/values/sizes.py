"""Amounts of memory: as settings spell limits (bytes, ``"400MiB"``, ``"25%"``), and for people."""

from __future__ import annotations

import re

#: No worker's process is this small. A smaller limit was meant in another unit.
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

#: Case counts only for a single letter: Kubernetes reads "m" as a thousandth, Docker as MiB.
_UNITS = {unit.lower(): unit for unit in _UNIT_BYTES if len(unit) > 1 or unit == "B"}
_UNITS |= {"B": "B", "k": "K", "K": "K", "M": "M", "G": "G", "T": "T"}

_SPELT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(%|[a-z]+)\s*", re.IGNORECASE | re.ASCII)


def parse_size(value: object) -> int | str | None:
    """Check a limit, for :func:`size_bytes`; returns an int, or the text of a size or share.

    Raises:
        ValueError: its text says what is allowed, and what may have been meant.
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
    spelt = f"{number}{_unit(unit)}"
    if _unit(unit) is None:
        raise ValueError(ALLOWED)
    if _bytes_of(spelt) < LEAST_BYTES:
        raise ValueError(f"{ALLOWED}. No worker is so small: another unit was meant")
    return spelt


def size_bytes(limit: int | str | None, available_bytes: int) -> int | None:
    """The limit from :func:`parse_size` in bytes, if this process may use ``available_bytes``."""
    if not isinstance(limit, str):
        return limit
    if limit.endswith("%"):
        return int(available_bytes * float(limit.rstrip("%")) / 100)
    return _bytes_of(limit)


def size(amount_bytes: float, like: int | None = None) -> str:
    """An amount for people, in the unit of the limit ``like``: 412.3 MiB beside 400 MiB.

    An amount of less than one such unit is shown in a smaller one.
    """
    limit = like or 0
    is_binary = limit % 1024**2 == 0 and limit % 1000**2 != 0
    base, names = _SPELLINGS[2] if is_binary else _SPELLINGS[0]
    units = [(base**power, name) for power, name in enumerate(("B", *names))]
    if limit % base**2 == 0:
        # No unit larger than the largest that divides the limit. No unit divides a share of the
        # machine's memory.
        units = [(unit, name) for unit, name in units if limit % unit == 0]
    unit, name = next((u for u in reversed(units) if amount_bytes >= u[0]), units[0])
    amount = amount_bytes / unit
    return f"{amount:.0f} {name}" if amount == int(amount) else f"{amount:.1f} {name}"


def _unit(text: str) -> str | None:
    return _UNITS.get(text) or (_UNITS.get(text.lower()) if len(text) > 1 else None)


def _bytes_of(spelt: str) -> int:
    match = _SPELT.fullmatch(spelt)
    assert match is not None
    return int(float(match[1]) * _UNIT_BYTES[match[2]])


def _meant(value: int) -> str:
    if value * 1024 < LEAST_BYTES:
        return f"A plain number is bytes; for megabytes write '{value}MB'"
    return (
        "A plain number is bytes, not KiB as in worker_max_memory_per_child; "
        f"for KiB write '{value}KiB'"
    )
