"""Workers as values: Celery's own revoked set, requests and mingle, with and without the guard.

Each :class:`Process` has the module state of one worker process, and puts it in place while it
acts, so that several of them live in one process. What runs is Celery's own code, and the guard's;
only the network, the clock and the files are stand-ins.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import celery.utils.collections
from celery import Celery, signals
from celery.backends.base import KeyValueStoreBackend
from celery.utils.collections import LimitedSet
from celery.worker import control, request, state
from celery.worker.consumer.mingle import Mingle
from celery.worker.state import Persistent

from tests.harness.context import make_context
from worker_guard.events import Event
from worker_guard.revoked.part import RevokedPart
from worker_guard.scheduler import run_to_end
from worker_guard.settings import Settings
from worker_guard.status_model import RevokedStatus

#: So small that a flood of a few ids pushes others out.
REVOKES_MAX = 6
REVOKE_EXPIRES_S = 10_800.0
GRACE_S = 60.0

MARK = "worker-guard-operator-"
TASK = "model.task"


class Clock:
    """The time of all workers, and the ``time`` module of Celery's set meanwhile."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        """The time, in seconds; each look is a moment later, so that no two ids are as old."""
        self.now += 1e-6
        return self.now


class DictBackend(KeyValueStoreBackend):
    """A result backend in memory, that can be away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[str, Any] = {}
        self.down = False

    def get(self, key: Any) -> Any:
        self._check()
        return self.kept.get(self._text(key))

    def mget(self, keys: Any) -> Any:
        self._check()
        return [self.kept.get(self._text(key)) for key in keys]

    def set(self, key: Any, value: Any, **_: Any) -> None:
        self._check()
        self.kept[self._text(key)] = value

    def delete(self, key: Any) -> None:
        self._check()
        self.kept.pop(self._text(key), None)

    def marked(self, task_id: str) -> bool:
        """Whether the operator's mark of this id stands."""
        return self.kept.get(MARK + task_id) in (b"operator", "operator")

    def _check(self) -> None:
        if self.down:
            raise ConnectionError("the result backend is down")

    @staticmethod
    def _text(key: Any) -> str:
        return key.decode() if isinstance(key, bytes) else str(key)


def _task() -> None:
    """What is sent."""


def _make_app(backend: str) -> Any:
    app = Celery("model", set_as_current=False)
    app.conf.result_backend = backend
    app.task(name=TASK)(_task)
    app.finalize()
    return app


class Shelf(dict[str, Any]):
    """A statedb file."""

    def sync(self) -> None:
        """It is written by the assignment."""

    def close(self) -> None:
        """Nothing is open."""


class ModelMingle(Mingle):
    """Mingle without a network: the replies are those of the peers."""

    def __init__(self, peers: list[Process]) -> None:
        self._peers = peers

    def send_hello(self, c: Any) -> Any:
        """Say hello to each peer, with the ids as this release sends them."""
        ours = state.revoked
        sent = _over_the_wire(list(ours) if hasattr(state, "merge_revoked") else ours._data)
        return {peer.name: peer.answer_hello(c.hostname, sent) for peer in self._peers}


def _over_the_wire(value: Any) -> Any:
    return json.loads(json.dumps(value))


class Process:
    """One worker process, from its start to its end."""

    def __init__(
        self,
        name: str,
        app: Any,
        clock: Clock,
        *,
        guarded: bool,
        shelf: Shelf | None,
        applications: tuple[str, ...] = (),
    ) -> None:
        self.name, self.app, self.clock, self.shelf = name, app, clock, shelf
        self.revoked = LimitedSet(maxlen=REVOKES_MAX, expires=REVOKE_EXPIRES_S)
        self._maybe_expire = request.Request.__dict__["maybe_expire"]
        self._hello = control.Panel.data["hello"]
        self._receivers: list[Any] = []
        self.events: list[Event] = []
        self.guard: RevokedPart | None = None
        self._mingle = ModelMingle([])
        self._stand_in = SimpleNamespace(
            hostname=name,
            app=app,
            controller=SimpleNamespace(state=state),
            blueprint=SimpleNamespace(steps={"celery.worker.consumer.mingle.Mingle": self._mingle}),
            steps=[self._mingle],
        )
        self._worker = SimpleNamespace(app=self.app, consumer=self._stand_in, _persistence=None)
        with self.acting():
            self._start(guarded, applications)
        self.write_marks()

    def _start(self, guarded: bool, applications: tuple[str, ...]) -> None:
        for task_id in applications:  # as a handler of worker_init does
            state.revoked.add(task_id)
        before_statedb = frozenset(state.revoked)
        if self.shelf is not None:
            self._worker._persistence = _Persistent(self.shelf)
        if guarded:
            self.guard = RevokedPart(
                make_context(
                    self._worker,
                    Settings(revoked_grace=GRACE_S),
                    heard=self.events.append,
                    monotonic=self.clock.monotonic,
                    before_statedb=before_statedb,
                )
            )
            self.guard.start()

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Be this process: its module state is in place."""
        task_revoked = signals.task_revoked
        outer = (
            state.revoked,
            request.revoked_tasks,
            request.Request.__dict__["maybe_expire"],
            control.Panel.data["hello"],
            task_revoked.receivers,
            celery.utils.collections.time,
        )
        state.revoked = request.revoked_tasks = self.revoked
        request.Request.maybe_expire = self._maybe_expire
        control.Panel.data["hello"] = self._hello
        task_revoked.receivers = self._receivers
        celery.utils.collections.time = self.clock
        try:
            yield
        finally:
            self._maybe_expire = request.Request.__dict__["maybe_expire"]
            self._hello = control.Panel.data["hello"]
            self._receivers = task_revoked.receivers
            (
                state.revoked,
                request.revoked_tasks,
                request.Request.maybe_expire,
                control.Panel.data["hello"],
                task_revoked.receivers,
                celery.utils.collections.time,
            ) = outer

    # -- what a worker does ----------------------------------------------------------------

    def discards(self, task_id: str, *, expired: bool = False) -> bool:
        """Take a message; whether it was discarded. One that was not is run."""
        headers = {"id": task_id, "task": TASK, "timelimit": None}
        if expired:
            headers["expires"] = "2020-01-01T00:00:00+00:00"
        message = SimpleNamespace(
            headers=headers,
            body=b"",
            payload=((), {}, {}),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={},
            properties={"expiration": "1000"},
        )
        with self.acting():
            req = request.Request(message, app=self.app, task=self.app.tasks[TASK])
            try:
                discarded = bool(req.revoked())
            except ConnectionError:
                return True  # Celery could not store that it is discarded; it is not run
            if not discarded:
                with contextlib.suppress(ConnectionError):
                    self.app.backend.mark_as_done(task_id, None)
        self.write_marks()
        return discarded

    def hear_revoke(self, task_id: str, *, terminate: bool = False) -> None:
        """The remote command ``revoke``."""
        panel = SimpleNamespace(app=self.app, hostname=self.name, consumer=self._stand_in)
        with self.acting():
            control.revoke(panel, [task_id], terminate=terminate)
        self.write_marks()

    def answer_hello(self, hostname: str, revoked: Any) -> Any:
        """The remote command ``hello`` of a peer that starts."""
        panel = SimpleNamespace(app=self.app, hostname=self.name)
        with self.acting():
            reply = control.Panel.data["hello"](panel, hostname, revoked=revoked)
        self.write_marks()
        return _over_the_wire(reply)

    def say_hello(self, peers: list[Process]) -> None:
        """Mingle: hand out what this worker has, and take what the peers have."""
        self._mingle._peers = peers
        with self.acting():
            self._mingle.sync(self._stand_in)
        self.write_marks()

    def change_set(self, change: Any) -> None:
        """What the application's own code does to the set."""
        with self.acting():
            change(state.revoked)
        self.write_marks()

    def write_marks(self) -> None:
        """The guard writes a mark as soon as it can."""
        if self.guard is not None and self.guard._marker is not None:
            with self.acting(), contextlib.suppress(ConnectionError):
                run_to_end(self.guard._marker.run())

    def sweep(self) -> None:
        """The guard's timer fires."""
        if self.guard is not None:
            with self.acting():
                run_to_end(self.guard._sweeper.run())
            self.write_marks()

    def stop(self, *, cold: bool = False) -> None:
        """The worker shuts down in order, and writes its statedb."""
        with self.acting():
            if self.guard is not None:
                self.guard.stop(cold=cold)
            if self._worker._persistence is not None:
                self._worker._persistence.save()

    def counts(self) -> RevokedStatus:
        """How many ids there are of each origin, as the guard tells."""
        assert self.guard is not None
        with self.acting():
            counts: RevokedStatus = self.guard.status(quick=False)["revoked"]
            return counts

    @property
    def unwritten(self) -> bool:
        """Whether the guard has marks that it could not write yet."""
        return self.guard is not None and bool(self.guard._pending_marks)


class _Persistent(Persistent):
    """Celery's statedb on a shelf in memory."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        super().__init__(state, "")

    def open(self) -> Shelf:
        return self._shelf


_KEPT = f"{__name__}:{DictBackend.__name__}"
_APPS = {backend: (_make_app(backend), _make_app(backend)) for backend in (_KEPT, "disabled")}


def fresh_apps(*, backend: bool) -> tuple[Any, Any]:
    """Two apps, for the workers without the guard and with it, whose result backends are empty."""
    apps = _APPS[_KEPT if backend else "disabled"]
    for app in apps:
        if backend:
            app.backend.kept.clear()
            app.backend.down = False
    return apps
