"""``celery guard watch``: what fits on one screen, and what is known meanwhile."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.text import Text

from tests.harness.answers import BUSY, answer, child, fleet_of
from tests.screens import draw
from worker_guard.commands.status.live import Dashboard
from worker_guard.commands.status.view import Fleet


def dashboard(found: Fleet, columns: int, rows: int, *, away: bool = True) -> list[str]:
    """The lines of ``celery guard watch`` on a terminal of this size."""
    trouble = Text("TROUBLE") if away else None
    board = Dashboard(fleet=found, head=Text("HEAD"), trouble=trouble)
    return draw.drawn(board, columns, rows).splitlines()


@pytest.mark.parametrize("columns", [40, 80, 140])
@pytest.mark.parametrize("rows", [8, 15, 24, 60])
@pytest.mark.parametrize("workers", [1, 5, 64])
def test_the_dashboard_fits_its_screen(columns: int, rows: int, workers: int) -> None:
    """And counts what it leaves out, those in trouble last of all."""
    replies: dict[str, Any] = {f"w{n:02}": answer(BUSY) for n in range(workers)}
    replies["ill"] = {"error": "no Redis"}
    lines = dashboard(fleet_of(**replies), columns, rows)
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    assert lines[:2] == ["HEAD", "TROUBLE"]
    listed = sum(bool(re.match(r"(w\d\d|ill) ", line)) for line in lines)
    left_out = re.search(r"and (\d+) more workers?, (\d+) of them in tr", "\n".join(lines))
    in_full = sum("guard 1.2.3" in line for line in lines)
    rest_in_full = re.search(r"(\d+) more in full", "\n".join(lines))
    if left_out:
        assert int(left_out[1]) <= workers + 1
    elif columns > 40:
        assert listed >= workers + 1
        rest = int(rest_in_full[1]) if rest_in_full else 0
        more = re.search(r"(\d+) more in trouble: ", "\n".join(lines))
        assert more or in_full + rest >= workers
        told = sum("its limit is" in line or "no Redis" in line for line in lines)
        assert told + (int(more[1]) if more else 0) == workers + 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_dashboard_on_hardly_any_screen(rows: int) -> None:
    """The verdict, then the count of what is left out, before anything else."""
    lines = dashboard(fleet_of(a=answer(BUSY), b={"error": "no Redis"}), 80, rows)
    assert len(lines) <= rows
    assert lines[-1] == "unknown: no worker answers, and the figures are old"
    assert rows == 1 or lines[-2] == "and 2 more workers, 2 of them in trouble"
    assert lines[:-2] == ["HEAD", "TROUBLE", ""][: max(0, rows - 2)]


def test_what_is_the_matter_is_said_where_there_is_no_room_for_all() -> None:
    """Six workers on 80 columns and 24 lines: those in trouble can be read, and what to do."""
    failing = answer(child(1, 10), consecutive_failures={"results": 2})
    replies = {f"w{n}": answer(child(n + 10, 10)) for n in range(3)}
    replies |= {"ill-1": answer(BUSY), "ill-2": {"error": "no Redis"}, "ill-3": failing}
    lines = dashboard(fleet_of(**replies), 80, 24, away=False)
    text = "\n".join(lines)
    assert len(lines) <= 24
    assert [line.split()[0] for line in lines[3:9]] == [
        "ill-1",
        "ill-2",
        "ill-3",
        "w0",
        "w1",
        "w2",
    ]
    for told in (
        "child 4711 uses 130 MB, its limit is 100 MB",
        "nothing; it is replaced soon",
        "no Redis",
        "results failed 2 times in a row",
    ):
        assert told in text, text
    verdict = "trouble: 3 of 6 workers: ill-1 (over limit), ill-2 (no guard)"
    assert verdict in "\n".join(lines[-2:])
