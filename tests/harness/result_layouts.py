"""Results as each release of Celery stores them, and attacks on a judge of their two ends."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import states
from hypothesis import strategies as st

from tests.harness.results import DAY_S, NOW

RELEASES = ((5, 3), (5, 4), (5, 5), (5, 7))


def meta(
    release: tuple[int, int],
    *,
    status: str,
    result: Any,
    done: str | None,
    traceback: str | None = None,
    children: Any = (),
    request: Mapping[str, Any] | None = None,
    extended: bool = False,
) -> dict[str, Any]:
    """A record in the order of ``Backend._get_result_meta``, without its ``task_id``."""
    record: dict[str, Any] = {
        "status": status,
        "result": result,
        "traceback": traceback,
        "children": list(children),
        "date_done": done if status in states.READY_STATES else None,
    }
    request = request or {}
    if request.get("group"):
        record["group_id"] = request["group"]
    if request.get("parent_id"):
        record["parent_id"] = request["parent_id"]
    if extended and request:
        more = {
            "name": request.get("task"),
            "args": request.get("args"),
            "kwargs": request.get("kwargs"),
            "worker": request.get("hostname"),
            "retries": request.get("retries"),
            "queue": (request.get("delivery_info") or {}).get("routing_key"),
        }
        if request.get("stamps"):
            headers = request["stamped_headers"]
            more["stamped_headers"] = headers
            stamps = request["stamps"].items()
            more.update({k: v for k, v in stamps if release < (5, 7) or k in headers})
        record.update(more)
    return record


def dates(release: tuple[int, int]) -> st.SearchStrategy[str]:
    """``date_done`` as this release writes it: near the age of a day, and far from it."""
    near = [DAY_S + apart for apart in (-3600, -2, -1, 0, 1, 2, 3, 3600)]
    ages_s = st.sampled_from([0, 0, *near, 2 * DAY_S, 2 * DAY_S, 900 * DAY_S])
    offsets_min = {(5, 3): [0], (5, 4): [0]}.get(release, [0, -210, 345, 840, -720, 60, 53])

    def text(age_s: int, microsecond: int, offset_min: int) -> str:
        done = datetime.fromtimestamp(NOW - age_s, timezone.utc).replace(microsecond=microsecond)
        there = done.astimezone(timezone(timedelta(minutes=offset_min)))
        return (there.replace(tzinfo=None) if release == (5, 3) else there).isoformat()

    microseconds = st.sampled_from([0, 0, 1, 120_000, 999_999])
    return st.builds(text, ages_s, microseconds, st.sampled_from(offsets_min))


OLD = datetime.fromtimestamp(NOW - 9 * DAY_S, timezone.utc).isoformat()
FRESH = datetime.fromtimestamp(NOW, timezone.utc).isoformat()
NO_DATES = [
    *["", "x", 7, "2020-02-30T00:00:00", "2020-13-01T00:00:00", "2020-01-01T24:00:00"],
    *["2020-01-01T00:60:00", "2019-02-29T00:00:00.000001+00:00", "1900-02-29T00:00:00"],
    *["2020-01-01T00:00:00+99:00", "2020-01-00T00:00:00+00:00", "2020-01-01T00:00:00Z"],
]
FIELDS = ["status", "result", "date_done", "task_id", "queue", "children"]


#: Stands for the task's id until the value is encoded, so that the strategies are made only once.
ID = "<the id>"


def _contents() -> st.SearchStrategy[Any]:
    """What a task may return or be given; much of it looks like the end of a result."""
    ends = [
        f'{before}, "date_done": "{date}", "task_id": "{ID}"}}'
        for before in ("", "\\", '"', '\\"', "null")
        for date in (OLD, FRESH)
    ]
    objects = [
        {"status": "SUCCESS", "date_done": date, **more, **end}
        for date in (OLD, FRESH)
        for more in ({}, {"x": ["{"]}, {"x": ['"{', '"']}, {"x": "}"}, {"x": [1, {}]}, {"x": "\\"})
        for end in ({}, {"task_id": ID})
    ]
    plain = [None, True, 7, -1.5e300, float("nan"), float("inf"), "", "text", OLD, FRESH]
    odd = ["}", "]", '"', "\\", "{", "\ud800", "é" * 100, "x" * 330, "a\\", '"\\"']
    leaves = st.sampled_from([*plain, *odd, *ends, *objects]) | st.text(max_size=5)
    names = st.sampled_from([*FIELDS, "", "a", '"'])
    return (
        leaves
        | st.lists(leaves, max_size=3)
        | st.dictionaries(names, leaves | st.lists(leaves, max_size=2), max_size=3)
    )


CONTENTS = _contents()
STAMPS = st.dictionaries(st.sampled_from(["tenant", *FIELDS]), CONTENTS, max_size=2)
DATES = {each: dates(each) for each in RELEASES}
NOTHING: st.SearchStrategy[dict[str, Any]] = st.just({})
REQUESTS = st.fixed_dictionaries(
    {
        "group": st.sampled_from([None, "group", OLD]),
        "parent_id": st.sampled_from([None, "parent"]),
        "task": st.just("proj.task"),
        "args": st.lists(CONTENTS, max_size=2),
        "kwargs": CONTENTS,
        "hostname": st.sampled_from(["w@host", "w@host", "w" * 250, "w" * 5000]),
        "retries": st.just(0),
        "delivery_info": st.fixed_dictionaries({"routing_key": st.none() | CONTENTS}),
        "stamps": NOTHING | STAMPS,
    }
)
IDS = [*[ID] * 8, {"__type__": "uuid", "__value__": ID}]


@st.composite
def celerys(draw: st.DrawFn) -> dict[str, Any]:
    """A record of any release, with :data:`ID` as its ``task_id``."""
    release = draw(st.sampled_from(RELEASES))
    request = draw(st.none() | REQUESTS)
    if request:
        request["stamped_headers"] = draw(st.sampled_from([list(request["stamps"]), []]))
    record = meta(
        release,
        status=draw(st.sampled_from([*["SUCCESS"] * 6, "FAILURE", "STARTED", "RETRY", "MINE"])),
        result=draw(CONTENTS),
        done=draw(DATES[release]),
        traceback=draw(st.sampled_from([None, "Traceback", f', "date_done": "{OLD}"'])),
        children=draw(st.sampled_from([(), [[["child", None], None]]])),
        request=request,
        extended=draw(st.booleans()),
    )
    return {**record, "task_id": draw(st.sampled_from(IDS))}


#: One more of a member, behind the first: Python's json takes the last.
AGAIN = [{"date_done": FRESH}, {"date_done": OLD}, {"date_done": None}, {"status": "STARTED"}]


@st.composite
def others(draw: st.DrawFn) -> bytes:
    """A value that is not quite as Celery writes it."""
    record = draw(celerys())
    text = json.dumps(record)
    how = draw(st.integers(0, 11))
    if how == 0:
        return json.dumps(record, separators=(",", ":")).encode()
    if how == 1:
        return json.dumps(record, sort_keys=True).encode()
    if how == 2:
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if how == 3:
        return draw(
            st.sampled_from([pickle.dumps(record), zlib.compress(text.encode()), b"", b"{"])
        )
    if how == 4:
        return text.encode()[: -draw(st.integers(1, 4))]
    if how == 5:
        return text.encode() + draw(st.sampled_from([b" ", b"}", b"\0", b'"', b"{}"]))
    if how == 6:
        return json.dumps({**record, "task_id": "another"}).encode()
    if how in (7, 8):
        return json.dumps({**record, "date_done": draw(st.sampled_from(NO_DATES))}).encode()
    again = json.dumps(draw(st.sampled_from(AGAIN)))[1:-1]
    behind = draw(st.sampled_from(["", ', "x": 1', ', "x": [{}]']))
    at = text.rindex(', "task_id": ')
    return f"{text[:at]}, {again}{behind}{text[at:]}".encode()


ENCODED = celerys().map(lambda record: json.dumps(record).encode())
TASK_IDS = st.sampled_from(
    [*["d4b8aa5c-90a2-4a6c-8d8c-2d1f8b1b5d3e"] * 6, "id", '"', "a\\b", "é", "x" * 300, '"}']
)


def _with_its_id(task_id: str, value: bytes) -> tuple[str, bytes]:
    return task_id, value.replace(ID.encode(), json.dumps(task_id)[1:-1].encode())


#: A task's id, and the value under its key.
STORED = st.builds(_with_its_id, TASK_IDS, ENCODED | others())


def fate(value: bytes, done_before: int) -> str:
    """By Python's ``json``: whether a result has to ``stay`` or to ``go``, or may do ``either``."""
    try:
        # Python refuses long numbers, unlike every other reader.
        record = json.loads(value, parse_int=float)
        ready = record["status"] in states.READY_STATES
        done = datetime.fromisoformat(record["date_done"].replace("Z", "+00:00"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return "stay"
    at = (done if done.tzinfo else done.replace(tzinfo=timezone.utc)).timestamp()
    if not ready or at >= done_before:
        return "stay"
    # A second to the safe side; and a date that stands there twice can't be watched.
    is_sure = at < done_before - 2 and value.count(json.dumps(record["date_done"]).encode()) == 1
    return "go" if is_sure and value.startswith(b"{") else "either"
