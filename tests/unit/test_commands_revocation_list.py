"""What ``celery guard revocations`` prints of the pages that it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from worker_guard.commands import revocation_list
from worker_guard.revoked.record import Record, Revocation
from worker_guard.settings import Settings
from worker_guard.values.source import Stamp, Way


def revocation(target: str | Stamp, since: float = 0.0, until: float | None = None) -> Revocation:
    return Revocation(target=target, way=Way.REVOKE, since=since, until=until, age_s=0.0)


def printed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pages: list[list[Revocation]],
    *,
    as_json: bool,
) -> tuple[int, str, str]:
    """The exit code, stdout and stderr for these pages."""

    def record(_app: object, _settings: Settings) -> object:
        class Read(Record):
            def __init__(self) -> None: ...

            def pages(self) -> Iterator[list[Revocation]]:
                yield from pages

        return Read()

    from celery import Celery

    monkeypatch.setattr(revocation_list, "the_record", record)
    app = Celery("list", broker="memory://", set_as_current=False)
    code = revocation_list.run_revocations(app, as_json=as_json)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_is_read_twice_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one page or in another; a stamp is no id of the same look."""
    stamp = Stamp("a", "b")
    pages = [
        [revocation("x"), revocation("x"), revocation(stamp)],
        [],
        [revocation(repr(stamp)), revocation("y"), revocation(stamp)],
        [revocation("x")],
    ]
    code, out, err = printed(monkeypatch, capsys, pages, as_json=True)
    assert (code, err) == (0, "")
    found = [(entry["id"], entry["header"]) for entry in json.loads(out)]
    assert sorted(found, key=str) == sorted(
        [("x", None), (None, "a"), (repr(stamp), None), ("y", None)], key=str
    )


def test_few_are_sorted_and_many_come_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest first."""
    for total in (revocation_list.SORTED, revocation_list.SORTED + 1, 3 * revocation_list.SORTED):
        every = [revocation(str(i), float(i)) for i in range(total)]
        pages = [every[i : i + 300] for i in range(0, total, 300)]
        _, out, _ = printed(monkeypatch, capsys, pages, as_json=True)
        ids = [int(entry["id"]) for entry in json.loads(out)]
        few = total <= revocation_list.SORTED
        assert ids == sorted(range(total), reverse=few)
        assert out.count("\n") == total + 1


def test_a_time_that_no_calendar_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lifetime of a million years."""
    pages = [[revocation("a", 1e9, 3.2e13)]]
    _, out, _ = printed(monkeypatch, capsys, pages, as_json=False)
    assert out.splitlines()[1] == "2001-09-09 01:46  9999-12-31 23:59  revoke  a"
