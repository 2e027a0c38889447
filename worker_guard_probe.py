"""``worker-guard-probe``: says by a heartbeat file whether a worker is alive, or ready.

A probe runs every few seconds beside the worker, so this module imports little: neither Celery nor
worker_guard, not even json or argparse. The file is one flat JSON object; its fields are in
``docs/health.md``. A field that is missing is not known, so files of other releases can be read.

Exit codes: 0 yes; 1 no, with the reason in one line on stdout; 2 wrong usage.
"""

import os
import sys
import time

USAGE = "usage: worker-guard-probe FILE [--max-age SECONDS] [--ready]"

#: Seconds after which a heartbeat is too old, if neither the file nor the command says otherwise.
MAX_AGE_S = 30.0

#: By the state of a worker that is not ready: the reason.
_WHY_NOT = {
    "starting": "has not connected to its broker yet",
    "disconnected": "is disconnected from its broker",
    "stalled": "takes no messages, although some wait: its consumer has stalled",
    "no_children": "has no child that is up",
    "stopping": "is shutting down",
}


class Usage(Exception):  # noqa: N818 - a wrong usage, and no fault of the worker
    """The command line is wrong; the message says how."""


def main(arguments: "list[str] | None" = None) -> int:
    """Probe, print one line, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0
    try:
        path, max_age_s, ready = _parsed(arguments)
    except Usage as exc:
        print(f"worker-guard-probe: {exc}\n{USAGE}", file=sys.stderr)
        return 2
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text, mtime = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return _no(f"{path} does not exist: no worker that writes it runs")
    except OSError as exc:
        return _no(f"{path}: {exc.strerror}")
    worker = _text(text, "worker") or path
    why_not = _why_not_alive(text, mtime, max_age_s) or (_why_not_ready(text) if ready else "")
    if why_not:
        return _no(f"{worker} {why_not}")
    print(f"yes: {worker} is {'ready' if ready else 'alive'}")
    return 0


def _no(why: str) -> int:
    print("no: " + " ".join(why.split()))
    return 1


def _parsed(arguments: "list[str]") -> "tuple[str, float | None, bool]":
    """The file, ``--max-age`` and ``--ready``."""
    paths, max_age, ready = [], None, False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--ready":
            ready = True
        elif argument == "--max-age" or argument.startswith("--max-age="):
            _, given, max_age = argument.partition("=")
            if not given:
                max_age = rest.pop(0) if rest else ""
        elif argument.startswith("-"):
            raise Usage(f"no such option: {argument}")
        else:
            paths.append(argument)
    if len(paths) != 1:
        raise Usage("give one heartbeat file")
    return paths[0], _seconds(max_age), ready


def _seconds(given: "str | None") -> "float | None":
    try:
        seconds = None if given is None else float(given)
    except ValueError:
        seconds = 0.0
    # Written so that it is true for a NaN too.
    if seconds is not None and not 0 < seconds < float("inf"):
        raise Usage(f"--max-age is {given!r}; allowed: seconds, above 0")
    return seconds


def _why_not_alive(text: str, mtime: float, max_age_s: "float | None") -> str:
    state = _text(text, "state")
    if not state:
        return "has left no heartbeat in that file"
    written = _number(text, "monotonic")
    # The monotonic clock is the machine's, so steps of the wall clock don't matter.
    age_s = abs(time.time() - mtime) if written is None else time.monotonic() - written
    if age_s < -1.0:
        return "wrote its heartbeat before this machine started"
    by_process = _raw(text, "max_age_s") == "null"
    if by_process and (max_age_s is None or state == "stopping"):
        # Nothing is written while the last tasks end, or while a task holds a solo pool's loop.
        return "" if _exists(_number(text, "pid")) else f"has ended; its last state was {state}"
    limit_s = max_age_s or _number(text, "max_age_s") or MAX_AGE_S
    if age_s <= limit_s:
        return ""
    since = _text(text, "task_since")
    task = f", and runs a task since {since}" if since else f"; its last state was {state}"
    return f"wrote its last heartbeat {age_s:.0f} s ago (allowed: {limit_s:g} s){task}"


def _why_not_ready(text: str) -> str:
    state = _text(text, "state")
    return "" if state == "ready" else _WHY_NOT.get(state, f"is {state}")


def _exists(pid: "float | None") -> bool:
    try:
        os.kill(int(pid or 0), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False  # the last two: no process has such an id
    except OSError:
        pass  # another user's
    return bool(pid)


def _raw(text: str, name: str) -> str:
    """A field as it stands in the JSON; empty if it is missing.

    A quote inside a string is escaped, so a name with its quotes is found only where it is a key.
    """
    _, found, rest = text.partition(f'"{name}":')
    rest = rest.lstrip()
    if not found or not rest:
        return ""
    if rest[0] != '"':
        return rest.partition(",")[0].partition("}")[0].strip()
    end = 1
    while end < len(rest) and rest[end] != '"':
        end += 2 if rest[end] == "\\" else 1
    return rest[: end + 1]


def _text(text: str, name: str) -> str:
    """A string; its escapes are left as they are."""
    raw = _raw(text, name)
    return raw[1:-1] if raw.startswith('"') else ""


def _number(text: str, name: str) -> "float | None":
    try:
        return float(_raw(text, name))
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main())
