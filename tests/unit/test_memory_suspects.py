"""Which task is named for the growth of the children."""

from __future__ import annotations

import random

from worker_guard.memory.suspects import KEPT, SHOWN, Suspects

MB = 1_000_000


def run(suspects: Suspects, costs: dict[str, int], mixes: list[list[str]], pid: int = 1) -> None:
    """Read a child after each mix of tasks; each run of a task grows it by the task's cost."""
    rss_bytes = 50 * MB
    suspects.read(pid, rss_bytes, busy=False)
    for mix in mixes:
        for task in mix:
            suspects.began(pid, task)
            rss_bytes += costs.get(task, 0)
        suspects.read(pid, rss_bytes, busy=False)


def random_mixes(seed: int, names: list[str], readings: int = 40) -> list[list[str]]:
    source = random.Random(seed)
    return [source.choices(names, k=source.randint(1, 30)) for _ in range(readings)]


def test_a_leaking_task_among_clean_ones_is_the_only_suspect() -> None:
    """Whatever the mix, growth goes to the one task without which nothing grows."""
    for seed in range(20):
        suspects = Suspects()
        names = ["leak", "a", "b", "c", "d", "e"]
        run(suspects, {"leak": MB}, random_mixes(seed, names))
        first, *others = suspects.top()
        assert first.task == "leak"
        assert abs(first.growth_bytes / first.runs - MB) < 0.1 * MB
        assert all(other.growth_bytes < 0.1 * first.growth_bytes for other in others)


def test_a_rare_leak_is_found_too() -> None:
    """One run in forty leaks; each reading is full of clean runs."""
    suspects = Suspects()
    run(suspects, {"leak": 5 * MB}, random_mixes(7, ["leak", *"abcdefghijklm" * 3], 60))
    assert suspects.top()[0].task == "leak"


def test_the_worst_come_first_by_growth_for_each_run() -> None:
    """Not by their total: a task that runs often and leaks little is not the worst."""
    suspects = Suspects()
    run(
        suspects,
        {"often": MB // 10, "seldom": 5 * MB, "between": MB},
        random_mixes(3, ["often"] * 20 + ["seldom", "between", "between"], 80),
    )
    assert [suspect.task for suspect in suspects.top()] == ["seldom", "between", "often"]


def test_what_a_new_child_costs_once_is_not_put_down_to_its_first_task() -> None:
    """Imports and connections of the first run are the child's, not the task's."""
    suspects = Suspects()
    for pid in range(30):
        first = ["clean"] if pid % 2 else ["other"]
        suspects.read(pid, 50 * MB, busy=False)
        for task in first:
            suspects.began(pid, task)
        suspects.read(pid, 58 * MB, busy=False)
        run_on = ["clean", "other", "leak"]
        for task in run_on:
            suspects.began(pid, task)
        suspects.read(pid, 60 * MB, busy=False)
        suspects.began(pid, "clean")
        suspects.began(pid, "other")
        suspects.read(pid, 60 * MB, busy=False)
    assert suspects.top()[0].task == "leak"


def test_memory_that_was_given_back_is_taken_off() -> None:
    """A spike that a reading caught is no growth once it is gone."""
    suspects = Suspects()
    suspects.read(1, 50 * MB, busy=False)
    for _ in range(20):
        suspects.began(1, "spike")
        suspects.read(1, 350 * MB, busy=True)
        suspects.read(1, 50 * MB, busy=False)
    assert sum(suspect.growth_bytes for suspect in suspects.top()) < 20 * MB


def test_a_long_task_grows_between_readings_and_counts_one_run() -> None:
    """A task that goes on over several readings is the one that grows the child."""
    suspects = Suspects()
    suspects.read(1, 50 * MB, busy=False)
    suspects.began(1, "long")
    for reading in range(10):
        suspects.read(1, (60 + 10 * reading) * MB, busy=True)
    (suspect,) = suspects.top()
    assert (suspect.task, suspect.runs) == ("long", 1)


def test_growth_without_any_task_suspects_nobody() -> None:
    """What grew while the child was idle is nobody's."""
    suspects = Suspects()
    suspects.read(1, 50 * MB, busy=False)
    suspects.read(1, 90 * MB, busy=False)
    assert suspects.top() == ()


def test_three_are_named_and_few_are_kept_whatever_the_number_of_names() -> None:
    """Names that are made up for each run don't fill the memory."""
    suspects = Suspects()
    run(suspects, {}, [[f"task-{i}"] for i in range(5 * KEPT)])
    run(suspects, {"leak": MB}, [["leak"]] * 5, pid=2)
    assert len(suspects._products) <= KEPT
    assert suspects.top()[0].task == "leak"
    assert len(suspects.top()) <= SHOWN


def test_a_child_that_left_leaves_nothing_behind() -> None:
    """Its id may come again, for a child of another size."""
    suspects = Suspects()
    suspects.read(1, 500 * MB, busy=False)
    suspects.began(1, "task")
    suspects.gone(1)
    assert suspects.ran_nothing(1)
    suspects.read(1, 50 * MB, busy=False)
    assert suspects.top() == ()


def test_nothing_is_kept_of_children_that_are_gone() -> None:
    """Whatever was heard of one, and in whatever order, it is known by its pid until it is gone."""
    suspects = Suspects()
    suspects.began(1, "heard.of.late")
    suspects.read(2, 10, busy=False)
    assert suspects.children() == {1, 2}
    for pid in (1, 2):
        suspects.gone(pid)
    assert suspects.children() == set()
