"""What the agent knows about itself and the node at one instant: all that /metrics, /healthz and OTLP show.

The loop fills one each second; sinks only read it. Totals count from the agent's start and never fall. Every label is
from a small set: kinds, codes, sinks, network namespaces; never a pid, a path or a text from a target.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stucktrace.collectors.bpf_stats import ProgramRuns
from stucktrace.facts import ConntrackFact
from stucktrace.sinks.sink import SinkStatus

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Durations:
    """How often something took how long."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    """One for each bound, up to and with it but over the one before; the last is for what is longer than all."""
    total_s: float = 0.0

    def plus(self, seconds: float) -> Durations:
        """With one more."""
        index = bisect_left(BOUNDS_S, seconds)
        counts = (*self.counts[:index], self.counts[index] + 1, *self.counts[index + 1 :])
        return replace(self, counts=counts, total_s=self.total_s + max(0.0, seconds))

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Figures:
    turned_s: float
    """The last turn of the loop, CLOCK_MONOTONIC."""
    started_s: float = 0.0
    """CLOCK_REALTIME."""
    version: str = ""
    engine: str = ""
    """What is in use: core or none."""
    node: str = ""
    kernel: str = ""

    watched: Mapping[str, int] = field(default_factory=dict)
    """Kind of process (gunicorn-worker, celery-main, ...) -> how many are watched now."""
    open: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(code, severity) -> alerts that are open now."""
    affected: Mapping[str, int] = field(default_factory=dict)
    """Code -> processes in its open alerts now."""
    opened: Mapping[str, int] = field(default_factory=dict)
    """Code -> alerts opened, total."""
    resolved: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(code, how) -> alerts resolved, total."""
    alert_delay: Durations = field(default_factory=Durations)
    """From a threshold crossed to its alert."""

    glances: Durations = field(default_factory=Durations)
    """Looks at the waits of all watched processes."""
    last_glance_s: float = 0.0
    """What the last of them took."""
    scans: Durations = field(default_factory=Durations)
    """Looks through /proc for new processes."""
    examinations: Durations = field(default_factory=Durations)
    """Of suspects, with stacks and verdict."""
    examination_failures: int = 0
    """Total; a target that ended meanwhile is none."""
    lost_records: int = 0
    """Records that BPF programs had to drop, total."""
    bpf: Mapping[str, ProgramRuns] = field(default_factory=dict)
    """Program -> its runs, total. Empty where the kernel keeps no statistics."""

    cpu_s: float = 0.0
    """CPU time of the agent with its ended children, user and system, total."""
    rss_bytes: int = 0
    shed_level: int = 0
    """See self_watch.py; 0 is normal."""

    sinks: Mapping[str, SinkStatus] = field(default_factory=dict)
    spool_bytes: int = 0
    """On disk, and what waits in memory where there is no spool."""
    journal_bytes: int = 0
    """On disk."""

    conntrack: tuple[ConntrackFact, ...] = ()
    """One for each network namespace with watched processes."""
    worker_timeouts: int = 0
    """Workers that gunicorn killed for their silence, total."""
    restarts: int = 0
    """Workers that came after others of the same master, total."""
