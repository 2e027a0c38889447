"""Since when the main loop hangs in one read: samples in, seconds out."""

from __future__ import annotations

from worker_guard.stall.blocked import BlockedRead


def test_it_hangs_if_each_sample_finds_the_same_silent_read() -> None:
    """From the first sample that found it on."""
    blocked = BlockedRead(30.0)
    found = [blocked.sample(7, 100.0 + 2 * n, 2.0 * n) for n in range(16)]
    assert found == [None] * 15 + [30.0]


def test_a_byte_begins_the_count_anew() -> None:
    """The loop reads and reads, always at this place, and each read is answered."""
    blocked = BlockedRead(30.0)
    assert all(blocked.sample(7, 1.0, 2.0 * n) is None for n in range(100))


def test_so_does_another_connection_and_no_read_at_all() -> None:
    """It got on in between."""
    blocked = BlockedRead(10.0)
    for n in range(100):
        connection = {0: 7, 1: 8, 2: None}[n // 3 % 3]
        assert blocked.sample(connection, 1000.0, 2.0 * n) is None


def test_so_does_a_loop_that_turns() -> None:
    """An idle read with a wait of its own, between whose attempts the timers run."""
    blocked = BlockedRead(10.0)
    for n in range(100):
        assert blocked.sample(7, 1000.0, 2.0 * n) is None
        if n % 3 == 0:
            blocked.beat()


def test_the_kernels_count_may_lag_a_little() -> None:
    """The first byte of silence and the first sample are two moments."""
    blocked = BlockedRead(4.0)
    assert blocked.sample(7, 0.0, 10.0) is None
    assert blocked.sample(7, 1.8, 12.0) is None
    assert blocked.sample(7, 3.8, 14.0) == 4.0
