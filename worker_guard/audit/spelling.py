"""How the findings spell durations, sizes and names."""

from __future__ import annotations

from collections.abc import Sequence

#: So many names at most stand in one finding.
MOST_NAMES = 10

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def seconds(value: float) -> str:
    """A duration, in the largest unit that needs no fraction: ``2 h``, ``90 s``."""
    for unit, name in _UNITS:
        if value >= unit and value % unit == 0:
            return f"{value / unit:g} {name}"
    return f"{plain(round(value, 1))} s"


def plain(number: float) -> str:
    """A number in full, without an exponent or a fraction that is none."""
    return f"{number:.0f}" if number == round(number) else str(number)


def megabytes(size_bytes: float) -> str:
    """A size in MB: 1,000,000 bytes."""
    return f"{size_bytes / 1e6:,.0f} MB"


def names(all_names: Sequence[str]) -> str:
    """The names, as many as a reader takes in."""
    shown = ", ".join(all_names[:MOST_NAMES])
    more = len(all_names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
