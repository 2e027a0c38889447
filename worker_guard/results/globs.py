"""Redis's key patterns, as Python's and as Lua's, so that both sides of a sweep read them alike.

The rules are those of ``stringmatchlen`` in Redis (``util.c``): ``*``, ``?``, ``[a-z]``,
``[^a-z]``, and a backslash before what is meant as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ANY_RUN = b"*"
_ANY_ONE = b"?"


class Glob:
    """One pattern. ``matches`` says what Redis would say of a key.

    Raises:
        ValueError: the pattern is empty, consists of wildcards alone, or has an open or empty
            ``[``; the message says which.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        tokens = list(_tokens(pattern.encode()))
        if not any(isinstance(token, frozenset) and len(token) == 1 for token in tokens):
            raise ValueError(f"{pattern!r} names no key: it has nothing but wildcards")
        self._regex = re.compile(b"".join(map(_to_regex, tokens)), re.DOTALL)
        #: The same as a pattern of Lua 5.1, for the scripts.
        self.lua = b"^" + b"".join(map(_to_lua, tokens)) + b"$"

    def matches(self, key: bytes) -> bool:
        """Whether this key is meant."""
        return self._regex.fullmatch(key) is not None


def literal(text: str) -> str:
    """The pattern that fits this text alone."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


Token = bytes | frozenset[int]


def _tokens(pattern: bytes) -> Iterator[Token]:
    """Wildcards as they are, everything else as the set of bytes that stand for one place."""
    at = 0
    run = False
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            if not run:
                yield _ANY_RUN
            run = True
            continue
        run = False
        if char == b"?":
            yield _ANY_ONE
        elif char == b"[":
            chosen, at = _class(pattern, at)
            yield chosen
        else:
            if char == b"\\" and at < len(pattern):
                char = pattern[at : at + 1]
                at += 1
            yield frozenset(char)


def _class(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    negated = pattern[at : at + 1] == b"^"
    at += negated
    chosen: set[int] = set()
    while pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            chosen.add(pattern[at + 1])
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            chosen.update(range(low, high + 1))
            at += 3
        elif at < len(pattern):
            chosen.add(pattern[at])
            at += 1
        else:
            raise ValueError(f"{pattern.decode()!r} has a '[' without its ']'")
    if negated:
        chosen = set(range(256)) - chosen
    if not chosen:
        raise ValueError(f"{pattern.decode()!r} has a '[]' that no character fits")
    return frozenset(chosen), at + 1


def _to_regex(token: Token) -> bytes:
    if isinstance(token, bytes):
        return b".*" if token == _ANY_RUN else b"."
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(token)) + b"]"


def _to_lua(token: Token) -> bytes:
    if isinstance(token, bytes):
        return b".-" if token == _ANY_RUN else b"."
    escaped = b"".join(map(_lua_byte, sorted(token)))
    return escaped if len(token) == 1 else b"[" + escaped + b"]"


def _lua_byte(byte: int) -> bytes:
    char = bytes([byte])
    if byte == 0:
        return b"%z"
    return b"%" + char if byte < 128 and not char.isalnum() else char
