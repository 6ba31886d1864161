"""gunicorn workers that are ended on purpose after so many requests: too often, or all at the same moment. Pure."""

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


def _gunicorn(member: Audited, family: Sequence[Audited]) -> Iterator[Check]:
    """`max-requests-low`, `max-requests`: a gunicorn worker ends after a few requests.

    Each end costs a start: the application is imported again, which takes as long as hundreds of small requests.

    Warn: `max_requests` is set and below 100.

    Later: `max_requests = 1000` or more, with a jitter of a tenth.

    Not: 0, which recycles nobody.

    Try: `gunicorn --max-requests 10`, then `stucktrace audit PID`.

    `max-requests-without-jitter`: all workers end at about the same time.

    Workers that share the requests evenly reach `max_requests` together, and for a moment nobody serves.

    Warn: `max_requests` is set, `max_requests_jitter` is 0, and there is more than one worker.

    Later: `max_requests_jitter`, a tenth of `max_requests`.

    Not: a single worker.

    Try: `gunicorn -w 2 --max-requests 1000`, then `stucktrace audit PID`.
    """
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
            fix="max_requests = 1000 or more, and max_requests_jitter = 100 (a tenth of it)",
        )
    elif jitter == 0 and (workers is None or workers > 1):
        yield Check(
            "max-requests-without-jitter",
            WARN,
            f"max_requests is {most:.0f} without max_requests_jitter: all workers end at about the same time",
            fix=f"max_requests_jitter = {int(most) // 10}",
        )
    else:
        text = f"max_requests is {most:.0f}" + (f" with a jitter of {jitter:.0f}" if jitter else "")
        yield Check("max-requests", OK, text)


def _ages(family: Sequence[Audited]) -> tuple[str, ...]:
    ages = sorted(member.process.age_s for member in family if member.process.worker.kind in WORKERS)
    if len(ages) == 1:
        return (f"its worker is {age(ages[0])} old",)
    return (f"the workers are {age(ages[0])} to {age(ages[-1])} old",) if ages else ()
