"""What the broker says of empty queues: what counts, and that nothing is raised on the way."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest

from worker_guard.celery_internals import EmptyQueues


class Channel:
    """As much of kombu's as is heard; it takes messages of these queues."""

    def __init__(self, *queues: str) -> None:
        self.active_queues = set(queues)


def no_message(_channel: Any) -> None:
    raise Empty


class World:
    """A worker that takes messages from one queue, with the hooks as kombu calls them."""

    def __init__(self, *consumed: str) -> None:
        self.queues = {name: SimpleNamespace(name=name) for name in consumed}
        app = SimpleNamespace(
            amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=self.queues))
        )
        self.errors: list[Exception] = []
        self.heard = EmptyQueues(app, on_error=self.errors.append)
        self.ask: Callable[..., Any] = self.heard._hear_asked(lambda _channel: None)
        self.read: Callable[..., Any] = self.heard._hear_empty(no_message)
        self.size: Callable[..., Any] = self.heard._hear_size(lambda _channel, _queue: 0)

    def known(self) -> bool:
        return self.heard.empty_for_s() is not None

    def no_answer(self, channel: Channel) -> None:
        with pytest.raises(Empty):
            self.read(channel)


def test_an_answer_without_a_message_says_that_the_queue_is_empty() -> None:
    """Of the queues that were asked of, and not of one that was added while the channel waited."""
    world, channel = World("work"), Channel("answers")
    world.ask(channel)
    channel.active_queues.add("work")
    world.no_answer(channel)
    assert not world.known()
    world.ask(channel)
    assert not world.known()
    world.no_answer(channel)
    assert world.known()


def test_a_length_counts_where_the_channel_takes_messages() -> None:
    """Another one publishes, perhaps to a queue of that name on another server."""
    world, publishes, takes = World("work"), Channel(), Channel("work")
    world.size(publishes, "work")
    world.ask(publishes)
    assert not world.known()
    world.size(takes, "work")
    assert not world.known()
    world.ask(takes)
    assert world.known()


def test_each_queue_must_have_been_empty() -> None:
    """Whichever of them the message came from."""
    world, channel = World("work", "more"), Channel("work")
    world.ask(channel)
    world.no_answer(channel)
    assert not world.known()


def test_what_goes_wrong_is_told_and_raises_nothing() -> None:
    """The hooks stand in the way of the application's messages."""
    world = World("work")
    for call in (world.ask, lambda channel: world.size(channel, "work")):
        call(None)  # no channel: it can't be a key there
    world.no_answer(Channel("work"))
    assert [type(error) for error in world.errors] == [AttributeError, TypeError]


def test_a_child_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits the hooks, and publishes."""
    world, channel = World("work"), Channel("work")
    monkeypatch.setattr("os.getpid", lambda: 1)
    world.ask(channel)
    world.no_answer(channel)
    assert not world.known()
