"""The walks through the code in the docs are held against the code."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/internals.md").read_text()


def walks() -> dict[str, list[list[str]]]:
    """By the title of each walk: its steps, and of each step the names in it."""
    section = PAGE.split("## Walks through the code")[1].split("\n## ")[0]
    found = {}
    for walk in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
        title, _, text = walk.partition("\n")
        steps = re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]
        found[title] = [re.findall(r"`([^`]+)`", step) for step in steps]
    return found


STEPS = [(title, step) for title, steps in walks().items() for step in steps]


def function(name: str) -> object:
    """What stands under this name, such as ``scheduler.Scheduler._tick``."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(["worker_guard", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise LookupError(name)


def test_there_are_four_walks() -> None:
    """An id, a revocation, a child and a result, each in several steps."""
    assert [len(steps) >= 6 for steps in walks().values()] == [True] * 4


@pytest.mark.parametrize(("title", "step"), STEPS, ids=[step[0] for _, step in STEPS])
def test_each_step_is_the_code(title: str, step: list[str]) -> None:
    """The function is there, and what the step says that it uses stands in its source."""
    name, *used = step
    source = inspect.getsource(function(name))  # type: ignore[arg-type]
    for word in used:
        assert word in source, f"{name} does not use {word}"
