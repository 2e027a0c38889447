"""The scheduler: runs start on time, go on slice by slice, and no exception leaves a tick."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from worker_guard.events import Event, PartFailed, Trigger
from worker_guard.scheduler import PAUSE_S, Scheduler, run_to_end


class FakeTimer:
    """A timer whose time passes by :meth:`advance`."""

    def __init__(self) -> None:
        self.now = 100.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def later(self, delay_s: float, tick: Callable[[], None]) -> None:
        assert delay_s >= 0
        self._number += 1
        self._calls.append((self.now + delay_s, self._number, tick))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted(call for call in self._calls if call[0] <= end + 1e-9):
            self._calls.remove(due[0])
            self.now = max(self.now, due[0][0])
            due[0][2]()
        self.now = end

    def lose_all(self) -> None:
        """What Celery 5.3 to 5.6 do when the broker connection is lost."""
        self._calls.clear()


class FakeJob:
    """Counts its runs, each of so many slices; raises the error that it is given."""

    name = "fake"
    interval_s = 10.0
    first_pause_s = 10.0
    longest_pause_s = 900.0

    def __init__(self, slices: int = 1, error: Exception | None = None) -> None:
        self.slices, self.error = slices, error
        self.runs = self.resumed = 0

    def run(self, trigger: Trigger = "timer") -> Iterator[None]:
        self.runs += 1
        for _ in range(self.slices):
            if self.error:
                raise self.error
            self.resumed += 1
            yield


def scheduled(job: FakeJob) -> tuple[Scheduler, FakeTimer, list[Event]]:
    timer, events = FakeTimer(), list[Event]()
    scheduler = Scheduler(
        report=events.append, monotonic=lambda: timer.now, uniform=lambda _low, high: high
    )
    scheduler.add(job)
    return scheduler, timer, events


def test_runs_come_at_their_interval() -> None:
    """The first within one interval, the next one jittered interval later each."""
    job = FakeJob()
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    timer.advance(9.9)
    assert job.runs == 0
    timer.advance(0.2)
    assert job.runs == 1
    timer.advance(11.0 * 3 + 1)
    assert job.runs == 4


def test_a_fleet_is_spread() -> None:
    """The first run of each worker comes at a moment of its own."""
    timer, asked = FakeTimer(), list[tuple[float, float]]()

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    scheduler = Scheduler(report=lambda _: None, monotonic=lambda: timer.now, uniform=uniform)
    scheduler.add(FakeJob())
    assert asked == [(0.5, 1.0)]


def test_the_first_run_counts_from_the_first_connection() -> None:
    """However long that took to come, and not from a later one; ``run_soon`` doesn't wait."""
    job = FakeJob()
    scheduler, timer, _ = scheduled(job)
    timer.advance(25)
    scheduler.arm(timer.later)
    timer.advance(9.9)
    assert job.runs == 0
    scheduler.disarm()
    scheduler.arm(timer.later)
    timer.advance(0.2)
    assert job.runs == 1

    job = FakeJob()
    scheduler, timer, _ = scheduled(job)
    scheduler.run_soon("fake")
    timer.advance(25)
    scheduler.arm(timer.later)
    timer.advance(0.1)
    assert job.runs == 1


def test_a_run_gives_the_loop_back_between_slices() -> None:
    """One slice a tick, with a pause that is the loop's."""
    job = FakeJob(slices=3)
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    timer.advance(10.0)
    assert job.resumed == 1
    timer.advance(PAUSE_S)
    assert job.resumed == 2
    timer.advance(5 * PAUSE_S)
    assert (job.resumed, job.runs) == (3, 1)


def test_a_failure_is_reported_and_paused_for_longer_each_time() -> None:
    """Whatever a job raises, no tick raises; the pauses grow, up to a limit."""
    job = FakeJob(error=AssertionError("broken"))
    scheduler, timer, events = scheduled(job)
    scheduler.arm(timer.later)
    timer.advance(10_000)
    failures = [event for event in events if isinstance(event, PartFailed)]
    assert [event.retry_in_s for event in failures[:9]] == [
        10, 20, 40, 80, 160, 320, 640, 900, 900,
    ]  # fmt: skip
    assert failures[0] == PartFailed(
        part="fake", error="AssertionError: broken", consecutive_failures=1, retry_in_s=10
    )
    job.error = None
    timer.advance(900)
    assert scheduler.failures() == {"fake": 0}


def test_a_jobs_pauses_can_have_a_bound_of_their_own() -> None:
    """They still grow up to it."""
    timer, events = FakeTimer(), list[Event]()
    scheduler = Scheduler(
        report=events.append,
        monotonic=lambda: timer.now,
        uniform=lambda _low, high: high,
    )
    job = FakeJob(error=ValueError("broken"))
    job.longest_pause_s = 30.0
    scheduler.add(job)
    scheduler.arm(timer.later)
    timer.advance(200)
    pauses = [event.retry_in_s for event in events if isinstance(event, PartFailed)]
    assert pauses[:4] == [10, 20, 30, 30]


def test_a_new_connection_goes_on_where_the_lost_one_was() -> None:
    """The run under way is resumed, and what was due meanwhile runs at once."""
    job = FakeJob(slices=2)
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    timer.advance(10.0)
    timer.lose_all()
    scheduler.disarm()
    timer.advance(60)
    assert job.resumed == 1
    scheduler.arm(timer.later)
    timer.advance(PAUSE_S * 2)
    assert (job.resumed, job.runs) == (2, 1)


def test_timers_that_outlive_their_connection_do_not_double_the_ticks() -> None:
    """On some releases they go on; their ticks do nothing."""
    job = FakeJob()
    scheduler, timer, _ = scheduled(job)
    for _ in range(5):
        scheduler.arm(timer.later)
    timer.advance(10.0 + 11.0 * 9 + 1)
    assert job.runs == 10


def test_a_job_can_run_soon() -> None:
    """A job is run now, once, and then at its interval again; a failing one is left alone."""
    job = FakeJob()
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    for _ in range(3):
        scheduler.run_soon("fake")
    timer.advance(0)
    assert job.runs == 1
    timer.advance(10.9)
    assert job.runs == 1
    timer.advance(0.2)
    assert job.runs == 2

    scheduler.run_soon("fake", within_s=5.0)
    timer.advance(4.9)
    assert job.runs == 2
    timer.advance(0.2)
    assert job.runs == 3
    scheduler.run_soon("fake", within_s=20.0)
    timer.advance(10.8)
    assert job.runs == 3
    timer.advance(0.2)
    assert job.runs == 4

    job.error = ValueError("broken")
    scheduler.run_soon("fake")
    timer.advance(0)
    assert job.runs == 5
    scheduler.run_soon("fake")
    timer.advance(1)
    assert job.runs == 5
    scheduler.run_soon("fake", anyway=True)
    timer.advance(1)
    assert job.runs == 6
    scheduler.run_soon("unknown")


def test_a_job_that_is_dropped_clears_up_at_once() -> None:
    """It is not resumed."""
    cleared_up: list[bool] = []

    class Careful(FakeJob):
        def run(self, trigger: Trigger = "timer") -> Iterator[None]:
            try:
                yield from super().run(trigger)
            finally:
                cleared_up.append(True)

    job = Careful(slices=3)
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    timer.advance(10.0)
    scheduler.drop("fake")
    timer.advance(20.0)
    assert (cleared_up, job.resumed, job.runs) == ([True], 1, 1)
    assert scheduler.failures() == {}
    scheduler.drop("unknown")


def test_a_run_begun_outside_the_schedule_is_finished() -> None:
    """The rest of a remote command's sweep; its failure is contained too."""
    job = FakeJob(slices=3)
    scheduler, timer, events = scheduled(job)
    scheduler.arm(timer.later)
    slices = job.run()
    assert run_to_end(slices, until=lambda: True) is False
    scheduler.disarm()
    scheduler.resume("fake", slices)
    scheduler.resume("fake", FakeJob(slices=2).run())
    timer.advance(1)
    assert job.resumed == 1
    scheduler.arm(timer.later)
    timer.advance(1)
    assert job.resumed == 3
    scheduler.resume("fake", FakeJob(error=ValueError("broken")).run())
    timer.advance(1)
    assert [type(event) for event in events] == [PartFailed]


def test_runs_that_wait_follow_a_failure_and_are_closed_with_the_job() -> None:
    """A run that was begun outside is not lost if the one before it raises."""
    ended: list[str] = []

    def begun(name: str) -> Iterator[None]:
        try:
            yield
            yield
        finally:
            ended.append(name)

    job = FakeJob(error=OSError("broken"))
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    begun_runs = [begun("first"), begun("second"), begun("third")]
    for slices in begun_runs:
        next(slices)
        scheduler.resume(job.name, slices)
    timer.advance(3 * PAUSE_S)
    assert ended == ["first"]
    scheduler.drop(job.name)
    assert ended == ["first", "second", "third"]


def test_without_an_event_loop_a_tick_runs_slices_for_a_while() -> None:
    """There the next tick can be seconds away."""
    job = FakeJob(slices=10)
    scheduler, timer, _ = scheduled(job)

    def late(delay_s: float, tick: Callable[[], None]) -> None:
        timer.later(max(delay_s, 2.0), tick)

    slices = job.run

    def slow(trigger: Trigger = "timer") -> Iterator[None]:
        for _ in slices(trigger):
            timer.now += 0.03
            yield

    job.run = slow  # type: ignore[method-assign]
    scheduler.arm(late, burst_s=0.1)
    timer.advance(10.0)
    assert job.resumed == 4
    timer.advance(2.5)
    assert job.resumed == 8


def test_it_says_when_a_run_is_due() -> None:
    """The status shows it; an unknown job is due at once."""
    job = FakeJob()
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    assert scheduler.due_in_s("fake") == 10.0
    timer.advance(4.0)
    assert scheduler.due_in_s("fake") == 6.0
    timer.advance(6.0)
    assert scheduler.due_in_s("fake") == 0.0  # under way
    assert scheduler.due_in_s("another") == 0.0


def test_a_run_can_begin_at_once_and_ends_before_anything_else() -> None:
    """Such as the read of the record, before the first message; the next one is an interval on."""
    job = FakeJob(slices=3)
    scheduler, timer, _ = scheduled(job)
    scheduler.begin("fake", until=lambda: False)
    assert (job.resumed, job.runs) == (3, 1)
    scheduler.arm(timer.later)
    timer.advance(10.9)
    assert job.runs == 1
    timer.advance(0.2)
    assert job.runs == 2
    scheduler.begin("unknown", until=lambda: False)


def test_what_such_a_run_has_not_done_in_time_goes_on_in_slices() -> None:
    """The first slice is done in any case."""
    job = FakeJob(slices=4)
    scheduler, timer, _ = scheduled(job)
    scheduler.begin("fake", until=lambda: job.resumed >= 2)
    assert job.resumed == 2
    scheduler.arm(timer.later)
    timer.advance(PAUSE_S)
    assert job.resumed == 3
    timer.advance(2 * PAUSE_S)
    assert (job.resumed, job.runs) == (4, 1)
    timer.advance(10.9)
    assert job.runs == 1


def test_a_failure_of_such_a_run_is_reported_and_paused_for() -> None:
    """The worker starts all the same; a run that succeeds later ends the failures."""
    job = FakeJob(error=ConnectionError("refused"))
    job.first_pause_s = 5.0
    timer, events = FakeTimer(), list[Event]()
    scheduler = Scheduler(
        report=events.append, monotonic=lambda: timer.now, uniform=lambda _low, high: high
    )
    scheduler.add(job)
    scheduler.begin("fake", until=lambda: False)
    assert events == [
        PartFailed(
            part="fake",
            error="ConnectionError: refused",
            consecutive_failures=1,
            retry_in_s=5.0,
        )
    ]
    scheduler.arm(timer.later)
    timer.advance(4.9)
    assert job.runs == 1
    job.error = None
    timer.advance(0.2)
    assert (job.runs, job.resumed) == (2, 1)
    assert scheduler.failures() == {"fake": 0}


def test_a_run_that_is_under_way_is_given_up_for_it() -> None:
    """The connection was lost meanwhile: what was read before may be out of date."""
    closed: list[int] = []

    class Careful(FakeJob):
        def run(self, trigger: Trigger = "timer") -> Iterator[None]:
            number = self.runs
            try:
                yield from super().run(trigger)
            finally:
                closed.append(number)

    job = Careful(slices=3)
    scheduler, timer, _ = scheduled(job)
    scheduler.arm(timer.later)
    timer.advance(10.0)
    assert job.resumed == 1
    scheduler.disarm()
    timer.lose_all()
    scheduler.begin("fake", until=lambda: True)
    assert (closed, job.runs, job.resumed) == ([0], 2, 2)
    scheduler.arm(timer.later)
    timer.advance(3 * PAUSE_S)
    assert (closed, job.resumed) == ([0, 1], 4)


class OfflineJob(FakeJob):
    """Runs without a broker too."""

    name = "offline"
    without_broker = True


def test_a_job_that_needs_no_broker_runs_on_the_turns_of_the_loop() -> None:
    """Before the first connection and after a loss; with a broker a turn does nothing."""
    job, other = OfflineJob(slices=0), FakeJob(slices=0)
    scheduler, timer, _events = scheduled(job)
    scheduler.add(other)
    timer.now += 11
    scheduler.turn()
    scheduler.turn()
    assert job.runs == 1
    scheduler.arm(timer.later)
    assert scheduler.is_armed
    timer.now += 30
    scheduler.turn()
    assert job.runs == 1
    scheduler.disarm()
    scheduler.turn()  # it is due at once
    assert job.runs == 2
    timer.now += 12
    scheduler.turn()
    assert (job.runs, other.runs) == (3, 0)


def test_slices_of_such_a_run_go_on_with_the_turns() -> None:
    """One slice a turn."""
    job = OfflineJob(slices=3)
    scheduler, timer, _events = scheduled(job)
    timer.now += 11
    for _ in range(4):
        scheduler.turn()
    assert (job.runs, job.resumed) == (1, 3)


def test_a_failure_in_a_turn_is_reported_and_waits_for_its_pause() -> None:
    """As with a timer."""
    job = OfflineJob(error=ValueError("no"))
    scheduler, timer, events = scheduled(job)
    timer.now += 11
    for _ in range(5):
        scheduler.turn()
    assert (job.runs, len(events)) == (1, 1)


def test_run_now_respects_the_pause_after_a_failure() -> None:
    """So that what asks often does not report often; it never raises."""
    job = OfflineJob(error=ValueError("no"))
    scheduler, timer, events = scheduled(job)
    for _ in range(5):
        scheduler.run_now("offline")
    assert (job.runs, len(events)) == (1, 1)
    job.error = None
    timer.now += 20
    scheduler.run_now("offline")
    assert (job.runs, job.resumed) == (2, 1)
    scheduler.run_now("none such")
