"""A Redis in memory, with the commands that the records of the guard use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError


class FakeRedis:
    """Strings, sorted sets and hashes; ``monotonic`` is its clock. Keys don't end by themselves."""

    def __init__(self, kept: dict[str, Any], monotonic: Callable[[], float]) -> None:
        self.kept = kept
        self.down: Callable[[], bool] = lambda: False
        self.asked = 0
        self._monotonic = monotonic
        self.connection_pool = SimpleNamespace(connection_kwargs={}, max_connections=10)

    def pipeline(self, transaction: bool = True) -> Any:
        return _Pipeline(self)

    def time(self) -> tuple[int, int]:
        now = self._now()
        return int(now), int(now % 1 * 1e6)

    def get(self, key: Any) -> Any:
        self._now()
        return self.kept.get(_text(key))

    def mget(self, keys: Sequence[Any]) -> list[Any]:
        return [self.get(key) for key in keys]

    def getrange(self, key: Any, start: int, end: int) -> bytes:
        value = self.get(key) or b""
        return (value.encode() if isinstance(value, str) else value)[start : end + 1]

    def set(self, key: Any, value: Any, px: int | None = None) -> None:
        self._now()
        self.kept[_text(key)] = value

    def pttl(self, key: Any) -> int:
        return -2 if self.get(key) is None else 1000

    def pexpire(self, key: Any, ttl_ms: int) -> None:
        """Keys don't end here."""

    def persist(self, key: Any) -> None:
        """Keys don't end here."""

    def zadd(self, key: Any, mapping: Mapping[Any, float], gt: bool = False) -> None:
        members = self._at(key)
        for member, score in mapping.items():
            known = members.get(member)
            members[member] = score if known is None or not gt else max(score, known)

    def zmscore(self, key: Any, members: Sequence[Any]) -> list[float | None]:
        return [self._at(key).get(member) for member in members]

    def zcard(self, key: Any) -> int:
        return len(self._at(key))

    def zscan(
        self, key: Any, cursor: int = 0, count: int = 10
    ) -> tuple[int, list[tuple[Any, float]]]:
        found = sorted(self._at(key).items())[cursor : cursor + count]
        return (cursor + count if len(found) == count else 0), found

    def zrevrange(
        self, key: Any, start: int, end: int, withscores: bool = False
    ) -> list[tuple[Any, float]]:
        found = sorted(self._at(key).items(), key=lambda each: each[1], reverse=True)
        return found[start : end + 1]

    def zrangebyscore(
        self, key: Any, low: Any, high: Any, start: int = 0, num: int | None = None
    ) -> list[Any]:
        found = [m for m, score in self._at(key).items() if float(low) <= score <= float(high)]
        return found[start:] if num is None else found[start : start + num]

    def zremrangebyscore(self, key: Any, low: Any, high: Any) -> None:
        self.zrem(key, *self.zrangebyscore(key, low, high))

    def zrem(self, key: Any, *members: Any) -> None:
        for member in members:
            self._at(key).pop(member, None)

    def hset(self, key: Any, mapping: Mapping[Any, str]) -> None:
        self._at(key).update({field: value.encode() for field, value in mapping.items()})

    def hmget(self, key: Any, fields: Sequence[Any]) -> list[Any]:
        return [self._at(key).get(field) for field in fields]

    def hdel(self, key: Any, *fields: Any) -> None:
        self.zrem(key, *fields)

    def _at(self, key: Any) -> dict[Any, Any]:
        self._now()
        members: dict[Any, Any] = self.kept.setdefault(_text(key), {})
        return members

    def _now(self) -> float:
        self.asked += 1
        if self.down():
            raise RedisConnectionError("the result backend is down")
        return self._monotonic()


class _Pipeline:
    """Runs each command at once, and hands the answers out together."""

    def __init__(self, server: FakeRedis) -> None:
        self._server = server
        self._answers: list[Any] = []
        self._now = False

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def watch(self, *_: Any) -> None:
        self._now = True

    def multi(self) -> None:
        self._now = False

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers, self._answers = self._answers, []
        return answers

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._server, name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = command(*args, **kwargs)
            if self._now:
                return answer
            self._answers.append(answer)
            return self

        return ask


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
