"""The handler of SIGALRM: real signals, and a loop that only says where it is."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from tests.harness.context import make_context
from worker_guard import celery_internals
from worker_guard.events import Event
from worker_guard.settings import Settings
from worker_guard.stall.blocked import BlockedRead
from worker_guard.stall.part import StallPart
from worker_guard.stall.unblock import ALARM_S, Unblocker


class Loop:
    """What the handler sees and does, by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.connection: int | None = None
        self.error: Exception | None = None
        self.freed = 0
        self.displaced = 0
        self.events: list[Event] = []
        self.unblocker = Unblocker(
            BlockedRead(30.0),
            sample=self._sample,
            free=self._free,
            report=self.events.append,
            displaced=self._displaced,
            monotonic=lambda: self.now,
        )

    def _sample(self, _frame: FrameType | None) -> tuple[int | None, float]:
        if self.error is not None:
            raise self.error
        return self.connection, 1000.0

    def _free(self, _frame: FrameType | None) -> None:
        self.freed += 1

    def _displaced(self) -> None:
        self.displaced += 1

    def alarms(self, times: int) -> None:
        """So many alarms, two seconds apart."""
        for _ in range(times):
            signal.raise_signal(signal.SIGALRM)
            self.now += ALARM_S

    def turn(self) -> None:
        """The loop turns."""
        list(self.unblocker.run())


@pytest.fixture
def loop() -> Iterator[Loop]:
    """With the handler in place; after it, all is as before."""
    before = signal.getsignal(signal.SIGALRM)
    made = Loop()
    made.unblocker.start()
    yield made
    made.unblocker.stop()
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


def test_a_loop_that_hangs_is_freed_once_and_said_to_be_when_it_turns(loop: Loop) -> None:
    """Not in the handler: logging there could wait for a lock that the loop holds."""
    loop.connection = 7
    loop.alarms(15)
    assert loop.freed == 0
    loop.alarms(1)
    assert (loop.freed, loop.events) == (1, [])
    loop.turn()
    assert [(e.name, e.action) for e in loop.events] == [  # type: ignore[attr-defined]
        ("worker_guard.stalled", "unblock"),
        ("worker_guard.stall_ended", "unblock"),
    ]
    loop.turn()
    assert len(loop.events) == 2


def test_one_that_turns_is_left_alone(loop: Loop) -> None:
    """However often it is found in that read."""
    loop.connection = 7
    for _ in range(10):
        loop.alarms(10)
        loop.turn()
    assert loop.freed == 0


def test_an_error_in_the_handler_goes_nowhere(loop: Loop) -> None:
    """It would come up in whatever code the signal interrupted."""
    loop.error = OSError("closed meanwhile")
    loop.alarms(20)
    assert loop.freed == 0


def test_a_handler_of_the_application_is_left_in_place(loop: Loop) -> None:
    """With its timer; the guard's own timer ends."""
    heard: list[int] = []
    signal.signal(signal.SIGALRM, lambda signum, _frame: heard.append(signum))
    loop.turn()
    assert loop.displaced == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    signal.setitimer(signal.ITIMER_REAL, 50.0)
    loop.turn()
    loop.unblocker.stop()
    assert loop.displaced == 1
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    signal.raise_signal(signal.SIGALRM)
    assert heard == [signal.SIGALRM]


def test_the_timer_is_set_again_if_the_application_has_used_it(loop: Loop) -> None:
    """And has put the guard's handler back."""
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    loop.turn()
    assert signal.getitimer(signal.ITIMER_REAL)[1] == ALARM_S


def test_stop_puts_the_handler_of_before_back() -> None:
    """And ends the timer."""
    before = signal.getsignal(signal.SIGALRM)
    made = Loop()
    made.unblocker.start()
    made.unblocker.stop()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("initialized", [True, False])
def test_in_a_child_the_signal_does_what_it_did_before(loop: Loop, initialized: bool) -> None:
    """A task may use alarms; the default ends the process."""
    pid = os.fork()
    if not pid:
        if initialized:
            loop.unblocker.leave_child()
        os.kill(os.getpid(), signal.SIGALRM)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGALRM


# -- where it is off -----------------------------------------------------------------------


def state_of(pool: str = "prefork", *, green: bool = False, **settings: Any) -> str:
    """Why the part does not unblock there, or "on"."""
    from celery.concurrency import get_implementation

    worker = SimpleNamespace(
        pool_cls=get_implementation(pool), pool=SimpleNamespace(is_green=green), consumer=None
    )
    settings = {"stall_after": None, "unblock_after": 60.0, **settings}
    return StallPart(make_context(worker, Settings(**settings))).states["unblock"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "on"),
        ({"pool": "threads"}, "on"),
        ({"pool": "solo"}, "not with the solo pool"),
        ({"pool": "prefork", "green": True}, "a signal does not interrupt its reads"),
        ({"dry_run": True}, "a dry run"),
        ({"unblock_after": None}, "worker_guard_unblock_after is None"),
    ],
)
def test_where_it_is_off_it_says_why(given: dict[str, Any], said: str) -> None:
    """In the start event."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux says how long a connection has been silent")
    assert said in state_of(**given)


def test_it_is_off_where_the_application_has_a_handler() -> None:
    """Before the start already."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        assert state_of() == "the application has a handler of SIGALRM"
    finally:
        signal.signal(signal.SIGALRM, before)


# -- what the handler sees -----------------------------------------------------------------


class Reader:
    """Reads as redis-py does."""

    def __init__(self, connection: socket.socket) -> None:
        self._sock = connection

    def read(self) -> Any:
        """Where the loop hangs: the frame of this call."""
        return celery_internals.sample_read(sys._getframe())


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """An end of a TCP connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as end,
        listener.accept()[0],
    ):
        yield end


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has TCP_INFO")
def test_it_sees_a_read_without_a_time_limit(connection: socket.socket) -> None:
    """And for how long nothing has come; another read it does not see."""
    number, silent_s = Reader(connection).read()
    assert number == connection.fileno()
    assert 0 <= silent_s < 60
    connection.settimeout(5.0)
    assert Reader(connection).read() == (None, 0.0)
    assert celery_internals.sample_read(None) == (None, 0.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Reader(ours).read() == (None, 0.0)
