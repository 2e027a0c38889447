"""The rows as text: at each width whole, in few lines where there are many, in ASCII if need be."""

from __future__ import annotations

import io
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from rich.console import Console

from tests.harness.answers import BUSY, MB, answer, child, fleet_of
from tests.screens import draw
from worker_guard.commands.status.screen import FULL_CHILDREN, FULL_WORKERS, written
from worker_guard.commands.status.view import Fleet
from worker_guard.events import BackfillCauses

LONG = "celery@worker-of-the-mail-department-eu-west-1-7d9f8b6c5-x2k4j.internal.example.com"
UUID = BUSY["task"]["task_id"]


def squeezed(text: str) -> str:
    """The text without blanks and line ends, as folding leaves it."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 140, 200])
def test_nothing_is_cut_at_any_width(columns: int) -> None:
    """Names are folded, numbers stay whole, and no line is wider than the terminal."""
    replies: dict[str, Any] = {LONG: answer(BUSY, child(4712, 10)), "b": {"error": LONG}}
    text = draw.status(fleet_of(**replies), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    for name in (LONG, "mail.tasks.newsletter.send_all", "50000", "12s", "for1min15s"):
        assert name in squeezed(text), name
    for whole in (UUID, "130 MB USS", "130 %", "4711", "64 MB RSS", "no limit"):
        assert whole in text or columns < 80, whole


def test_at_80_columns_an_id_can_be_copied() -> None:
    """It stands on one line, with its child's process."""
    lines = draw.status(fleet_of(w=answer(BUSY)), 80).splitlines()
    assert any(UUID in line for line in lines)


def test_a_child_and_its_task_stand_on_one_line_where_there_is_room() -> None:
    """On 140 columns."""
    short = {**BUSY, "task": {**BUSY["task"], "task_name": "mail.send_all"}}
    text = draw.status(fleet_of(w=answer(short)), 140)
    (line,) = [row for row in text.splitlines() if "child 4711" in row and "USS" in row]
    assert re.split(r"\s{2,}", line.strip()) == [
        "child 4711",
        "130 MB USS",
        "━" * 12,
        "130 %",
        "1 min 30 s",
        "2",
        f"mail.send_all {UUID} for 1 min 15 s",
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
    text = draw.status(fleet_of(w=answer(one)), 140)
    (line,) = [row for row in text.splitlines() if "child 4711" in row and "USS" in row]
    assert re.search(r"(\d+ %)", line)[1] == percent  # type: ignore[index]
    assert abs(len(re.findall("[━╸]", line)) - bar) <= 1


def test_a_child_that_was_not_read_yet() -> None:
    """It has no figure, and no bar."""
    unread = child(4711, 0, used_bytes=None, rss_bytes=None, metric=None)
    (line,) = [x for x in draw.status(fleet_of(w=answer(unread)), 140).splitlines() if "4711" in x]
    assert re.split(r"\s{2,}", line.strip()) == ["child 4711", "unread", "1 min 30 s", "2", "-"]


def test_a_worker_whose_memory_was_not_read_yet_uses_no_zero_bytes() -> None:
    """Nobody knows how much it uses."""
    unread = child(4711, 0, used_bytes=None)
    told = answer(unread, limit_mb=None)
    told["memory"]["parent"]["used_bytes"] = None
    row = draw.status(fleet_of(w=told), 140).splitlines()[1]
    assert re.split(r"\s{2,}", row)[3:] == ["-", "12 s", "ok"]


def test_of_many_children_the_biggest_are_shown_and_the_rest_summed_up() -> None:
    """With ``--all`` each has its line."""
    children = [child(1000 + n, n) for n in range(100)]
    some = draw.status(fleet_of(w=answer(*children)), 80)
    assert len(re.findall(r"child 1\d\d\d", some)) == FULL_CHILDREN
    assert "child 1099" in some
    assert "and 92 more children: 91 MB at most, 0 busy" in some
    every = draw.status(fleet_of(w=answer(*children)), 80, everything=True)
    assert len(re.findall(r"child 1\d\d\d", every)) == 100


def test_of_many_workers_those_in_trouble_are_shown_in_full() -> None:
    """All are in the table; with ``--all`` all are shown in full."""
    replies: dict[str, Any] = {f"w{n:02}": answer(child(n + 1, 1)) for n in range(64)}
    replies["w63"] = answer(consecutive_failures={"results": 2})
    text = draw.status(fleet_of(**replies), 80)
    assert [n for n in range(64) if f"\nw{n:02} " not in text] == []
    assert text.count("guard 1.2.3") == 1
    assert "results failed 2 times in a row" in text
    lines = text.splitlines()
    assert lines[1].startswith("w63 ")
    assert lines[-2] == "63 healthy workers are not shown in full; --all shows them"
    assert lines[-1] == "trouble: 1 of 64 workers: w63 (part fails)"
    assert draw.status(fleet_of(**replies), 80, everything=True).count("guard 1.2.3") == 64
    few = {name: replies[name] for name in list(replies)[:FULL_WORKERS]}
    assert draw.status(fleet_of(**few), 80).count("guard 1.2.3") == FULL_WORKERS


def test_what_a_worker_says_cannot_move_the_cursor() -> None:
    """Control characters, escape sequences and markup are text like any other."""
    evil = "\x1b[2J\x1b]0;x\x07\r\n[bold]w[/bold] :smile:"
    replies: dict[str, Any] = {evil: answer(parts={"results": evil}), "b": {"error": evil}}
    text = draw.status(fleet_of(**replies), 140)
    assert not set(text) & {"\x1b", "\x07", "\r"}
    assert text.count(r"\x1b[2J\x1b]0;x\x07\r\n[bold]w[/bold] :smile:") >= 3


def test_when_a_process_is_full_has_a_column_only_if_one_grows() -> None:
    """A child in 2 h 10 min; the main process has no number."""
    assert " full " not in draw.status(fleet_of(w=answer(child(1, 50))), 80)
    lines = draw.status(fleet_of(w=answer(child(1, 50, limit_in_s=7800.0))), 80).splitlines()
    (head,) = [line for line in lines if line.strip().startswith("process")]
    assert re.split(r"\s{2,}", head.strip()) == [
        *("process", "memory", "of limit", "full", "age", "recycled")
    ]
    (row,) = [line for line in lines if "child 1 " in line]
    assert row.split("50 %")[1].split() == ["in", "2", "h", "10", "min", "1", "min", "30", "s", "2"]
    (main,) = [line for line in lines if "main 7 " in line]
    assert not re.search(r"\bin \d", main)


def test_what_a_child_started_stands_below_it() -> None:
    """By pid, command and memory, and how many more there are; a name is no markup."""
    own = [
        {"pid": 21, "command": "chromium", "used_bytes": 40 * MB, "metric": "pss"},
        {"pid": 22, "command": "[b]x\x1b[2J", "used_bytes": 10 * MB, "metric": "pss"},
    ]
    first = child(1, 50, processes=6, own_processes=own)
    text = draw.status(fleet_of(w=answer(first, child(2, 20, processes=3))), 100)
    rows = [line.strip() for line in text.splitlines()]
    start = next(n for n, row in enumerate(rows) if row.startswith("child 1 "))
    assert [re.split(r"\s{2,}", row) for row in rows[start + 1 : start + 4]] == [
        ["21 chromium", "40 MB PSS"],
        [r"22 [b]x\x1b[2J", "10 MB PSS"],
        ["and 3 more"],
    ]
    assert rows[start + 4].startswith("child 2 ")
    # An older guard says how many there are, and not which.
    assert rows[start + 5] == "and 2 of its own"


def test_without_unicode_all_is_ascii() -> None:
    """Bars too; a name that is not is written as an escape."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    console = Console(file=file, width=80, color_system=None)
    text = written(console, fleet_of(w=answer(BUSY, child(1, 50))))
    assert text.isascii()
    assert "------------  130 %" in text
    assert "------        " in text
    file.write(written(console, fleet_of(wörker=answer())))
    file.flush()
    assert b"w\\xf6rker" in raw.getvalue()


def test_colours_say_what_is_the_matter() -> None:
    """Over the limit is red; without colour there is no escape sequence at all."""
    console = Console(file=io.StringIO(), width=140, color_system="standard", force_terminal=True)
    assert re.search(r"\x1b\[31m━+", written(console, fleet_of(w=answer(BUSY))))
    assert "\x1b" not in draw.status(fleet_of(w=answer(BUSY)), 140)


BACKFILL = {
    "age_s": 40.0,
    "expired_tasks": 56,
    "tasks": {"mail.ping": 16, "mail.newsletter": 40},
    "waited_s_p50": 7200.0,
    "waited_s_max": 18_000.0,
    "causes": {"waited_in_queue": 56, "held_until_eta": 0, "born_expired": 0},
}
ON_THEIR_WAY = {"total": 58, "operator": 2, "expired": 56, "clearing": 56, "next_clear_s": 24.4}


def facts(**more: Any) -> list[str]:
    """What is told of a worker that has nothing else to tell."""
    told = {**answer(child(1, 10), last_cleanup=None), "revoked": {}, **more}
    text = draw.status(fleet_of(w=told), 200)
    lines = text.split("\nw  prefork, ")[1].split("\n  limits ")[0].splitlines()[1:]
    return [re.sub(r" {2,}", " ", line.strip()) for line in lines]


def test_an_outage_is_told_from_its_begin_to_its_end() -> None:
    """What happened and why, what will be done and when, and that there is nothing to do."""
    text = draw.status(fleet_of(w=answer(revoked=ON_THEIR_WAY, last_backfill=BACKFILL)), 200)
    assert text.splitlines()[-1] == ("ok: 1 worker; 56 ids will be cleared in 24 s; nothing to do")
    assert facts(revoked=ON_THEIR_WAY, last_backfill=BACKFILL) == [
        "expired 56 tasks, 40 s ago: mail.newsletter 40, mail.ping 16",
        (
            "because no child was free in time; they waited (half of them 2 h or more, "
            "5 h at most) in the queue, or in a worker that had prefetched them"
        ),
        "revoked 56 ids will be cleared in 24 s; 2 ids that an operator revoked stay",
    ]
    done = {"age_s": 12.0, "revoked_tasks_cleared": 56}
    cleared = facts(
        revoked={"total": 2, "operator": 2, "clearing": 0},
        last_backfill=BACKFILL,
        last_clearing=done,
        totals={"revoked_tasks_cleared": 60},
    )
    assert cleared[2:] == [
        "revoked 2 ids that an operator revoked stay",
        "cleared 56 ids, 12 s ago; 60 since the start",
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, []),
        ({"totals": dict.fromkeys(("revoked_tasks_cleared", "children_recycled"), 0)}, []),
        ({"totals": {"children_recycled": 1}}, ["replaced 1 child since the start"]),
        ({"totals": {"children_killed": 2}}, ["killed 2 children since the start"]),
        (
            {"revoked": {"expired": 3}},
            ["expired 3 tasks, before they could run", "revoked 3 ids expired"],
        ),
        (
            {"revoked": {"unproven": 1}},
            ["revoked 1 unconfirmed id stays: an operator may have revoked it"],
        ),
        (
            {"revoked": {"operator": 1, "stamps": 1}},
            ["revoked 1 id that an operator revoked stays; 1 stamped header revoked"],
        ),
        ({"last_backfill": {**BACKFILL, "age_s": 90_000}}, []),
        ({"broker": {"looked_s": None}}, []),
        ({"broker": {"looked_s": 60, "replies_deleted": 0, "replies_unread": 0}}, []),
        (
            {"broker": {"looked_s": 60, "replies_deleted": 1, "replies_unread": 0}},
            ["broker 1 orphaned reply deleted, 1 min ago"],
        ),
        (
            {
                "dry_run": True,
                "broker": {"looked_s": 60, "replies_deleted": 2, "replies_unread": 3},
            },
            ["broker 2 orphaned replies would be deleted, 3 not read so far, 1 min ago"],
        ),
        (
            {"last_results_cleanup": {"age_s": 60, "expired_results_deleted": 0}},
            ["results nothing was old enough, 1 min ago"],
        ),
        (
            {"last_results_cleanup": {"age_s": 60, "expired_results_deleted": 1}},
            ["results 1 old result deleted, 1 min ago"],
        ),
    ],
    ids=str,
)
def test_no_line_says_that_nothing_happened(more: dict[str, Any], expected: list[str]) -> None:
    """And one is one."""
    assert facts(**more) == expected


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        ("waited_in_queue", "no child was free in time"),
        ("held_until_eta", "countdown"),
        ("born_expired", "fix the sender"),
        ("clock_differs", "clock"),
    ],
)
def test_each_cause_is_said_in_words(cause: str, word: str) -> None:
    """Alone, and among others with its number."""
    causes = {field.name: 50 for field in fields(BackfillCauses)}
    assert cause in causes
    alone = facts(last_backfill={**BACKFILL, "causes": {cause: 56}})
    assert word in alone[1]
    among_others = facts(last_backfill={**BACKFILL, "causes": {**causes, cause: 6}})
    assert len(among_others) == 1 + len(causes)
    (line,) = [line for line in among_others if line.startswith("because 6: ")]
    assert word in line


def test_what_is_old_is_grey() -> None:
    """A worker that fell silent has its figures' age, in its row and in full."""
    (silent,) = fleet_of(w=answer(BUSY)).workers
    found = Fleet(workers=(replace(silent, old_s=90.0),))
    assert "as it was 1 min 30 s ago" in draw.status(found, 140)
    console = Console(file=io.StringIO(), width=140, color_system="standard", force_terminal=True)
    assert re.search(r"\x1b\[2mw ", written(console, found))


def test_a_worker_that_is_gone_is_told_apart() -> None:
    """It comes last, and is no trouble."""
    (gone, there) = fleet_of(a=answer(), b=answer()).workers
    found = Fleet(workers=(replace(gone, old_s=12.0, is_gone=True), there))
    lines = draw.status(found, 140).splitlines()
    assert lines[1].startswith("b ")
    assert lines[2].startswith("a ")
    assert lines[2].endswith("shut down 12 s ago")
    assert lines[-1] == "ok: 1 worker, 1 shut down; nothing to do"
