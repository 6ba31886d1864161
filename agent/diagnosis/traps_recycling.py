"""Workers that are ended on purpose after so many requests or tasks: too often, or all at the same moment. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stucktrace.diagnosis.words import age
from stucktrace.facts import WORKERS
from stucktrace.facts.audited import Audited
from stucktrace.facts.settings import OK, WARN, Check

FEW = 100
"""A worker imports its application again each time, which takes as long as hundreds of small requests."""


def checks(family: Sequence[Audited]) -> Iterator[Check]:
    for member in family:
        if member.process.worker.kind.startswith("gunicorn-"):
            yield from _gunicorn(member, family)
            return
        if member.process.worker.kind in ("celery-main", "celery-child"):
            yield from _celery(family)
            return


def _gunicorn(member: Audited, family: Sequence[Audited]) -> Iterator[Check]:
    most, jitter, workers = (member.number(name) for name in ("max_requests", "max_requests_jitter", "workers"))
    if most is None:
        return
    if not most:
        yield Check("max-requests", OK, "max_requests is 0: workers are not recycled")
        return
    if most < FEW:
        yield Check(
            "max-requests-low",
            WARN,
            f"max_requests is {most:.0f}: a worker ends after so few requests, and each end costs a start",
            evidence=_ages(family),
            fix="max_requests of 1000 or more, with max_requests_jitter of a tenth of it",
        )
    elif jitter or (workers is not None and workers < 2):
        yield Check(
            "max-requests", OK, f"max_requests is {most:.0f}" + (f" with a jitter of {jitter:.0f}" if jitter else "")
        )
    if not jitter and (workers is None or workers > 1) and jitter is not None:
        yield Check(
            "max-requests-without-jitter",
            WARN,
            f"max_requests is {most:.0f} without max_requests_jitter: all workers end at about the same time",
            fix=f"max_requests_jitter = {max(1, int(most) // 10)}",
        )


def _celery(family: Sequence[Audited]) -> Iterator[Check]:
    limits = [limit for member in family if (limit := member.number("worker_max_tasks_per_child"))]
    known = any((setting := member.setting("worker_max_tasks_per_child")) and setting.known for member in family)
    if limits and min(limits) < FEW:
        yield Check(
            "max-tasks-per-child-low",
            WARN,
            f"worker_max_tasks_per_child is {min(limits):.0f}: a child ends after so few tasks, and each end costs a "
            "fork and new connections",
            evidence=_ages(family),
            fix="worker_max_tasks_per_child of 1000 or more, or worker_max_memory_per_child",
        )
    elif limits:
        yield Check("max-tasks-per-child", OK, f"worker_max_tasks_per_child is {min(limits):.0f}")
    elif known:
        yield Check("max-tasks-per-child", OK, "children of the pool are not recycled after a number of tasks")


def _ages(family: Sequence[Audited]) -> tuple[str, ...]:
    ages = sorted(member.process.age_s for member in family if member.process.worker.kind in WORKERS)
    return (f"the workers are {age(ages[0])} to {age(ages[-1])} old",) if ages else ()
