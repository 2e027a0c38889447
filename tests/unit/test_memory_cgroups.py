"""The kernel's count of its out-of-memory kills, from a cgroup tree in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker_guard.memory.cgroups import oom_kills

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        (["0::/app"], {"app/memory.events": EVENTS.format(4)}, 4),
        # The process's own group counts, not the one above it.
        (["0::/a/b"], {"a/b/memory.events": EVENTS.format(1), "a/memory.events": "oom_kill 9"}, 1),
        # In a container the path is the host's, and the mount holds the container's own group.
        (["0::/host/path"], {"memory.events": EVENTS.format(2)}, 2),
        (["4:memory:/app", "0::/"], {"memory/app/memory.oom_control": CONTROL.format(5)}, 5),
        (["4:cpu,memory:/x"], {"memory/memory.oom_control": CONTROL.format(6)}, 6),
        (["4:cpu:/app"], {"memory/app/memory.oom_control": CONTROL.format(5)}, None),
        # A kernel before 4.13 does not count them.
        (["4:memory:/"], {"memory/memory.oom_control": "oom_kill_disable 0\n"}, None),
        (["0::/app"], {"app/memory.events": "oom_kill many\n"}, None),
        (["0::/app"], {}, None),
        ([], {}, None),
    ],
)
def test_the_count_is_found(
    tmp_path: Path, lines: list[str], files: dict[str, str], expected: int | None
) -> None:
    """In version 2 and in version 1."""
    (tmp_path / "cgroup").write_text("\n".join(lines))
    for name, content in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert oom_kills(tmp_path / "cgroup", tmp_path / "mount") == expected


def test_without_cgroups_nothing_is_known(tmp_path: Path) -> None:
    """Not on Linux, or not mounted."""
    assert oom_kills(tmp_path / "none", tmp_path) is None
