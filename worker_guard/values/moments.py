"""Moments for people and for JSON, in UTC."""

from __future__ import annotations

from datetime import datetime, timezone


def to_the_minute(epoch_s: float) -> str:
    """``2026-11-22 23:13``, from seconds of the Unix epoch."""
    return f"{_utc(epoch_s):%Y-%m-%d %H:%M}"


def rfc3339(epoch_s: float) -> str:
    """``2026-11-22T23:13:56.587487Z``, from seconds of the Unix epoch."""
    return f"{_utc(epoch_s):%Y-%m-%dT%H:%M:%S.%fZ}"


def _utc(epoch_s: float) -> datetime:
    try:
        return datetime.fromtimestamp(epoch_s, timezone.utc)
    except (ValueError, OverflowError, OSError):
        # A lifetime of thousands of years: no calendar has its end.
        return datetime.max.replace(tzinfo=timezone.utc)
