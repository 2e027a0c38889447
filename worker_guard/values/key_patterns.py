"""Redis's key patterns in Python.

The rules are those of ``stringmatchlen`` in Redis (``util.c``): ``*``, ``?``, ``[a-z]``,
``[^a-z]``, and a backslash before a character that stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ANY_RUN = b"*"
_ANY_ONE = b"?"


class Glob:
    """One pattern. ``matches`` gives the answer that Redis gives.

    Raises:
        ValueError: the pattern is empty, consists of wildcards alone, or has an open or empty
            ``[``; the message says which.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        tokens = list(_tokens(pattern.encode()))
        if not any(isinstance(token, frozenset) and len(token) == 1 for token in tokens):
            raise ValueError(f"{pattern!r} names no key: it has nothing but wildcards")
        self._regex = re.compile(_to_regex(_pieces(tokens)), re.DOTALL)

    def matches(self, key: bytes) -> bool:
        """Whether the pattern matches this key."""
        return self._regex.fullmatch(key) is not None


def literal(text: str) -> str:
    """The pattern that matches only this text."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


Token = bytes | frozenset[int]


def _tokens(pattern: bytes) -> Iterator[Token]:
    """The wildcards, and for any other place the set of bytes that it allows."""
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
        raise ValueError(f"{pattern.decode()!r} has a '[]' that no character matches")
    return frozenset(chosen), at + 1


def _pieces(tokens: list[Token]) -> list[list[Token]]:
    """The parts of the pattern before, between and behind the runs of ``*``."""
    pieces: list[list[Token]] = [[]]
    for token in tokens:
        if token == _ANY_RUN:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces


def _to_regex(pieces: list[list[Token]]) -> bytes:
    """A regular expression that looks for each piece once.

    The first match of a piece is always good enough, so the expression never tries another one
    (what Python 3.11 calls an atomic group). Otherwise a pattern with many ``*`` takes minutes.
    """
    first, *others = (b"".join(map(_regex_of_one, piece)) for piece in pieces)
    if not others:
        return first
    *between, last = others
    steps = (
        b"(?=(?P<p%d>.*?%b))(?P=p%d)" % (number, piece, number)
        for number, piece in enumerate(between)
    )
    return first + b"".join(steps) + b".*" + last


def _regex_of_one(token: Token) -> bytes:
    if isinstance(token, bytes):
        return b"."
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(token)) + b"]"
