"""The keys that no state pattern reaches: those of the broker, of RedBeat, and of the guard.

Broker and results often share a database. A queue whose list gets a TTL loses its messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from worker_guard.values.key_patterns import Glob, literal

#: All keys of the guard begin with it, behind ``global_keyprefix``.
OWN_PREFIX = "worker-guard-"

#: Bindings, unacknowledged messages and replies to remote commands, whatever the app's prefix.
_ANYWHERE = (
    f"*{OWN_PREFIX}*",
    "*_kombu.*",
    "unacked*",
    "*unacked",
    "*unacked_index",
    "*unacked_mutex",
    "*.reply.*.pidbox",
    "*.reply.*.pidbox\x06\x16*",
    "redbeat:*",
)

#: Transport options that name a key; see ``kombu.transport.redis.Channel``.
_KEY_OPTIONS = ("unacked_key", "unacked_index_key", "unacked_mutex_key")

#: What kombu puts between a queue's name and a priority.
_SEPARATOR = "\x06\x16"


def protected(
    *, queues: Iterable[str], broker_options: Mapping[str, Any], redbeat_prefix: object
) -> tuple[Glob, ...]:
    """The patterns of these keys; ``queues`` are the names that the app knows."""
    return tuple(map(Glob, dict.fromkeys(_patterns(queues, broker_options, redbeat_prefix))))


def _patterns(
    queues: Iterable[str], options: Mapping[str, Any], redbeat_prefix: object
) -> Iterator[str]:
    yield from _ANYWHERE
    if redbeat_prefix and isinstance(redbeat_prefix, str):
        yield literal(redbeat_prefix) + "*"
    separator = literal(str(options.get("sep") or _SEPARATOR))
    prefixes = dict.fromkeys(("", literal(str(options.get("global_keyprefix") or ""))))
    keys = [literal(str(options[name])) for name in _KEY_OPTIONS if options.get(name)]
    for prefix in prefixes:
        for name in map(literal, filter(None, queues)):
            yield f"{prefix}{name}"
            yield f"{prefix}{name}{separator}[0-9]*"
        yield from (prefix + key for key in keys)
