"""A worker timeout with the end of its connection in the broker's log, and the commonest delay between them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor
from statistics import median

from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN
from stucktrace.facts.correlation import MISSED, BrokerEvent, Connection, WorkerTimeout

CONNECTION, TIME = "connection", "time"
AFTER_KILL_S = 3.0
"""A killed worker's connections are closed by its kernel at once: by time alone nothing later counts."""
BEFORE_KILL_S = 0.5
BEATS = 2.0, 3.0
"""rabbit_heartbeat.erl: the receiver looks once in each timeout, and gives up when it saw nothing new twice: between
two and three timeouts after the last byte."""
BEATS_SLACK_S = 2.0
BUCKET_S = 1.0


@dataclass(frozen=True)
class Pair:
    """A worker timeout, and the end of its connection as the broker saw it."""

    timeout: WorkerTimeout
    event: BrokerEvent
    by: str
    """CONNECTION or TIME."""
    connection: Connection | None
    """As the worker has it; None where only the time tells."""
    contested: bool = False
    """By TIME: another worker was killed just then whose connection's end is not in the log. It may be that one's."""

    @property
    def confidence(self) -> str:
        return PROVEN if self.by == CONNECTION else POSSIBLE if self.contested else LIKELY

    @property
    def after_kill_s(self) -> float:
        return self.event.time - self.timeout.killed

    @property
    def after_stuck_s(self) -> float | None:
        return self.event.time - self.timeout.since if self.timeout.since is not None else None


@dataclass(frozen=True)
class Mode:
    """The commonest delay."""

    kind: str
    """Of the broker's event."""
    since: str
    """"stuck" or "kill"."""
    seconds: float
    within_s: float
    """Half of the bucket's width: all of `count` are that close."""
    count: int
    of: int
    """Pairs of this kind."""
    means: str
    """ "" where nothing known explains it."""
    histogram: tuple[tuple[int, int], ...] = ()
    """(whole second, how many delays begin with it) of all `of`."""


def modes(pairs: Sequence[Pair]) -> Iterator[Mode]:
    """The densest bucket of the delays, for each kind of event and from either moment; the commonest first."""
    found = []
    for kind in sorted({pair.event.kind for pair in pairs}):
        those = [pair for pair in pairs if pair.event.kind == kind]
        stuck = [(delay, pair) for pair in those if (delay := pair.after_stuck_s) is not None]
        for since, delays in (("stuck", stuck), ("kill", [(pair.after_kill_s, pair) for pair in those])):
            if delays:
                seconds, within = densest([delay for delay, _ in delays])
                members = [pair for delay, pair in delays if abs(delay - seconds) <= BUCKET_S / 2 + 1e-6]
                means = _means(kind, since, seconds, members)
                spread = tuple(sorted(Counter(floor(delay) for delay, _ in delays).items()))
                found.append(Mode(kind, since, seconds, BUCKET_S / 2, within, len(delays), means, spread))
    yield from sorted(found, key=lambda mode: -mode.count)


def densest(values: Sequence[float]) -> tuple[float, int]:
    """(middle, how many) of the bucket, anywhere, that holds most of the values; around their median where it can."""
    ordered = sorted(values)
    best: tuple[int, int] = (0, 0)
    start = 0
    for end, value in enumerate(ordered):
        while value - ordered[start] > BUCKET_S:
            start += 1
        if end - start + 1 > best[1] - best[0]:
            best = start, end + 1
    inside = ordered[best[0] : best[1]]
    middle = min(max(median(inside), inside[-1] - BUCKET_S / 2), inside[0] + BUCKET_S / 2)
    return middle, len(inside)


def _means(kind: str, since: str, seconds: float, pairs: Sequence[Pair]) -> str:
    limits = [pair.timeout.timeout_s for pair in pairs if pair.timeout.timeout_s]
    if kind == MISSED:
        beats = [pair.event.timeout_s for pair in pairs if pair.event.timeout_s]
        if since == "stuck" and beats and BEATS[0] * min(beats) - 1 <= seconds <= BEATS[1] * max(beats) + BEATS_SLACK_S:
            return f"that is the broker's heartbeat ({median(beats):g} s), missed two to three times"
        if since == "kill" and seconds < 0:
            return "the broker had given the connection up before gunicorn did"
        return ""
    if since == "kill" and -BEFORE_KILL_S <= seconds <= AFTER_KILL_S:
        return "a killed worker's connections are closed by its kernel, so the kill is the cause"
    if since == "stuck" and limits and abs(seconds - median(limits)) <= max(2.0, 0.1 * median(limits)):
        return f"that is gunicorn's timeout ({median(limits):g} s)"
    return ""
