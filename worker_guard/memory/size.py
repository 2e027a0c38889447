"""Amounts of memory as settings spell them: bytes, ``"512MB"``, ``"400MiB"`` or ``"25%"``."""

from __future__ import annotations

import re

ALLOWED = (
    "None, bytes as an int above 0, a size such as '512MB' or '400MiB' "
    "(B, KB, MB, GB, TB or KiB, MiB, GiB, TiB), or a share such as '25%'"
)

_UNITS = {"b": 1}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}

_SPELT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|[a-z]+)\s*", re.IGNORECASE)


def parse_size(value: object) -> int | str | None:
    """Bytes, or a share that stays as it is (``"25%"``), or None.

    Raises:
        ValueError: with what is allowed as its text.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    spelt = _SPELT.fullmatch(value) if isinstance(value, str) else None
    if spelt is None:
        raise ValueError(ALLOWED)
    number, unit = float(spelt[1]), spelt[2].lower()
    if unit == "%" and 0 < number <= 100:
        return f"{number:g}%"
    size_bytes = int(number * _UNITS.get(unit, 0))
    if size_bytes < 1:
        raise ValueError(ALLOWED)
    return size_bytes


def size_bytes(size: int | str | None, available_bytes: int) -> int | None:
    """What :func:`parse_size` returned, in bytes, where so much memory may be used at all."""
    if isinstance(size, str):
        return int(available_bytes * float(size.rstrip("%")) / 100)
    return size
