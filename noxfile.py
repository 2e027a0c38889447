"""The tests on several releases: ``make matrix``, or ``nox -s releases -- -k heal``."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"

#: Releases of Celery, with what else each needs. Celery 5.3.6 and 5.4.0 don't keep kombu 5.7 out,
#: which refuses the redis-py that they install.
RELEASES = {
    "newest": ["celery[redis]<6"],
    "5.3.6": ["celery[redis]==5.3.6", "kombu<5.7"],
    "5.4.0": ["celery[redis]==5.4.0", "kombu<5.7"],
    "5.5.3": ["celery[redis]==5.5.3"],
    "5.6.3": ["celery[redis]==5.6.3"],
}


@nox.session
@nox.parametrize("release", list(RELEASES), ids=list(RELEASES))
def releases(session: nox.Session, release: str) -> None:
    """Run the tests on one release of Celery, on the Python that runs nox."""
    _test(session, RELEASES[release])


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run the tests on one Python with the newest Celery; skipped where it is not installed."""
    _test(session, RELEASES["newest"])


def _test(session: nox.Session, requirements: list[str]) -> None:
    pyproject = nox.project.load_toml("pyproject.toml")
    groups = nox.project.dependency_groups(pyproject, "test", "docs")
    session.install(*groups, *requirements, "--editable", ".")
    session.run("python", "-m", "pytest", "-m", "not slow", *session.posargs)
