"""Loads the answer of ``inspect guard`` into the classes of ``status_model``. Pure.

The answer comes from another process, perhaps of another release: a field that is missing or null
has its default, a field that this release does not know is ignored, and a value of the wrong type
makes the whole answer a broken one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from worker_guard.errors import WorkerGuardError
from worker_guard.status_model import GuardStatus

T = TypeVar("T")

_ROOT = "the answer"

_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    Mapping: "an object",
}


class BrokenReplyError(WorkerGuardError):
    """A worker answered with something that is not the status of a guard.

    Another program answers under that name, or a release of worker_guard that this one can't read.
    """


def load_status(answer: object) -> GuardStatus:
    """The status that this answer holds.

    Raises:
        BrokenReplyError: the answer is not the status of a guard. The error names the field.
    """
    try:
        # What can't be printed as JSON is refused: JSON has no NaN and no bytes.
        json.dumps(answer, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise BrokenReplyError(f"{_short(answer)} is not JSON ({exc})") from exc
    return _object(GuardStatus, answer, "")


def _object(kind: type[T], given: object, path: str) -> T:
    found = _checked(Mapping, given, path)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = found.get(field.name)
        if value is not None:
            inner = f"{path}.{field.name}" if path else field.name
            values[field.name] = _value(hints[field.name], value, inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise BrokenReplyError(f"{path or _ROOT} has no {field.name}: {_short(given)}")
    return kind(**values)


def _value(hint: Any, given: object, path: str) -> object:
    """This value, which is not null, as the type hint has it."""
    arguments = get_args(hint)
    if NoneType in arguments:
        (hint,) = (argument for argument in arguments if argument is not NoneType)
        return _value(hint, given, path)
    if get_origin(hint) is tuple:
        # A tuple if the workers' messages are pickled.
        items = given if isinstance(given, tuple) else _checked(list, given, path)
        return tuple(_value(arguments[0], item, f"{path}[{n}]") for n, item in enumerate(items))
    if get_origin(hint) is Mapping:
        return {
            str(name): _value(arguments[1], value, f"{path}[{_short(name)}]")
            for name, value in _checked(Mapping, given, path).items()
            if value is not None
        }
    if isinstance(hint, type) and is_dataclass(hint):
        return _object(hint, given, path)
    return float(_checked(float, given, path)) if hint is float else _checked(hint, given, path)


def _checked(kind: Any, given: object, path: str) -> Any:
    """The value itself, if it is of this kind."""
    allowed = (int, float) if kind is float else kind
    # A bool is an int to Python, but not to JSON.
    if isinstance(given, allowed) and isinstance(given, bool) == (kind is bool):
        return given
    raise BrokenReplyError(f"{path or _ROOT} is not {_NAMES[kind]}: {_short(given)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
