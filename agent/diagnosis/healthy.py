"""The verdict on a process in which nothing is stuck: idle, working, waiting, or that too little could be seen."""

from __future__ import annotations

from collections.abc import Iterable

from stucktrace.diagnosis.model import INFO, LIKELY, Budgets, Finding
from stucktrace.facts import Snapshot


def verdict(snapshot: Snapshot, budgets: Budgets, findings: Iterable[Finding]) -> Finding:
    return Finding("idle", LIKELY, "every thread sleeps; nothing here can prove more", severity=INFO)
