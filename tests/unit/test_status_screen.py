"""The rows as text: at each width whole, in few lines where there are many, in ASCII if need be."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tests.screens import draw
from worker_guard.status.live import Dashboard
from worker_guard.status.screen import FULL_CHILDREN, FULL_WORKERS, _total, written
from worker_guard.status.view import Answers, Fleet, read_fleet

MB = 1_000_000
LONG = "celery@worker-of-the-mail-department-eu-west-1-7d9f8b6c5-x2k4j.internal.example.com"
UUID = "470328a3-ea97-495a-8b8a-580cf873c5a7"


def child(pid: int, used_mb: int, **more: Any) -> dict[str, Any]:
    """A child as a worker describes it."""
    return {
        "pid": pid,
        "rss_bytes": used_mb * MB,
        "used_bytes": used_mb * MB,
        "metric": "uss",
        "age_s": 90.0,
        "recycles": 2,
        "leaving": False,
        "task": None,
        **more,
    }


def answer(*children: dict[str, Any], limit_mb: int | None = 100, **more: Any) -> dict[str, Any]:
    """What a guard answers."""
    return {
        "version": "1.2.3",
        "pool": "prefork",
        "concurrency": max(1, len(children)),
        "uptime_s": 7260.0,
        "active_tasks": 0,
        "revoked": dict.fromkeys(("operator", "expired", "proven", "unproven"), 49_999)
        | {"total": 50_000, "stamps": 0},
        "memory": {
            "metric": "uss",
            "child_limit_bytes": None if limit_mb is None else limit_mb * MB,
            "parent_limit_bytes": None,
            "parent": {"pid": 7, "rss_bytes": MB, "used_bytes": 64 * MB, "metric": "rss"},
            "children": list(children),
            "suspended": None,
        },
        "last_cleanup": {
            "age_s": 12.0,
            "trigger": "timer",
            "revoked_tasks_cleared": 3,
            "expired_results_deleted": 0,
            "task_states_cleaned": 0,
        },
        **more,
    }


def fleet(**replies: Any) -> Fleet:
    """Workers that answer so."""
    return read_fleet(Answers(present=list(replies), replies=list(replies.items())))


def squeezed(text: str) -> str:
    """The text without blanks and line ends, as folding leaves it."""
    return re.sub(r"\s", "", text)


BUSY = child(
    4711,
    130,
    task={"task_id": UUID, "task_name": "mail.tasks.newsletter.send_all", "running_s": 75.0},
)


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 140, 200])
def test_nothing_is_cut_at_any_width(columns: int) -> None:
    """Names are folded, numbers stay whole, and no line is wider than the terminal."""
    replies: dict[str, Any] = {LONG: answer(BUSY, child(4712, 10)), "b": {"error": LONG}}
    text = draw.status(fleet(**replies), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    for name in (LONG, "mail.tasks.newsletter.send_all", "49999", "12s", "for1min"):
        assert name in squeezed(text), name
    for whole in (UUID, "130.0 MB USS", "130 %", "4711", "64.0 MB RSS", "no limit"):
        assert whole in text or columns < 80, whole


def test_at_80_columns_an_id_can_be_copied() -> None:
    """It stands on one line, with its child's process."""
    lines = draw.status(fleet(w=answer(BUSY)), 80).splitlines()
    assert any(UUID in line for line in lines)


def test_a_child_and_its_task_stand_on_one_line_where_there_is_room() -> None:
    """On 140 columns."""
    short = {**BUSY, "task": {**BUSY["task"], "task_name": "mail.send_all"}}
    text = draw.status(fleet(w=answer(short)), 140)
    (line,) = [row for row in text.splitlines() if "4711" in row]
    assert re.split(r"\s{2,}", line.strip()) == [
        "child 4711",
        "130.0 MB USS",
        "━" * 12,
        "130 %",
        "1 min",
        "2",
        f"mail.send_all {UUID} for 1 min",
    ]


@pytest.mark.parametrize(
    ("used_mb", "percent", "bar"),
    [
        (0, "0 %", 0),
        (50, "50 %", 6),
        (99.99, "99 %", 12),
        (100, "100 %", 12),
        (100.01, "101 %", 12),
    ],
)
def test_the_bar_is_the_share(used_mb: float, percent: str, bar: int) -> None:
    """Only what is over its limit is shown to be over 100 %."""
    one = child(4711, 0, used_bytes=int(used_mb * MB))
    text = draw.status(fleet(w=answer(one)), 140)
    (line,) = [row for row in text.splitlines() if "4711" in row]
    assert re.search(r"(\d+ %)", line)[1] == percent  # type: ignore[index]
    assert abs(len(re.findall("[━╸]", line)) - bar) <= 1


def test_a_child_that_was_not_read_yet() -> None:
    """It has no figure, and no bar."""
    unread = child(4711, 0, used_bytes=None, rss_bytes=None, metric=None)
    (line,) = [x for x in draw.status(fleet(w=answer(unread)), 140).splitlines() if "4711" in x]
    assert re.split(r"\s{2,}", line.strip()) == ["child 4711", "unread", "1 min", "2", "-"]


def test_of_many_children_the_biggest_are_shown_and_the_rest_summed_up() -> None:
    """With ``--all`` each has its line."""
    children = [child(1000 + n, n) for n in range(100)]
    some = draw.status(fleet(w=answer(*children)), 80)
    assert len(re.findall(r"child 1\d\d\d", some)) == FULL_CHILDREN
    assert "child 1099" in some
    assert "and 92 more children: 91.0 MB at most, 0 of them busy" in some
    every = draw.status(fleet(w=answer(*children)), 80, everything=True)
    assert len(re.findall(r"child 1\d\d\d", every)) == 100


def test_of_many_workers_those_in_trouble_are_shown_in_full() -> None:
    """All are in the table; with ``--all`` all are shown in full."""
    replies: dict[str, Any] = {f"w{n:02}": answer(child(n + 1, 1)) for n in range(64)}
    replies["w63"] = answer(consecutive_failures={"results": 2})
    text = draw.status(fleet(**replies), 80)
    assert [n for n in range(64) if f"\nw{n:02} " not in text] == []
    assert text.count("guard 1.2.3") == 1
    assert "results failed 2 times in a row" in text
    assert "63 workers are well and not shown in full; --all shows them" in text
    assert draw.status(fleet(**replies), 80, everything=True).count("guard 1.2.3") == 64
    few = {name: replies[name] for name in list(replies)[:FULL_WORKERS]}
    assert draw.status(fleet(**few), 80).count("guard 1.2.3") == FULL_WORKERS


def test_what_a_worker_says_cannot_move_the_cursor() -> None:
    """Control characters, escape sequences and markup are text like any other."""
    evil = "\x1b[2J\x1b]0;x\x07\r\n[bold]w[/bold] :smile:"
    replies: dict[str, Any] = {evil: answer(parts={"results": evil}), "b": {"error": evil}}
    text = draw.status(fleet(**replies), 140)
    assert not set(text) & {"\x1b", "\x07", "\r"}
    assert text.count(r"\x1b[2J\x1b]0;x\x07\r\n[bold]w[/bold] :smile:") >= 3


def test_without_unicode_all_is_ascii() -> None:
    """Bars too; a name that is not is written as an escape."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    console = Console(file=file, width=80, color_system=None)
    text = written(console, fleet(w=answer(BUSY, child(1, 50))))
    assert text.isascii()
    assert "------------  130 %" in text
    assert "------        " in text
    file.write(written(console, fleet(wörker=answer())))
    file.flush()
    assert b"w\\xf6rker" in raw.getvalue()


def test_colours_say_what_is_the_matter() -> None:
    """Over the limit is red; without colour there is no escape sequence at all."""
    console = Console(file=io.StringIO(), width=140, color_system="standard", force_terminal=True)
    assert re.search(r"\x1b\[31m━+", written(console, fleet(w=answer(BUSY))))
    assert "\x1b" not in draw.status(fleet(w=answer(BUSY)), 140)


# -- watch ---------------------------------------------------------------------------------


def dashboard(found: Fleet, columns: int, rows: int) -> list[str]:
    """The lines of ``celery guard watch`` on a terminal of this size."""
    board = Dashboard(fleet=found, head=Text("HEAD"), trouble=Text("TROUBLE"))
    return draw.drawn(board, columns, rows).splitlines()


@pytest.mark.parametrize("columns", [40, 80, 140])
@pytest.mark.parametrize("rows", [8, 15, 24, 60])
@pytest.mark.parametrize("workers", [1, 5, 64])
def test_the_dashboard_fits_its_screen(columns: int, rows: int, workers: int) -> None:
    """And counts what it leaves out, those in trouble last of all."""
    replies: dict[str, Any] = {f"w{n:02}": answer(BUSY) for n in range(workers)}
    replies["ill"] = {"error": "no Redis"}
    lines = dashboard(fleet(**replies), columns, rows)
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    assert lines[:2] == ["HEAD", "TROUBLE"]
    listed = sum(bool(re.match(r"(w\d\d|ill) ", line)) for line in lines)
    left_out = re.search(r"and (\d+) more workers, (\d) of them in trouble", "\n".join(lines))
    in_full = sum("guard 1.2.3" in line for line in lines)
    rest_in_full = re.search(r"(\d+) more in full", "\n".join(lines))
    if left_out:
        assert int(left_out[1]) <= workers + 1
        assert left_out[2] == "0" or columns == 40
    elif columns > 40:
        assert listed >= workers + 1
        rest = int(rest_in_full[1]) if rest_in_full else 0
        assert in_full + rest >= workers


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_dashboard_on_hardly_any_screen(rows: int) -> None:
    """It counts what it leaves out in the last line, before anything else."""
    lines = dashboard(fleet(a=answer(BUSY), b={"error": "no Redis"}), 80, rows)
    assert len(lines) <= rows
    assert lines[-1] == "and 2 more workers, 1 of them in trouble"
    assert lines[:-1] == ["HEAD", "TROUBLE", ""][: rows - 1]


def test_what_is_the_matter_is_said_where_there_is_no_room_for_all() -> None:
    """A worker that does not fit in full still says why it is in trouble."""
    alert = {"alert": "revoked_tasks", "value": 23, "threshold": 10, "since_s": 300}
    replies = {f"w{n}": answer(BUSY) for n in range(9)} | {"ill": answer(BUSY, alerts=[alert])}
    lines = dashboard(fleet(**replies), 80, 24)
    assert any("revoked_tasks is 23, the threshold is 10" in line for line in lines)
    assert "10 more in full" in lines[-1]


def test_one_sweep_is_one() -> None:
    """A total of one is spelt as one."""
    assert [_total("sweeps", n) for n in (0, 1, 2)] == ["0 sweeps", "1 sweep", "2 sweeps"]
