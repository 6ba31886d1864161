"""How fast a broker answers: round trips, their percentiles, and the verdict by bands.

The bands are those of a runbook for Celery on RabbitMQ: what a publisher that waits for each confirm feels.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stucktrace.broker_urls import BrokerUrl
from stucktrace.probe_connect import Blocked, NoReply, Phases, ProbeFailed, Tls

SCHEMA = "stucktrace.probe-broker/1"
HEALTHY, SLOW, DEGRADED, BROKEN, BLOCKED, UNREACHED = (
    "healthy",
    "slow",
    "degraded",
    "broken",
    "broker-blocked",
    "not-connected",
)
EXIT_STATUS = {HEALTHY: 0, SLOW: 5, DEGRADED: 1, BROKEN: 1, BLOCKED: 1, UNREACHED: 3}
BANDS = ((0.020, HEALTHY), (0.100, SLOW), (1.0, DEGRADED))
"""p99 below so many seconds; what is above all of them is broken."""
_ENDING = (signal.SIGINT, signal.SIGTERM)
"""`timeout` and Kubernetes send the second: what was measured until then is told."""
_LINE_EVERY_S = 5.0
_REDRAW_EVERY_S = 0.1
_STOPPED_AFTER_S = 1.0
"""A round trip that was in the air for so long when the user ended it says more than those before it."""
_REMEDIES = {
    SLOW: "its disk is slow or it is loaded: see the disk's latency (iostat -x), its CPU and its queues' lengths",
    DEGRADED: "this explains workers that stall in publishes: see the broker's disk, memory and CPU, and the network",
    BROKEN: "publishes hang on this broker: see its log, its alarms (rabbitmq-diagnostics alarms) and its disk",
    "connection-lost": "its log says why: it stops or restarts, its host is out of memory, or a proxy between gave up",
    "nack": "its log says why: a queue's process crashed, or a policy limits the length of queues (reject-publish)",
    BLOCKED: "end the alarm: free memory or disk on the broker (rabbitmq-diagnostics alarms), or consume its queues",
}
_REMEDIES_REDIS = dict.fromkeys((SLOW, DEGRADED, BROKEN), "one command at a time: see SLOWLOG GET, CPU and swapping")
_REMEDIES_REDIS[BLOCKED] = "it takes no writes: INFO persistence, INFO replication and its log say why"


class Probe(Protocol):
    """A connection to a broker on which round trips are measured."""

    kinds: tuple[str, ...]
    server: str
    notes: list[str]

    def round_trip_s(self, kind: str) -> float: ...

    def rest(self, seconds: float) -> None: ...

    def close(self, *, polite: bool = True) -> None: ...


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    url: BrokerUrl
    tls: Tls
    samples: int = 200
    interval_s: float = 0.0
    threshold_ms: float | None = None


@dataclass(frozen=True)
class Series:
    """The round trips of one kind, in seconds, in order."""

    kind: str
    seconds: tuple[float, ...]

    def percentile_s(self, share: float) -> float:
        """By nearest rank."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class Outcome:
    wanted: Wanted
    began: float
    phases: Phases = field(default_factory=Phases)
    server: str = ""
    series: tuple[Series, ...] = ()
    code: str = UNREACHED
    reason: str = ""
    """Of what has no percentiles: "dns", "refused", "authentication", "silent", "no-reply" ..."""
    summary: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()
    stopped: bool = False
    """The user ended it before all samples were taken."""

    @property
    def p99_s(self) -> float | None:
        """Of the first kind: for AMQP the messages that go to disk."""
        first = self.series[0] if self.series else None
        return first.percentile_s(0.99) if first and first.seconds else None

    @property
    def over_threshold(self) -> bool | None:
        limit_ms, p99_s = self.wanted.threshold_ms, self.p99_s
        return None if limit_ms is None or p99_s is None else p99_s * 1000 > limit_ms

    @property
    def exit_status(self) -> int:
        status = EXIT_STATUS[self.code]
        return 1 if self.over_threshold and status in (0, 5) else status


def run(wanted: Wanted) -> Outcome:
    """Measures; progress goes to stderr."""
    outcome = Outcome(wanted, time.time())
    progress = _Progress(wanted)
    for each in _ENDING:
        signal.signal(each, signal.default_int_handler)
    probe: Probe | None = None
    taken: dict[str, list[float]] = {}
    try:
        probe = _open(wanted, outcome.phases)
        taken = {kind: [] for kind in probe.kinds}
        _measure(probe, wanted, taken, progress)
        _judge(outcome, taken)
    except ProbeFailed as error:
        outcome.code = BROKEN if error.broken else UNREACHED
        outcome.reason, outcome.summary, outcome.remedy = error.code, error.message, error.remedy
    except Blocked as blocked:
        outcome.code, outcome.reason = BLOCKED, "blocked"
        outcome.summary = f"the broker blocks publishers: {blocked}" if str(blocked) else "the broker blocks publishers"
        outcome.remedy = _remedy(wanted, BLOCKED)
    except NoReply as error:
        outcome.code, outcome.reason = BROKEN, error.code
        number = sum(map(len, taken.values())) + 1
        outcome.summary = f"{error} (round trip {number})"
        outcome.remedy = _remedy(wanted, error.code if error.code in _REMEDIES else BROKEN)
    except KeyboardInterrupt:
        outcome.stopped = True
        _judge(outcome, taken)
        if progress.pending is not None:
            _in_the_air(outcome, time.monotonic() - progress.pending)
    finally:
        progress.end()
        for each in _ENDING:
            signal.signal(each, signal.SIG_DFL)
        if probe is not None:
            outcome.server, outcome.notes = probe.server, tuple(probe.notes)
            probe.close(polite=outcome.code not in (BROKEN, BLOCKED))
    outcome.series = tuple(Series(kind, tuple(seconds)) for kind, seconds in taken.items() if seconds)
    return outcome


def _open(wanted: Wanted, phases: Phases) -> Probe:
    if wanted.url.kind == "redis":
        from stucktrace.probe_redis import RedisProbe

        return RedisProbe(wanted.url, wanted.tls, phases)
    from stucktrace.probe_amqp import AmqpProbe

    return AmqpProbe(wanted.url, wanted.tls, phases)


def _measure(probe: Probe, wanted: Wanted, taken: dict[str, list[float]], progress: _Progress) -> None:
    """The kinds take turns, so that they meet the same conditions."""
    for number in range(wanted.samples):
        if number and wanted.interval_s:
            probe.rest(wanted.interval_s)
        for kind in probe.kinds:
            progress.pending = time.monotonic()
            taken[kind].append(probe.round_trip_s(kind))
            progress.pending = None
        progress.show(number + 1, taken[probe.kinds[0]])


def _judge(outcome: Outcome, taken: Mapping[str, Sequence[float]]) -> None:
    """The verdict on what was measured."""
    outcome.series = tuple(Series(kind, tuple(seconds)) for kind, seconds in taken.items() if seconds)
    p99_s = outcome.p99_s
    if p99_s is None:
        outcome.reason, outcome.summary = "stopped", "stopped before a round trip was measured"
        return
    outcome.code = next((code for limit_s, code in BANDS if p99_s < limit_s), BROKEN)
    what = "answers" if outcome.wanted.url.kind == "redis" else "confirms"
    outcome.summary = f"the broker {what} 99 % within {milliseconds(p99_s)}"
    outcome.remedy = _remedy(outcome.wanted, outcome.code)
    if outcome.over_threshold:
        outcome.summary += f", over the threshold of {outcome.wanted.threshold_ms:g} ms"
    if outcome.code in (SLOW, DEGRADED, BROKEN) and len(outcome.series) > 1:
        other_s = outcome.series[1].percentile_s(0.99)
        if other_s < p99_s / 4:
            outcome.remedy = "without the disk it is fast, so the disk or the queue's process is slow: iostat -x there"
        elif other_s > p99_s / 2:
            outcome.remedy = (
                "without the disk it is as slow, so it is the network or a proxy in between, or the broker's CPU"
            )


def _remedy(wanted: Wanted, code: str) -> str:
    other = _REMEDIES_REDIS if wanted.url.kind == "redis" else {}
    return other.get(code) or _REMEDIES.get(code, "")


def _in_the_air(outcome: Outcome, waited_s: float) -> None:
    """The user ended it during a round trip."""
    if waited_s >= _STOPPED_AFTER_S:
        outcome.code, outcome.reason, outcome.remedy = BROKEN, "no-reply", _remedy(outcome.wanted, BROKEN)
        outcome.summary = f"stopped in a round trip that had no answer for {waited_s:.0f} s"


def milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


class _Progress:
    """On stderr: one line that is drawn again on a terminal, else a line every few seconds."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._terminal = os.isatty(2)
        self._every_s = _REDRAW_EVERY_S if self._terminal else _LINE_EVERY_S
        self._next = time.monotonic() + self._every_s
        self._drawn = False
        self.pending: float | None = None
        """Since when (monotonic) a round trip is in the air."""

    def show(self, number: int, seconds: Sequence[float]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every_s
        recent = Series("", tuple(seconds[-1000:]))
        line = (
            f"{number} of {self._wanted.samples} round trips, p50 {milliseconds(recent.percentile_s(0.5))}, "
            f"p99 {milliseconds(recent.percentile_s(0.99))}, last {milliseconds(seconds[-1])}"
        )
        self._drawn = self._terminal
        self._write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")

    def end(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            pass
