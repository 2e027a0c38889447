"""The tests on several releases: ``make matrix``, or ``nox -s tests -- -k heal``."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

#: A release of Celery, the Python to run it on, and what else it needs. Celery 5.3.6 and 5.4.0
#: don't keep kombu 5.7 out, which refuses the redis-py that they install.
RELEASES = {
    "5.3.6": ("3.10", ["celery[redis]==5.3.6", "kombu<5.7"]),
    "5.4.0": ("3.11", ["celery[redis]==5.4.0", "kombu<5.7"]),
    "5.5.3": ("3.12", ["celery[redis]==5.5.3"]),
    "5.6.3": ("3.12", ["celery[redis]==5.6.3"]),
    "newest": ("3.13", ["celery[redis]<6"]),
}


@nox.session
@nox.parametrize(
    ("python", "release"),
    [nox.param(python, release, id=release) for release, (python, _) in RELEASES.items()],
)
def tests(session: nox.Session, release: str) -> None:
    """Run the tests on one release."""
    pyproject = nox.project.load_toml("pyproject.toml")
    session.install(
        *nox.project.dependency_groups(pyproject, "test", "docs"),
        *RELEASES[release][1],
        "--editable",
        ".",
    )
    session.run("python", "-m", "pytest", "-m", "not slow", *session.posargs)
