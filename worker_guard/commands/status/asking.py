"""Asks the workers for the state of their guards, by remote control, in bounded time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kombu.exceptions import OperationalError

from worker_guard import celery_internals
from worker_guard.commands.console import reason
from worker_guard.commands.server_names import broker
from worker_guard.commands.status.view import Answers, is_unknown_command
from worker_guard.errors import WorkerGuardError

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

    ``timeout_s`` is how long to wait for one more answer. ``farewells``: hear of workers that shut
    down, too. One connection serves all rounds; one that broke is replaced in the next round. To
    be used from one thread, but for :meth:`stop`.
    """

    def __init__(
        self, app: Any, *, destination: Sequence[str], timeout_s: float, farewells: bool = False
    ) -> None:
        self._app = app
        self._destination = list(dict.fromkeys(destination))
        self._timeout_s = timeout_s
        self._hears_farewells = farewells
        self._connection: Any = None
        self._mailbox = celery_internals.Mailbox(app)
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
        except celery_internals.QuestionEndedError:
            raise
        except Exception:
            self._disconnect()
            raise

    def stop(self) -> None:
        """End the round that is under way, and any later one. From any thread."""
        self._mailbox.end_question()

    def close(self) -> None:
        """Take away what the questions left in the broker, and give the connection back.

        Raises:
            Exception: the broker is away, so that something may be left there.
        """
        mailbox = self._mailbox
        try:
            if mailbox.leaves_something:
                try:
                    mailbox.clear(self._connected())
                except Exception:  # noqa: BLE001 - the connection may be stale: once more by another
                    self._disconnect()
                    mailbox.clear(self._connected())
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # It may be broken, and nothing is lost with it.
            with contextlib.suppress(Exception):
                connection.release()

    def _ask(self) -> Answers:
        is_new = self._connection is None
        connection = self._connected()
        known_errors = (*connection.connection_errors, *connection.channel_errors)
        try:
            if is_new and self._hears_farewells:
                self._mailbox.listen(connection)
            heard = self._broadcast("ping", self._destination, limit=len(self._destination))
            present = [name for name, _pong in heard]
            replies = self._states(present)
        except known_errors as exc:
            raise OperationalError(str(exc) or type(exc).__name__) from exc
        return Answers(
            present=present, replies=replies, asked=self._destination, left=self._mailbox.gone()
        )

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
        replies = self._mailbox.ask(
            self._connection, command, to=to, limit=limit or None, timeout_s=self._timeout_s
        )
        pairs = (reply.items() for reply in replies if isinstance(reply, Mapping))
        return [(str(name), answer) for pair in pairs for name, answer in pair]

    def _connected(self) -> Any:
        if self._connection is None:
            try:
                self._bound_waits()
                connection = self._app.connection_for_write()
                known_errors = (*connection.connection_errors, *connection.channel_errors)
            except ValueError:
                # Without what it says: that may quote a piece of a password.
                raise self._unusable("it is not a URL that can be read") from None
            except Exception as exc:
                raise self._unusable(reason(exc)) from exc
            try:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_S)
            except known_errors as exc:
                raise OperationalError(str(exc) or type(exc).__name__) from exc
            except ValueError as exc:
                # No server was asked: an option is missing, or can't be what it is.
                raise self._unusable(reason(exc)) from exc
            self._connection = connection
        return self._connection

    def _unusable(self, why: str) -> BrokerUnusableError:
        return BrokerUnusableError(f"The broker can't be used: {broker(self._app)}: {why}")

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


class Asker(Protocol):
    """Who asks; its ``stop`` may be called from another thread."""

    def ask(self) -> Answers:
        """Ask once."""

    def stop(self) -> None:
        """End the round that is under way."""

    def close(self) -> None:
        """Leave nothing behind."""


class Asked:
    """Asks on a thread of its own, so that nothing that hangs in it hangs a terminal.

    The thread does not keep the process alive.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Answers | Exception] = queue.SimpleQueue()
        self._under_way = False
        self._closing_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self) -> bool:
        """Ask now; False: the round before is still under way."""
        if self._under_way:
            return False
        self._under_way = True
        self._wanted.put(True)
        return True

    def outcome(self, timeout_s: float) -> Answers | None:
        """What was answered, within so many seconds; None: the round is still under way.

        Raises:
            Exception: what asking raised.
        """
        try:
            outcome = self._outcomes.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._under_way = False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def end(self, timeout_s: float) -> None:
        """End a round that is under way, and leave nothing behind; for so many seconds at most.

        Raises:
            Exception: the broker is away, so that something may be left there.
        """
        self._asker.stop()
        self._wanted.put(False)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise OperationalError(f"it did not answer within {timeout_s:g} s")
        if self._closing_error is not None:
            raise self._closing_error

    def _run(self) -> None:
        while self._wanted.get():
            self._outcomes.put(self._outcome())
        try:
            self._asker.close()
        except Exception as exc:  # noqa: BLE001 - raised by end()
            self._closing_error = exc

    def _outcome(self) -> Answers | Exception:
        try:
            return self._asker.ask()
        except Exception as exc:  # noqa: BLE001 - handed to whoever waits for the outcome
            return exc
