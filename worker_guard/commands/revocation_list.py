"""``celery guard revocations``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any

import click

from worker_guard.commands.console import EX_OK, failed, naming, set_up_django
from worker_guard.commands.revocations import the_record
from worker_guard.commands.server_names import result_backend
from worker_guard.revoked.record import Revocation
from worker_guard.settings import read_settings
from worker_guard.values.moments import rfc3339, to_the_minute
from worker_guard.values.source import Stamp

#: Up to this many are sorted, the newest first. More are printed as they are read.
SORTED = 1000


def run_revocations(app: Any, *, as_json: bool) -> int:
    """Print the revocations on record, page by page, and return the exit code."""
    try:
        set_up_django()
        reading = _Reading(the_record(app, read_settings(app.conf)).pages())
    except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
        return failed(exc, naming(app, "revocations"), server=result_backend(app))
    pages = iter(reading)
    first = _first(pages)
    if reading.failure is None:
        printed = _json(first, pages) if as_json else _table(first, pages)
        for text in printed:
            if reading.failure is None:
                click.echo(text)
    if reading.failure is not None:
        return failed(reading.failure, naming(app, "revocations"), server=result_backend(app))
    return EX_OK


class _Reading:
    """Each revocation once, in pages, until the end or a ``failure`` of the server.

    The record can list one twice while its table of entries grows or shrinks. So a digest of each
    is held: 16 bytes, whatever the length of the id.
    """

    def __init__(self, pages: Iterator[list[Revocation]]) -> None:
        self._pages = pages
        self._seen: set[bytes] = set()
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[list[Revocation]]:
        try:
            for page in self._pages:
                yield [revocation for revocation in page if self._is_new(revocation)]
        except Exception as exc:  # noqa: BLE001 - told by the command, after what was read
            self.failure = exc

    def _is_new(self, revocation: Revocation) -> bool:
        digest = blake2b(repr(revocation.target).encode(), digest_size=16).digest()
        known = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) > known


def _first(pages: Iterator[list[Revocation]]) -> list[Revocation]:
    """The first pages, more than :data:`SORTED`; or all, sorted."""
    first: list[Revocation] = []
    for page in pages:
        first += page
        if len(first) > SORTED:
            return first
    return sorted(first, key=lambda revocation: revocation.since, reverse=True)


# -- JSON ----------------------------------------------------------------------------------------


def _json(first: list[Revocation], pages: Iterable[list[Revocation]]) -> Iterator[str]:
    """A JSON array, one revocation a line. It stays open if the reading fails."""
    if not first:
        yield "[]"
        return
    opening = "["
    for page in chain([first], pages):
        if page:
            yield opening + "\n,".join(json.dumps(_document(revocation)) for revocation in page)
            opening = ","
    yield "]"


def _document(revocation: Revocation) -> dict[str, Any]:
    target, until = revocation.target, revocation.until
    stamp = target if isinstance(target, Stamp) else None
    return {
        "id": None if stamp else target,
        "header": stamp.header if stamp else None,
        "stamp": stamp.value if stamp else None,
        "since": rfc3339(revocation.since),
        "until": None if until is None else rfc3339(until),
        "way": revocation.way.value,
    }


# -- for people ----------------------------------------------------------------------------------

#: The target is last: an id can have any length.
_TITLES = ("since (UTC)", "until (UTC)", "way", "task or stamp")

#: Which columns are shown, from the widest table to the narrowest.
_LAYOUTS = ((0, 1, 2, 3), (0, 2, 3), (0, 3))


def _table(first: list[Revocation], pages: Iterable[list[Revocation]]) -> Iterator[str]:
    """The lines of a table that fits the terminal, as far as the first pages show."""
    if not first:
        yield "No revocation is on record in this result backend."
        return
    rows = [_TITLES, *map(_row, first)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # A pipe gets all columns.
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown, gap = _layout(widths, columns)
    for page in chain([rows], (map(_row, page) for page in pages)):
        if lines := [_line(row, shown, widths, gap) for row in page]:
            yield "\n".join(lines)
    if left_out := [title for place, title in enumerate(_TITLES) if place not in shown]:
        yield f"Not shown: {', '.join(left_out)}; --json has them."


def _layout(widths: Sequence[int], columns: int | None) -> tuple[Sequence[int], str]:
    """The columns to show, and what stands between them."""
    for shown in _LAYOUTS:
        for gap in ("  ", " "):
            wide = sum(widths[place] for place in shown) + len(gap) * (len(shown) - 1)
            if columns is None or wide <= columns:
                return shown, gap
    return _LAYOUTS[-1], " "


def _line(row: Sequence[str], shown: Sequence[int], widths: Sequence[int], gap: str) -> str:
    return gap.join(row[place].ljust(widths[place]) for place in shown).rstrip()


def _row(revocation: Revocation) -> tuple[str, str, str, str]:
    target, until = revocation.target, revocation.until
    text = _stamp(target) if isinstance(target, Stamp) else target
    return (
        to_the_minute(revocation.since),
        "for ever" if until is None else to_the_minute(until),
        revocation.way.value,
        # Whatever was given as an id must not steer the terminal.
        "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text),
    )


def _stamp(stamp: Stamp) -> str:
    value = stamp.value if isinstance(stamp.value, str) else json.dumps(stamp.value)
    return f"{stamp.header}={value}"
