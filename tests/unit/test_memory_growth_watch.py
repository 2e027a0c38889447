"""The job that follows how the processes grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fakes.memory import LIMIT, PARENT, Setup, new_setup
from worker_guard.events import PartFailed
from worker_guard.memory.growth_watch import SAMPLE_S, GrowthWatch
from worker_guard.memory.policy import Reading
from worker_guard.scheduler import run_to_end

CHILD, OTHER = 10, 11


@dataclass
class Followed:
    """A job on a machine with two children, the first of which shares half of its first memory."""

    setup: Setup = field(default_factory=new_setup)
    shared: int = 0
    exact: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        machine = self.setup.machine
        self.parent: Reading | None = None
        self.job = GrowthWatch(
            roster=self.setup.roster,
            reader=machine,
            parent=lambda: self.parent,
            parent_limit_bytes=LIMIT,
            report=self.setup.events.append,
            monotonic=machine.monotonic,
        )
        read = machine.read

        def exactly(pid: int, limit_bytes: int | None) -> Reading | None:
            self.exact.append(pid)
            reading = read(pid, limit_bytes)
            assert reading is not None
            return Reading(
                pid=pid,
                rss_bytes=reading.rss_bytes,
                used_bytes=reading.rss_bytes - self.shared,
                metric="uss",
            )

        machine.read = exactly  # type: ignore[method-assign]

    def goes_on(self, samples: int, **growth: float) -> None:
        """So many readings later, in each of which a process grew by so much."""
        machine = self.setup.machine
        for _ in range(samples):
            machine.now += SAMPLE_S
            used = self.setup.machine.used
            for name, pid in (("child", CHILD), ("other", OTHER), ("parent", PARENT)):
                used[pid] = used.get(pid, 100) + int(growth.get(name, 0))
            self.setup.roster.readings = {pid: _rss(pid, used[pid]) for pid in (CHILD, OTHER)}
            self.parent = _rss(PARENT, used[PARENT])
            run_to_end(self.job.run())


def _rss(pid: int, used_bytes: int) -> Reading:
    return Reading(pid=pid, rss_bytes=used_bytes, used_bytes=used_bytes, metric="rss")


def test_a_process_that_grows_has_a_number_and_the_others_have_none() -> None:
    """The child grows by 5 for each reading, and the main process by 2."""
    followed = Followed()
    followed.goes_on(100, child=5, parent=2)
    assert followed.job.limit_in_s(CHILD) == 80 * SAMPLE_S
    assert followed.job.limit_in_s(PARENT) == 350 * SAMPLE_S
    assert followed.job.limit_in_s(OTHER) is None
    assert followed.job.limit_in_s(99) is None
    followed.setup.machine.now += 81 * SAMPLE_S
    assert followed.job.limit_in_s(CHILD) is None


def test_what_a_child_shares_does_not_count() -> None:
    """It is read exactly now and then, and only if its RSS grows towards the limit."""
    followed = Followed(shared=200)
    followed.goes_on(100, child=5)
    assert followed.job.limit_in_s(CHILD) == 120 * SAMPLE_S
    assert set(followed.exact) == {CHILD}
    assert 2 <= len(followed.exact) <= 4


def test_a_child_over_the_limit_by_rss_alone_has_a_number() -> None:
    """The watchdog reads it exactly, so that nothing more is read."""
    followed = Followed(shared=600)
    followed.setup.machine.used[CHILD] = 1000
    followed.goes_on(60, child=4)
    followed.exact.clear()
    followed.setup.machine.now += SAMPLE_S
    followed.setup.roster.readings[CHILD] = Reading(
        pid=CHILD, rss_bytes=1244, used_bytes=644, metric="uss"
    )
    run_to_end(followed.job.run())
    assert followed.job.limit_in_s(CHILD) == 89 * SAMPLE_S
    assert followed.exact == []


def test_a_reading_counts_once() -> None:
    """Where the watchdog reads less often than the job looks."""
    followed = Followed()
    followed.goes_on(10, child=5)
    for _ in range(90):
        followed.setup.machine.now += SAMPLE_S
        run_to_end(followed.job.run())
    assert followed.job.limit_in_s(CHILD) is None
    followed.goes_on(3, child=5)
    assert followed.job.limit_in_s(CHILD) is None


def test_what_was_kept_of_a_child_goes_with_it() -> None:
    """Its process id can be another's."""
    followed = Followed()
    followed.goes_on(100, child=5)
    followed.setup.roster.gone(CHILD)
    followed.setup.roster.readings.pop(CHILD, None)
    run_to_end(followed.job.run())
    assert followed.job.limit_in_s(CHILD) is None
    followed.goes_on(5, child=5)
    assert followed.job.limit_in_s(CHILD) is None


def test_a_child_that_may_not_be_read_is_reported_and_the_others_have_their_numbers() -> None:
    """With growing pauses, not each time."""
    followed = Followed()
    machine = followed.setup.machine
    read = machine.read

    def refused(pid: int, limit_bytes: int | None) -> Reading | None:
        if pid == CHILD:
            raise PermissionError("not yours")
        return read(pid, limit_bytes)

    machine.read = refused  # type: ignore[method-assign]
    followed.goes_on(100, child=5, other=5)
    assert followed.job.limit_in_s(CHILD) is None
    assert followed.job.limit_in_s(OTHER) is not None
    failed = followed.setup.reported(PartFailed)
    assert 1 <= len(failed) < 10
    assert {event.part for event in failed if isinstance(event, PartFailed)} == {"memory_growth"}
