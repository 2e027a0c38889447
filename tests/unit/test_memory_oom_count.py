"""Whether the kernel killed a child for memory, by its own count."""

from __future__ import annotations

import pytest

from worker_guard.memory.oom_count import KEPT_S, OomCount


@pytest.mark.parametrize(
    ("counts", "children", "expected"),
    [
        ([5, 5], 1, False),
        ([5, 6], 1, True),
        ([0, 3], 3, True),
        ([0, 3], 2, True),
        # Which of the three it was is not known.
        ([0, 2], 3, None),
        ([5], 1, False),
        ([5, None], 1, None),
        ([], 1, None),
        # Not readable in between: what it rose by meanwhile is not known, so nothing is claimed.
        ([5, None, 9], 1, False),
        # The cgroup is another one now.
        ([9, 2], 1, False),
        ([9, 2, 3], 1, True),
    ],
)
def test_what_the_counts_say(
    counts: list[int | None], children: int, expected: bool | None
) -> None:
    """Each count was read a second after the one before."""
    count = OomCount()
    for second, value in enumerate(counts):
        count.read(value, float(second))
    assert count.killed(children) is expected


def test_a_kill_explains_one_child_only() -> None:
    """The next one must have been counted, too."""
    count = OomCount()
    count.read(0, 0.0)
    count.read(2, 1.0)
    assert [count.killed(1) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(("later_s", "expected"), [(KEPT_S, True), (KEPT_S + 0.1, False)])
def test_a_kill_explains_a_child_that_is_found_dead_soon(later_s: float, expected: bool) -> None:
    """Later, that kill was one of another process: a child's helper."""
    count = OomCount()
    count.read(0, 0.0)
    count.read(1, 10.0)
    count.read(1, 10.0 + later_s)
    assert count.killed(1) is expected
