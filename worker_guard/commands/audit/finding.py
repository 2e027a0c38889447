"""Findings, and how the rules are applied to the facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from worker_guard.commands.audit.facts import Facts

Level = Literal["error", "warning", "note"]

#: The worst first.
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that will go wrong, or that does not do what it seems to."""

    level: Level
    #: The setting, the Beat entry or the task.
    subject: str
    #: One sentence.
    happens: str
    #: The values that the audit found, by name.
    evidence: Mapping[str, object]
    #: The line to change.
    change: str
    #: The rule's id, set by :func:`apply_rules`.
    rule: str = ""


Check = Callable[[Facts], Iterator[Finding]]


def apply_rules(facts: Facts, rules: Iterable[Check]) -> list[Finding]:
    """The findings of the rules, the worst first."""
    found = [replace(one, rule=rule_id(check)) for check in rules for one in check(facts)]
    return sorted(found, key=lambda one: (LEVELS.index(one.level), one.rule, one.subject))


def rule_id(check: Check) -> str:
    """The stable id of a rule: its function's name, with dashes."""
    return check.__name__.replace("_", "-")


def reaches(finding: Finding, level: Level) -> bool:
    """Whether the finding is of this level or a worse one."""
    return LEVELS.index(finding.level) <= LEVELS.index(level)
