"""The pictures in the documentation are what this release draws of what real workers answered."""

from __future__ import annotations

import pytest

from tests.screens.draw import SCREENS, recorded, screens

PICTURES = sorted(
    path.name for command in ("status", "watch") for path in SCREENS.glob(f"{command}-*.txt")
)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_is_drawn(name: str) -> None:
    """Else: ``python -m tests.screens``, and look at what changed."""
    assert (SCREENS / name).read_text() == screens(recorded())[name]


def test_each_screen_has_its_picture() -> None:
    """At 80 and at 140 columns; and no line is wider."""
    drawn = screens(recorded())
    assert sorted(drawn) == PICTURES
    for name, text in drawn.items():
        assert max(map(len, text.splitlines())) <= int(name.split("-")[1].removesuffix(".txt"))
