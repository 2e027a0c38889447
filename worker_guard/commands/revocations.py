"""``celery guard revoke`` and ``celery guard unrevoke``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import click

from worker_guard import celery_internals
from worker_guard.commands.console import (
    EX_OK,
    EX_TROUBLE,
    EX_UNAVAILABLE,
    failed,
    naming,
    reason,
    say,
    set_up_django,
)
from worker_guard.commands.server_names import Server, broker, result_backend
from worker_guard.commands.status.asking import BROKER_S, Workers, ask_once
from worker_guard.commands.status.view import Answers, is_unknown_command
from worker_guard.results.backend import TIMEOUT_S, backend_of
from worker_guard.revoked.batches import batches
from worker_guard.revoked.record import Made, Record, RecordUnavailableError, open_record
from worker_guard.settings import Settings, read_settings
from worker_guard.values.counts import count, some
from worker_guard.values.moments import to_the_minute
from worker_guard.values.source import Way

#: Ids of one message to the workers. From Celery 5.6 on, a worker asks the result backend about
#: each of them, and does nothing else meanwhile.
CHUNK = 250

#: Seconds for a worker that just answered a ping to answer one message.
ANSWER_S = 10.0

#: Seconds to wait after each further message if no worker answered the first one.
_UNHEARD_S = 0.1

_READ_LATER = "guarded workers read the record when they start or reconnect"

_TAKEN_BACK = re.compile(r"taken back: (\d+)")

_NO_GUARD = "it has no guard, so it keeps what it holds until it is restarted"


def the_record(app: Any, settings: Settings) -> Record:
    """The record of this app. Connects to nothing yet.

    Raises:
        RecordUnavailableError: its result backend can't hold one.
        BackendUnreadableError: the URL of its result backend is invalid.
    """
    return open_record(
        backend_of(app), lifetime_s=settings.revocation_lifetime, timeout_s=TIMEOUT_S
    )


def run_revoke(app: Any, task_ids: Sequence[str], *, terminate: bool, timeout_s: float) -> int:
    """Put these tasks on record as revoked, tell the workers, and return the exit code.

    If the record can't be written, the workers are told all the same.
    """
    command = _RevocationCommand(app, "revoke", task_ids, timeout_s)
    settings = command.settings()
    if settings is None:
        return command.code
    on_record = command.put(settings, Way.TERMINATE if terminate else Way.REVOKE)
    heard = command.tell({"terminate": terminate}, on_record=on_record)
    if heard:
        click.echo(f"Heard by {count(len(heard), 'worker')}: {some(heard)}")
    for name, answers in heard.items() if terminate else ():
        if ids := _terminated(answers):
            click.echo(f"{name} terminates: {ids}")
    return command.code


def run_unrevoke(app: Any, task_ids: Sequence[str], *, timeout_s: float) -> int:
    """Take the revocations of these tasks back, on record and in the workers; the exit code.

    If the record can't be reached, no worker is told: the record would bring them back.
    """
    command = _RevocationCommand(app, "unrevoke", task_ids, timeout_s, remote="guard_unrevoke")
    settings = command.settings()
    if settings is None:
        return command.code
    on_record = command.take_back(settings)
    if on_record is None:
        return command.code
    heard = command.tell({}, on_record=on_record)
    if heard and on_record:
        command.take_back_again(settings)
    if heard:
        left = (f"{name} ({_left(answers)})" for name, answers in heard.items())
        click.echo(f"Taken out of the sets of {count(len(heard), 'worker')}: {some(left)}")
    return command.code


class _RevocationCommand:
    """One run of a command, and its exit code so far. ``remote`` is what it asks the workers."""

    def __init__(
        self, app: Any, name: str, task_ids: Sequence[str], timeout_s: float, *, remote: str = ""
    ) -> None:
        self._app, self._task_ids, self._timeout_s = app, task_ids, timeout_s
        self._name, self._remote = name, remote or name
        self.code = EX_OK

    def settings(self) -> Settings | None:
        """The guard's settings; None if they can't be read, after printing why."""
        try:
            set_up_django()
            return read_settings(self._app.conf)
        except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
            self._failed(exc, naming(self._app, self._name), result_backend)
        return None

    def put(self, settings: Settings, way: Way) -> bool:
        """Put all ids on record. If that fails, print how many are."""
        done = 0
        try:
            record = the_record(self._app, settings)
            for chunk in batches(self._task_ids, CHUNK):
                done += len(chunk) - len(record.put(dict.fromkeys(chunk, Made(way, 0.0))))
            until = self._until(settings.revocation_lifetime)
        except RecordUnavailableError as exc:
            say(f"Not on record: {reason(exc)}; only the workers that hear it now hold it")
            return False
        except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
            self._failed(exc, f"; {self._of_all(done)} on record", result_backend)
            return False
        click.echo(f"On record: {count(done, 'task')}, {until}")
        if done < len(self._task_ids):
            # The server's clock went back, or another command takes them back meanwhile.
            self._trouble(f"{len(self._task_ids) - done} not on record: they were just taken back")
        return True

    def take_back(self, settings: Settings) -> bool | None:
        """Take all ids back on record; False if there is no record, None if that fails."""
        done = stood = 0
        try:
            record = the_record(self._app, settings)
            client = self._client()
            for chunk in batches(self._task_ids, CHUNK):
                with client.pipeline(transaction=False) as pipe:
                    record.ask_standing(pipe, chunk)
                    stood += len(record.read_standing(chunk, *pipe.execute())[0])
                record.take_back(chunk)
                done += len(chunk)
        except RecordUnavailableError as exc:
            say(
                f"There is no record: {reason(exc)}; a worker that misses this, or has no guard, "
                "can bring a revocation back"
            )
            return False
        except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
            hint = f"; {self._of_all(done)} taken back on record, and no worker was told"
            self._failed(exc, hint, result_backend)
            return None
        click.echo(f"Taken back: {count(done, 'task')}, {stood} of them on record")
        return True

    def take_back_again(self, settings: Settings) -> None:
        """A busy worker can hear of a revoke late, and record it after it was taken back."""
        try:
            record = the_record(self._app, settings)
            for chunk in batches(self._task_ids, CHUNK):
                record.take_back(chunk)
        except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
            self._failed(exc, "", result_backend)

    def tell(self, arguments: Mapping[str, object], *, on_record: bool) -> dict[str, list[str]]:
        """Tell all workers, and print what went wrong; the answers of those that heard all ids."""
        telling = _Telling(self._app, self._remote, self._task_ids, arguments, self._timeout_s)
        hint = naming(self._app, self._name)
        try:
            answers = ask_once(telling, limit_s=telling.limit_s)
        except Exception as exc:  # noqa: BLE001 - one line, and the exit code for its kind
            self._failed(exc, (f"; {_READ_LATER}" if on_record else "") + hint, broker)
            return {}
        nobody = f"No worker answered within {self._timeout_s:g} s"
        if on_record and not answers.present and not answers.replies:
            click.echo(f"{nobody}; {_READ_LATER}")
        elif not answers.present and not answers.replies:
            say(f"{nobody}; --timeout waits longer{hint}")
            self.code = max(self.code, EX_UNAVAILABLE)
        heard = {}
        for name, said in sorted(_by_worker(answers).items()):
            if fault := telling.fault(said):
                self._trouble(f"{name}: {fault}")
            else:
                heard[name] = [str(answer["ok"]) for answer in said if isinstance(answer, Mapping)]
        return heard

    def _until(self, lifetime_s: float | None) -> str:
        if lifetime_s is None:
            return "for ever"
        seconds, _microseconds = self._client().time()
        return f"until {to_the_minute(seconds + lifetime_s)} UTC"

    def _client(self) -> Any:
        return celery_internals.results_client(backend_of(self._app), TIMEOUT_S)

    def _of_all(self, done: int) -> str:
        total = len(self._task_ids)
        return f"{done} of {count(total, 'task')} {'is' if total == 1 else 'are'}"

    def _failed(self, exc: Exception, hint: str, server: Callable[[Any], Server]) -> None:
        self.code = max(self.code, failed(exc, hint, server=server(self._app)))

    def _trouble(self, line: str) -> None:
        say(line)
        self.code = max(self.code, EX_TROUBLE)


class _Telling(Workers):
    """Tells all workers, in messages of :data:`CHUNK` ids each.

    Also those that answered no ping: a solo worker hears it when its task ends.
    """

    def __init__(
        self,
        app: Any,
        remote: str,
        task_ids: Sequence[str],
        arguments: Mapping[str, object],
        timeout_s: float,
    ) -> None:
        super().__init__(app, destination=(), timeout_s=timeout_s)
        self._remote, self._task_ids, self._arguments = remote, task_ids, arguments
        self._answer_s = max(timeout_s, ANSWER_S)
        self._messages = ceil(len(task_ids) / CHUNK)
        self.limit_s = 3 * BROKER_S + 4 * timeout_s + self._messages * self._answer_s

    def _states(self, present: Sequence[str]) -> list[tuple[str, object]]:
        replies: list[tuple[str, object]] = []
        awaited, unheard_s = list(present), self._timeout_s
        for chunk in batches(self._task_ids, CHUNK):
            found = self._broadcast(
                self._remote,
                [],
                limit=len(awaited),
                awaited=awaited,
                arguments={"task_id": chunk, **self._arguments},
                timeout_s=self._answer_s if awaited else unheard_s,
            )
            replies += found
            # A worker that is gone is not waited for each time.
            awaited, unheard_s = [name for name, _ in found], _UNHEARD_S
        return replies

    def fault(self, said: Sequence[object]) -> str:
        """What is wrong with a worker's answers; ``""`` if it heard all messages."""
        for answer in said:
            if is_unknown_command(answer):
                return _NO_GUARD
            if not isinstance(answer, Mapping) or "ok" not in answer:
                error = answer.get("error") if isinstance(answer, Mapping) else answer
                return f"{error!s:.200}"
        if len(said) < self._messages:
            late = f"no answer within {self._answer_s:g} s"
            return f"{late} to {self._messages - len(said)} of {count(self._messages, 'message')}"
        return ""


def _by_worker(answers: Answers) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {name: [] for name in answers.present}
    for name, answer in answers.replies:
        found.setdefault(name, []).append(answer)
    return found


def _terminated(answers: Sequence[str]) -> str:
    """The ids that a worker terminates, by its answers (``Panel``'s ``revoke``)."""
    texts = (answer.removeprefix("terminate: ") for answer in answers)
    ids = [each for text in texts if text != "tasks unknown" for each in text.split(", ")]
    return some(ids)


def _left(answers: Sequence[str]) -> int:
    """How many ids were in a worker's set, by its answers."""
    return sum(int(found[1]) for answer in answers if (found := _TAKEN_BACK.match(answer)))
