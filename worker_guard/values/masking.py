"""Text without the passwords that URLs hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Passwords of URLs that an error quotes: before the host, or as a parameter. ``_HOST`` finds
#: the rest of one if the text quotes only a piece of the URL, as for a slash in the password.
_PASSWORD = re.compile(r"(?<=://)([^\s:/@]*):\S+(?=@)")
_HOST = re.compile(r"(?<![^\s'\"])(?![^\s'\"]*://)[^\s'\"]+@(?=[\w.\-\[\]]+:\d)")
_PARAMETER = re.compile(r"(?<=[?&]password=)[^&\s]+")


def masked(value: Any) -> Any:
    """The value with the passwords of URLs in it hidden."""
    if isinstance(value, str):
        return _HOST.sub("**@", _PARAMETER.sub("**", _PASSWORD.sub(r"\1:**", value)))
    if isinstance(value, Mapping):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def reason_of(error: BaseException) -> str:
    """The error's text without passwords; its ``repr`` if it has no text."""
    return str(masked(str(error) or repr(error)))
