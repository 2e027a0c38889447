"""Functions of Celery that the guard wraps, and puts back when it stops.

Relies on: nothing itself; each caller says what it wraps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from worker_guard.errors import WorkerGuardError

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class MissingInternalError(WorkerGuardError):
    """This Celery release lacks an attribute that a part of the guard relies on.

    That part is off; the others work. Report the release to the project.
    """


class Namespace(MutableMapping[str, Any]):
    """The attributes of an object or class itself, without inherited ones, as a mapping."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return vars(self._owner)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self._owner))

    def __len__(self) -> int:
        return len(vars(self._owner))


class Hook:
    """A function wrapped in place, and put back by :meth:`undo`.

    If other code has wrapped it again meanwhile, the hook stays in place and only passes calls on.
    """

    def __init__(self, place: MutableMapping[Any, Any], name: Any, wrap: Wrap) -> None:
        self._place, self._name = place, name
        self._owned = name in place
        before = place.get(name)
        if before is None and isinstance(place, Namespace):
            before = getattr(place._owner, name, None)
        if before is None:
            raise MissingInternalError(f"this Celery release has no {name!r} to hook into")
        self._before = before
        self._active = True
        wrapped = wrap(before)

        @functools.wraps(before)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            return (wrapped if self._active else before)(*args, **kwargs)

        self._hooked = hooked
        place[name] = hooked

    def undo(self) -> None:
        """Put the original function back."""
        self._active = False
        if self._place.get(self._name) is not self._hooked:
            return
        if self._owned:
            self._place[self._name] = self._before
        else:
            del self._place[self._name]
