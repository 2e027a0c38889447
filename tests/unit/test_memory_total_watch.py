"""When what a worker uses as a whole is read exactly."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from worker_guard.memory.policy import Reading
from worker_guard.memory.roster import Roster
from worker_guard.memory.total import TotalPolicy
from worker_guard.memory.total_watch import RECHECK_S, TotalWatch
from worker_guard.memory.watchdog import NoChildren


class Machine:
    """A main process alone, whose RSS and PSS are set; ``exact`` counts the readings of PSS."""

    metric = "pss"

    def __init__(self) -> None:
        self.now, self.rss, self.pss, self.exact = 0.0, 500, 500, 0
        reader: Any = self
        self.watch = TotalWatch(
            interval_s=5.0,
            pid=1,
            children=NoChildren(),
            roster=Roster(policy=None, reader=reader, report=lambda event: None),
            reader=reader,
            policy=TotalPolicy(limit_bytes=1000, strikes=3),
            request=lambda *_: False,
            monotonic=lambda: self.now,
        )

    def survey(self) -> Iterator[None]:
        yield

    def steps(self, pid: int, limit_bytes: int | None) -> Generator[None, None, Reading | None]:
        yield
        exact = limit_bytes is not None and self.rss > limit_bytes
        self.exact += exact
        used_bytes, metric = (self.pss, "pss") if exact else (self.rss, "rss")
        return Reading(pid=pid, rss_bytes=self.rss, used_bytes=used_bytes, metric=metric)

    def read_rss(self, pid: int) -> Reading:
        return Reading(pid=pid, rss_bytes=self.rss, used_bytes=self.rss, metric="rss")

    def run(self, now: float, *, rss: int, pss: int) -> tuple[int, int | None]:
        """How often it was read exactly so far, and what it uses by that."""
        self.now, self.rss, self.pss = now, rss, pss
        for _ in self.watch.run():
            pass
        return self.exact, self.watch.used_bytes


def test_pss_is_read_only_if_rss_leaves_it_open() -> None:
    """A reading within the limit counts on while RSS grows by less than what is left."""
    machine = Machine()
    assert machine.run(0.0, rss=900, pss=300) == (0, 900)
    # RSS alone grew by what was left since then.
    assert machine.run(5.0, rss=2000, pss=600) == (1, 600)
    assert machine.run(10.0, rss=2400, pss=700) == (1, 1000)
    assert machine.run(15.0, rss=1900, pss=600) == (1, 600)
    assert machine.run(20.0, rss=2401, pss=700) == (2, 700)
    assert machine.run(20.0 + RECHECK_S - 0.1, rss=2401, pss=1300) == (2, 700)
    # Pages that were shared are no more.
    assert machine.run(20.0 + RECHECK_S, rss=2401, pss=1300) == (3, 1300)
    assert machine.run(25.0 + RECHECK_S, rss=2401, pss=1300) == (4, 1300)


def test_a_worker_over_its_limit_is_read_exactly_each_time() -> None:
    """Also if RSS falls back to what it was at the last reading within the limit."""
    machine = Machine()
    assert machine.run(0.0, rss=2000, pss=900) == (1, 900)
    assert machine.run(5.0, rss=2200, pss=1100) == (2, 1100)
    assert machine.run(10.0, rss=2000, pss=1050) == (3, 1050)
