"""Asks the workers for the state of their guards, by remote control, in bounded time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kombu.exceptions import OperationalError

from worker_guard.errors import WorkerGuardError
from worker_guard.status.view import Answers, is_unknown_command

#: A broker that takes longer to connect, or to answer one command, is one that can't be reached.
BROKER_S = 5.0

#: A worker that knew no such command is asked again after so many rounds: each time costs it an
#: error with a traceback in its log.
SPARED_ROUNDS = 30

#: How kombu's transports bound one wait on their socket; others go by the connect timeout alone.
_SOCKET_OPTIONS = {
    "redis": ("socket_timeout", "socket_connect_timeout"),
    "amqp": ("read_timeout", "write_timeout"),
}


class BrokerUnusableError(WorkerGuardError):
    """The workers can't be asked over the broker that the app names; the message says why.

    Correct ``broker_url``, or install what its transport needs.
    """


class Workers:
    """The workers behind an app's broker; ``destination`` names some of them, else all.

    ``timeout_s`` is how long to wait for one more answer. One connection serves all rounds; one
    that broke is replaced in the next round. To be used from one thread.
    """

    def __init__(self, app: Any, *, destination: Sequence[str], timeout_s: float) -> None:
        self._app = app
        self._destination = list(dict.fromkeys(destination))
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._spared: dict[str, object] = {}
        self._rounds = 0

    def ask(self) -> Answers:
        """Ask once who is there, and each of these for its state.

        Raises:
            kombu.exceptions.OperationalError: the broker can't be reached.
            BrokerUnusableError: the app's broker is one that nobody can be asked over.
        """
        try:
            return self._ask()
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # It may be broken, and nothing is lost with it.
            with contextlib.suppress(Exception):
                connection.release()

    def _ask(self) -> Answers:
        connection = self._connected()
        known_errors = (*connection.connection_errors, *connection.channel_errors)
        try:
            heard = self._broadcast("ping", self._destination, limit=len(self._destination))
            present = [name for name, _pong in heard]
            replies = self._states(present)
        except known_errors as exc:
            raise OperationalError(str(exc) or type(exc).__name__) from exc
        return Answers(present=present, replies=replies, asked=self._destination)

    def _states(self, present: Sequence[str]) -> list[tuple[str, object]]:
        """What the guards say; a worker that had no such command is not asked each time."""
        if self._rounds % SPARED_ROUNDS == 0:
            self._spared = {}
        self._rounds += 1
        spared = [(name, self._spared[name]) for name in present if name in self._spared]
        asked = [name for name in present if name not in self._spared]
        if not asked:
            return spared
        replies = self._broadcast("guard", list(dict.fromkeys(asked)), limit=len(asked))
        self._spared.update((name, reply) for name, reply in replies if is_unknown_command(reply))
        return [*replies, *spared]

    def _broadcast(self, command: str, to: list[str], *, limit: int) -> list[tuple[str, object]]:
        # All answers are there as soon as their number is; so nobody is waited for any longer.
        replies = self._app.control.broadcast(
            command,
            reply=True,
            destination=to or None,
            limit=limit or None,
            timeout=self._timeout_s,
            connection=self._connection,
        )
        pairs = (reply.items() for reply in replies or () if isinstance(reply, Mapping))
        return [(str(name), answer) for pair in pairs for name, answer in pair]

    def _connected(self) -> Any:
        if self._connection is None:
            try:
                self._bound_waits()
                connection = self._app.connection_for_write()
                known_errors = (*connection.connection_errors, *connection.channel_errors)
            except Exception as exc:
                raise BrokerUnusableError(f"The broker of this app can't be used: {exc}") from exc
            try:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_S)
            except known_errors as exc:
                raise OperationalError(str(exc) or type(exc).__name__) from exc
            except ValueError as exc:
                # No server was asked: an option is missing, or can't be what it is.
                raise BrokerUnusableError(f"The broker of this app can't be used: {exc}") from exc
            self._connection = connection
        return self._connection

    def _bound_waits(self) -> None:
        """Bound each wait of this process on the broker, also those of Celery's own connections.

        Control commands are published by a connection of the app's pool, which has the app's
        configuration and no other, and in which kombu would try again for ever.
        """
        conf = self._app.conf
        with self._app.connection_for_write() as connection:
            names = _SOCKET_OPTIONS.get(connection.transport.driver_type, ())
        bounds = {**dict.fromkeys(names, BROKER_S), "max_retries": 1, "interval_start": 0}
        conf.broker_transport_options = {**(conf.broker_transport_options or {}), **bounds}
        conf.broker_connection_timeout = BROKER_S


class Asked:
    """Calls a function on a thread of its own, so that nothing that hangs in it hangs a terminal.

    The thread does not keep the process alive.
    """

    def __init__(self, ask: Callable[[], Answers]) -> None:
        self._ask = ask
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Answers | Exception] = queue.SimpleQueue()
        self._under_way = False
        threading.Thread(target=self._run, daemon=True).start()

    def begin(self) -> bool:
        """Call it now; False: the call before is still under way."""
        if self._under_way:
            return False
        self._under_way = True
        self._wanted.put(None)
        return True

    def outcome(self, timeout_s: float) -> Answers | None:
        """What it returned, within so many seconds; None: it is still under way.

        Raises:
            Exception: what it raised.
        """
        try:
            outcome = self._outcomes.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._under_way = False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _run(self) -> None:
        while True:
            self._wanted.get()
            try:
                self._outcomes.put(self._ask())
            except Exception as exc:  # noqa: BLE001 - handed to whoever waits for the outcome
                self._outcomes.put(exc)
