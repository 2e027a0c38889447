"""Asks the workers for the status of their guards, by remote control, in bounded time."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from kombu.exceptions import OperationalError

from worker_guard import celery_internals
from worker_guard.commands.console import reason, say
from worker_guard.commands.server_names import broker
from worker_guard.commands.status.terminal import ending_in_order
from worker_guard.commands.status.view import Answers, is_unknown_command
from worker_guard.errors import WorkerGuardError

#: Seconds after which a broker that does not connect or answer counts as unreachable.
BROKER_S = 5.0

#: Rounds until a worker without the command is asked again: each time, it logs an error with a
#: traceback.
SPARED_ROUNDS = 30

#: The options by which kombu's transports bound a wait on their socket. Others have only the
#: connect timeout.
_SOCKET_OPTIONS = {
    "redis": ("socket_timeout", "socket_connect_timeout"),
    "amqp": ("read_timeout", "write_timeout"),
}


class BrokerUnusableError(WorkerGuardError):
    """The broker that the app names can't be used to ask workers; the message says why.

    Correct ``broker_url``, or install what its transport needs.
    """


class Workers:
    """The workers behind an app's broker: those that ``destination`` names, or all.

    ``timeout_s`` is how long to wait for one more answer. ``farewells``: hear also of workers that
    shut down. One connection serves all rounds; a broken one is replaced in the next round. Use it
    from one thread, except for :meth:`stop`.
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
        """Ask once which workers are there, and each of these for its status.

        Raises:
            kombu.exceptions.OperationalError: the broker can't be reached.
            BrokerUnusableError: the app's broker can't be used to ask workers.
        """
        try:
            return self._ask()
        except celery_internals.QuestionEndedError:
            raise
        except Exception:
            self._disconnect()
            raise

    def stop(self) -> None:
        """End the current round, and any later one. Any thread may call this."""
        self._mailbox.end_question()

    def close(self) -> None:
        """Remove what the questions left in the broker, and release the connection.

        Raises:
            Exception: the broker can't be reached, so something may be left there.
        """
        mailbox = self._mailbox
        try:
            if mailbox.leaves_something:
                try:
                    mailbox.clear(self._connected())
                except Exception:  # noqa: BLE001 - the connection may be stale: try another
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
        """What the guards answer. A worker that has no such command is not asked each time."""
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

    def _broadcast(
        self,
        command: str,
        to: list[str],
        *,
        limit: int,
        timeout_s: float | None = None,
        arguments: Mapping[str, object] | None = None,
        awaited: Collection[str] = (),
    ) -> list[tuple[str, object]]:
        # With the limit, the wait ends as soon as all have answered.
        replies = self._mailbox.ask(
            self._connection,
            command,
            arguments=arguments,
            to=to,
            limit=limit or None,
            awaited=awaited,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
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
                # Without its text, which may quote a part of a password.
                raise self._unusable("it is not a URL that can be read") from None
            except Exception as exc:
                raise self._unusable(reason(exc)) from exc
            try:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_S)
            except known_errors as exc:
                raise OperationalError(str(exc) or type(exc).__name__) from exc
            except ValueError as exc:
                # No server was asked: an option is missing or wrong.
                raise self._unusable(reason(exc)) from exc
            self._connection = connection
        return self._connection

    def _unusable(self, why: str) -> BrokerUnusableError:
        return BrokerUnusableError(f"The broker can't be used: {broker(self._app)}: {why}")

    def _bound_waits(self) -> None:
        """Bound each wait of this process on the broker, also on Celery's own connections.

        Celery publishes control commands on a connection of the app's pool. That one has the app's
        configuration, with which kombu retries for ever.
        """
        conf = self._app.conf
        with self._app.connection_for_write() as connection:
            names = _SOCKET_OPTIONS.get(connection.transport.driver_type, ())
        bounds = {**dict.fromkeys(names, BROKER_S), "max_retries": 1, "interval_start": 0}
        conf.broker_transport_options = {**(conf.broker_transport_options or {}), **bounds}
        conf.broker_connection_timeout = BROKER_S


class Asker(Protocol):
    """Asks the workers. Another thread may call ``stop``."""

    def ask(self) -> Answers:
        """Ask once."""

    def stop(self) -> None:
        """End the current round."""

    def close(self) -> None:
        """Leave nothing behind."""


class Asked:
    """Asks on a thread of its own, so that a hanging broker does not hang the terminal.

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
        """Ask now; False if the last round is still under way."""
        if self._under_way:
            return False
        self._under_way = True
        self._wanted.put(True)
        return True

    def outcome(self, timeout_s: float) -> Answers | None:
        """The answers, within so many seconds; None if the round is still under way.

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
        """End the current round and leave nothing behind; wait at most so many seconds.

        Raises:
            Exception: the broker can't be reached, so something may be left there.
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
        except Exception as exc:  # noqa: BLE001 - raised by outcome()
            return exc


def ask_once(workers: Workers, *, limit_s: float) -> Answers:
    """Ask once, for ``limit_s`` seconds at most, and leave nothing in the broker.

    Raises:
        Exception: the broker is away, or can't be used to ask workers.
    """
    with ending_in_order():
        asked = Asked(workers)
        try:
            asked.begin()
            answers = asked.outcome(limit_s)
        finally:
            try:
                asked.end(BROKER_S + 1.0)
            except Exception as exc:  # noqa: BLE001 - said; the answers count all the same
                say(f"The broker is away, so a reply queue may be left in it: {reason(exc)}")
    if answers is None:
        raise OperationalError(f"the broker did not answer within {limit_s:g} s")
    return answers
