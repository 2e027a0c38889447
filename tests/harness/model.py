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
from typing import Any, ClassVar

import celery.utils.collections
from celery import Celery, signals
from celery.app.control import Inspect
from celery.backends.base import KeyValueStoreBackend
from celery.utils.collections import LimitedSet
from celery.worker import control, request, state
from celery.worker.consumer.mingle import Mingle
from celery.worker.state import Persistent
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.fakes.redis import FakeRedis
from tests.harness.context import make_context
from worker_guard.celery_internals import revoked_hooks, revoked_set
from worker_guard.celery_internals.hooks import Namespace
from worker_guard.events import Event
from worker_guard.revoked.part import RevokedPart
from worker_guard.revoked.record import Record, open_record
from worker_guard.scheduler import run_to_end
from worker_guard.settings import Settings
from worker_guard.status_model import RevokedStatus

#: So small that a flood of a few ids pushes others out.
REVOKES_MAX = 6
REVOKE_EXPIRES_S = 10_800.0
GRACE_S = 60.0

LIFETIME_S = 30_000.0

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
    """A result backend in memory, that can be away, and whose keys can't be listed."""

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

    def revoked_at(self, task_id: str) -> float | None:
        """When the revocation that stands on record was made; None if none stands."""
        return 0.0 if self.kept.get(MARK + task_id) in (b"operator", "operator") else None

    def _check(self) -> None:
        if self.down:
            raise ConnectionError("the result backend is down")

    @staticmethod
    def _text(key: Any) -> str:
        return key.decode() if isinstance(key, bytes) else str(key)


class RecordingBackend(DictBackend):
    """It passes for Redis, and so it has the record."""

    connparams: ClassVar[dict[str, Any]] = {}
    clock: Clock

    def _create_client(self, **_: Any) -> FakeRedis:
        client = FakeRedis(self.kept, self.clock.monotonic)
        client.down = lambda: self.down
        return client

    def record(self) -> Record:
        """The record, as a command reads it."""
        return open_record(self, lifetime_s=LIFETIME_S, timeout_s=1.0)

    def revoked_at(self, task_id: str) -> float | None:
        """When the revocation that stands on record was made; None if none stands."""
        down, self.down = self.down, False
        try:
            found = {each.target: each.since for page in self.record().pages() for each in page}
        finally:
            self.down = down
        return found.get(task_id)


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

        def ask(_command: str, *, from_node: str, revoked: Any) -> Any:
            sent = _over_the_wire(revoked)
            return {peer.name: peer.answer_hello(from_node, sent) for peer in self._peers}

        ours = list(state.revoked) if hasattr(state, "merge_revoked") else state.revoked._data
        return Inspect.hello(SimpleNamespace(_request=ask), c.hostname, ours)


def _over_the_wire(value: Any) -> Any:
    return json.loads(json.dumps(value))


#: Where the guard hooks in, besides the set of the process.
_HOOKED: tuple[tuple[Any, str], ...] = (
    (Namespace(request.Request), "maybe_expire"),
    (Namespace(request.Request), "revoked"),
    (Namespace(Inspect), "hello"),
    (control.Panel.data, "hello"),
    (control.Panel.data, "revoke"),
    (control.Panel.data, "terminate"),
    (control.Panel.data, "revoke_by_stamped_headers"),
)

#: The modules that stamp ids with the time.
_TIMED: tuple[Any, ...] = (celery.utils.collections, revoked_hooks, revoked_set)


def _put(hooked: list[Any]) -> None:
    for (place, name), function in zip(_HOOKED, hooked, strict=True):
        place[name] = function


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
        self.stamps: dict[str, Any] = {}
        self._hooked = [place[name] for place, name in _HOOKED]
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
                    Settings(revoked_grace=GRACE_S, revocation_lifetime=LIFETIME_S),
                    heard=self.events.append,
                    monotonic=self.clock.monotonic,
                    now=self.clock.monotonic,
                    before_statedb=before_statedb,
                )
            )
            for job in self.guard.jobs:
                self.guard.context.scheduler.add(job)
            self.guard.start()

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Be this process: its module state is in place."""
        task_revoked = signals.task_revoked
        outer = state.revoked, state.revoked_stamps, task_revoked.receivers
        outer_hooked = [place[name] for place, name in _HOOKED]
        outer_times = [module.time for module in _TIMED]
        state.revoked = request.revoked_tasks = self.revoked
        state.revoked_stamps = request.revoked_stamps = self.stamps
        task_revoked.receivers = self._receivers
        _put(self._hooked)
        for module in _TIMED:
            module.time = self.clock
        try:
            yield
        finally:
            self._hooked = [place[name] for place, name in _HOOKED]
            self._receivers = task_revoked.receivers
            _put(outer_hooked)
            state.revoked, state.revoked_stamps, task_revoked.receivers = outer
            request.revoked_tasks, request.revoked_stamps = outer[:2]
            for module, time in zip(_TIMED, outer_times, strict=True):
                module.time = time

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
            control.Panel.data["revoke"](panel, [task_id], terminate=terminate)
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

    def connect(self) -> None:
        """The consumer takes messages from now on."""
        if self.guard is not None:
            with self.acting():
                self.guard.connected()
        self.write_marks()

    @property
    def has_read(self) -> bool:
        """Whether the guard has read the record."""
        restorer = self.guard._restorer if self.guard is not None else None
        return restorer is not None and restorer.has_read

    def unrevoke(self, task_id: str) -> None:
        """The remote command ``guard_unrevoke``."""
        if self.guard is not None:
            with self.acting():
                self.guard.unrevoke([task_id])
        self.write_marks()

    def change_set(self, change: Any) -> None:
        """What the application's own code does to the set."""
        with self.acting():
            change(state.revoked)
        self.write_marks()

    def write_marks(self) -> None:
        """The guard writes a mark as soon as it can."""
        if self.guard is not None and self.guard._marker is not None:
            with self.acting(), contextlib.suppress(ConnectionError, RedisConnectionError):
                run_to_end(self.guard._marker.run())

    def sweep(self) -> None:
        """The guard's timer fires."""
        if self.guard is not None:
            for job in self.guard.jobs:
                with self.acting(), contextlib.suppress(ConnectionError, RedisConnectionError):
                    run_to_end(job.run())

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
        marker = self.guard._marker if self.guard is not None else None
        return marker is not None and bool(marker.pending)


class _Persistent(Persistent):
    """Celery's statedb on a shelf in memory."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        super().__init__(state, "")

    def open(self) -> Shelf:
        return self._shelf


#: No result backend, a key-value one, and one that has the record.
BACKENDS = ("none", "key-value", "record")
_URLS = (
    "disabled",
    f"{__name__}:{DictBackend.__name__}",
    f"{__name__}:{RecordingBackend.__name__}",
)
_APPS = {n: (_make_app(url), _make_app(url)) for n, url in zip(BACKENDS, _URLS, strict=True)}


def fresh_apps(backend: str, clock: Clock) -> tuple[Any, Any]:
    """Two apps, for the workers without the guard and with it, whose result backends are empty."""
    apps = _APPS[backend]
    for app in apps:
        if backend != "none":
            app.backend.kept.clear()
            app.backend.down, app.backend.clock = False, clock
    return apps
