"""No pattern of the application's reaches what belongs to the broker, RedBeat, or the guard."""

from __future__ import annotations

from typing import Any

import pytest

from worker_guard.results.protected_keys import protected

PRIORITY = "\x06\x16"


def is_protected(key: str, *queues: str, redbeat_prefix: object = None, **options: Any) -> bool:
    globs = protected(queues=queues, broker_options=options, redbeat_prefix=redbeat_prefix)
    return any(glob.matches(key.encode()) for glob in globs)


@pytest.mark.parametrize(
    "key",
    [
        "_kombu.binding.celery",
        "other__kombu.binding.celery",
        "unacked",
        "unacked_index",
        "unacked_mutex",
        "other_unacked_index",
        "worker-guard-history",
        "proj_worker-guard-operator-1",
        "5f.reply.celery.pidbox",
        "5f.reply.celery.pidbox\x06\x163",
        "redbeat::schedule",
        "redbeat:my-entry",
    ],
)
def test_the_keys_of_celerys_world_are_known_by_name(key: str) -> None:
    """Behind another app's prefix, too."""
    assert is_protected(key)


@pytest.mark.parametrize("queue", ["work", "w?rk[1]*", "a\\b"])
def test_a_queue_is_known_with_its_priorities(queue: str) -> None:
    """And no other key for the characters that its name has."""
    assert is_protected(queue, queue)
    assert is_protected(f"{queue}{PRIORITY}3", queue)
    assert is_protected(f"{{q}}{queue}{PRIORITY}9", queue, global_keyprefix="{q}")
    assert is_protected(f"{queue}:6", queue, sep=":")
    assert not is_protected(f"{queue}-state", queue)
    assert not is_protected("work1", queue)
    assert not is_protected("work1", "")


def test_the_brokers_options_name_its_keys() -> None:
    """With its own prefix, where it has one."""
    options = {"unacked_key": "open", "unacked_index_key": "opened", "unacked_mutex_key": "lock"}
    for key in options.values():
        assert is_protected(key, **options)
        assert is_protected(f"p:{key}", global_keyprefix="p:", **options)
        assert not is_protected(key)


def test_redbeats_prefix_may_be_another() -> None:
    """As its setting says."""
    assert is_protected("beat[1]:entry", redbeat_prefix="beat[1]:")
    assert not is_protected("beat1:entry", redbeat_prefix="beat[1]:")


def test_the_applications_own_keys_are_not_taken_for_others() -> None:
    """A pattern of its own is there to be followed."""
    for key in ("app-state:1", "myapp:progress:unacknowledged", "workers", "celery-progress"):
        assert not is_protected(key, "work", "celery")
