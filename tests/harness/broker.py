"""What killed askers and evictions leave in a Redis broker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from celery import Celery

from worker_guard.broker.look import BrokerLook, Found
from worker_guard.broker.server import Broker, open_broker

HOUR_S = 3600.0

BINDING = "_kombu.binding.reply.celery.pidbox"


def app_of(url: str, **conf: Any) -> Celery:
    """An app with this broker."""
    app = Celery("test", set_as_current=False, broker=url)
    app.conf.update(conf)
    return app


def reply(text: str = "pong") -> str:
    """A control reply as kombu puts it into a list."""
    properties = {"delivery_mode": 1, "delivery_tag": str(uuid.uuid4())}
    return json.dumps({"body": text, "headers": {}, "properties": properties})


def reply_list(client: Any, *replies: str, prefix: str = "", namespace: str = "celery") -> str:
    """A list with these replies, the first of which is read first; returns its name."""
    oid = str(uuid.uuid4())
    name = f"{prefix}{oid}.reply.{namespace}.pidbox"
    client.lpush(name, *(replies or (reply(),)))
    return name


#: Those that were made and are not closed.
_OPEN: list[Broker] = []


def broker_of(app: Celery) -> Broker:
    """The broker of this app, on a connection of its own until :func:`close_all`."""
    _OPEN.append(open_broker(app, timeout_s=10.0))
    return _OPEN[-1]


def close_all() -> None:
    """Close the connections of all brokers that were made."""
    while _OPEN:
        _OPEN.pop().close()


def look_at(
    app: Celery, *, later_s: float = 0.0, dry_run: bool = False, notes: Any = None
) -> Found:
    """One look by a process that has just started, so many seconds from now."""
    return run(begin(app, later_s=later_s, dry_run=dry_run, notes=notes))


def begin(
    app: Celery, *, later_s: float = 0.0, dry_run: bool = False, notes: Any = None
) -> BrokerLook:
    """Such a look, to be run."""
    broker = broker_of(app)
    if notes is None:
        notes = broker.notes(by="test", dry_run=dry_run, schedule_s=HOUR_S)
    look = broker.look(notes, dry_run=dry_run)
    return replace(look, now=lambda: broker.now() + later_s)


def run(look: BrokerLook) -> Found:
    """Run a look to its end."""
    for _ in look.run():
        pass
    assert look.finished
    return look.found


def contents(client: Any) -> Mapping[bytes, bytes]:
    """Each key with its value."""
    return {key: client.dump(key) for key in client.scan_iter()}
