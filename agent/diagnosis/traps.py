"""The runbook's traps, over all that was seen of a process and its workers: every family of rules in turn. Pure.

A rule says what it looked at also where all is well. What several processes have alike is said once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stucktrace.diagnosis import (
    traps_celery,
    traps_clients,
    traps_connections,
    traps_fork,
    traps_gunicorn,
    traps_recycling,
)
from stucktrace.facts.audited import Audited
from stucktrace.facts.settings import ERROR, OK, WARN, Check

_ORDER = (ERROR, WARN, OK)


def check(family: Sequence[Audited]) -> tuple[Check, ...]:
    """The checks of a family (the process asked for first), the worst first."""
    found: list[Check] = [
        *traps_fork.checks(family),
        *(each for member in family for each in traps_gunicorn.checks(member, family)),
        *traps_recycling.checks(family),
        *(each for member in family for each in traps_celery.checks(member.settings, member.process)),
        *traps_clients.checks(family),
        *traps_connections.summary(family),
    ]
    apart: dict[tuple[str, str, str], Check] = {}
    for each in found:
        apart.setdefault((each.code, each.status, each.text), each)
    return tuple(sorted(apart.values(), key=lambda each: _ORDER.index(each.status)))


def worst(checks: Iterable[Check]) -> str:
    statuses = {each.status for each in checks}
    return next((status for status in _ORDER if status in statuses), OK)
