"""The keys that are typed on a terminal."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.harness.workers import wait_for
from worker_guard.commands.status import terminal
from worker_guard.commands.status.terminal import Keys


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A terminal: the end of who types, and that of the command."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(("typed", "quits"), [(b"q", True), (b"xQx", True), (b"x", False)])
def test_q_ends(ends: tuple[int, int], typed: bytes, quits: bool) -> None:
    """In either case, and among others; no other key does."""
    master, slave = ends
    with Keys(slave) as keys:
        os.write(master, typed)
        assert keys.quit_within(60.0 if quits else 0.0) is quits


def test_without_a_key_it_goes_on(ends: tuple[int, int]) -> None:
    """After the time that it was given."""
    with Keys(ends[1]) as keys:
        assert not keys.quit_within(0.0)


def test_a_key_that_was_thrown_away_is_not_waited_for(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does with a key, between the look whether there is one and the read."""
    master, slave = ends
    there_was_one = SimpleNamespace(select=lambda *_: ([slave], [], []))
    monkeypatch.setattr(terminal, "select", there_was_one)
    answers: list[bool] = []
    with Keys(slave) as keys:
        reading = threading.Thread(target=lambda: answers.append(keys.quit_within(0.0)))
        reading.start()
        try:
            wait_for(lambda: not reading.is_alive(), "the read to end", 10)
        finally:
            os.write(master, b"x")  # for a read that would wait
            reading.join()
    assert answers == [False]


def test_the_terminal_is_left_as_it_was(ends: tuple[int, int]) -> None:
    """All of its modes."""
    before = termios.tcgetattr(ends[1])
    with Keys(ends[1]):
        assert termios.tcgetattr(ends[1]) != before
    assert termios.tcgetattr(ends[1]) == before


def test_where_stdin_is_no_terminal_there_are_no_keys() -> None:
    """A pipe can hold a q that is meant for somebody else."""
    reader, writer = os.pipe()
    os.write(writer, b"q")
    with Keys(reader) as keys:
        assert not keys.quit_within(0.0)
    assert os.read(reader, 1) == b"q"
    os.close(reader)
    os.close(writer)
