"""What a diagnosis is made of: codes with their class, findings, evidence, remedies, budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HEALTHY, STUCK, ADVICE, UNKNOWN = "healthy", "stuck", "advice", "unknown"

CODES: Mapping[str, str] = {
    "idle": HEALTHY,
    "working": HEALTHY,
    "waiting": HEALTHY,
    "half-open": STUCK,
    "peer-silent": STUCK,
    "broker-blocked": STUCK,
    "channel-closed": STUCK,
    "shared-connection": STUCK,
    "consumer-lost": STUCK,
    "connect-failing": STUCK,
    "peer-not-reading": STUCK,
    "slow-client": STUCK,
    "self-call": STUCK,
    "dns-unanswered": STUCK,
    "blocked-loop": STUCK,
    "stale-epoll": STUCK,
    "deadlock": STUCK,
    "orphaned-lock": STUCK,
    "lock-held": STUCK,
    "gil-held": STUCK,
    "pool-starved": STUCK,
    "work-lost": STUCK,
    "pipe-stuck": STUCK,
    "spinning": STUCK,
    "uninterruptible": STUCK,
    "stopped": STUCK,
    "worker-timeout": STUCK,
    "restart-storm": STUCK,
    "orphaned-worker": STUCK,
    "oom-killed": STUCK,
    "beat-stopped": STUCK,
    "beat-twice": STUCK,
    "memory-growth": ADVICE,
    "fd-growth": ADVICE,
    "conntrack-pressure": ADVICE,
    "keepalive-too-slow": ADVICE,
    "no-heartbeat": ADVICE,
    "no-timeout": ADVICE,
    "inconclusive": UNKNOWN,
}
"""Verdict code -> class."""

EXIT_STATUS: Mapping[str, int] = {HEALTHY: 0, STUCK: 1, UNKNOWN: 4, ADVICE: 5}

PROVEN, LIKELY, POSSIBLE = "proven", "likely", "possible"
CONFIDENCES = (PROVEN, LIKELY, POSSIBLE)
CRITICAL, WARNING, INFO = "critical", "warning", "info"
SEVERITIES = (CRITICAL, WARNING, INFO)


@dataclass(frozen=True)
class Evidence:
    """One line of the argument, which the user can check."""

    source: str
    """Where it was read: "iter/task", "tcp_info", "/proc/PID/fdinfo", "py-spy", ..."""
    what: str
    """The quantity, by its field name: "unacked", "backoff", "owner", ..."""
    value: str | int | float | bool | None
    text: str
    """The line as a person reads it."""
    unit: str = ""
    time: float | None = None
    """CLOCK_REALTIME seconds of the reading; None: the snapshot's own time."""


@dataclass(frozen=True)
class Now:
    """Something to do at once."""

    do: str
    """A command or an action."""
    risk: str
    loses: str
    """What is lost or redelivered by doing it."""


@dataclass(frozen=True)
class Later:
    """A setting or version to change, and why."""

    do: str
    why: str


@dataclass(frozen=True)
class KnownIssue:
    link: str
    """repo#thread."""
    title: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """What one rule concludes. The verdict is the finding that is the root cause."""

    code: str
    confidence: str
    summary: str
    """One true sentence."""
    evidence: tuple[Evidence, ...] = ()
    severity: str = CRITICAL
    now: tuple[Now, ...] = ()
    later: tuple[Later, ...] = ()
    known_issues: tuple[KnownIssue, ...] = ()
    tid: int | None = None
    fd: int | None = None
    lock: int | None = None
    """Address."""
    chain: tuple[str, ...] = ()
    """Thread -> call -> fd or lock -> peer or owner, one step each."""
    frame: int | None = None
    """Index (innermost 0) of the Python frame that matters, in the frames of `tid`."""
    explains: tuple[int, ...] = ()
    """Other tids whose wait this finding accounts for (waiters of the same lock, say)."""
    subject: str = ""
    """What it is about where neither a frame nor a peer tells one fault from another: the application, a network
    namespace. Part of an alert's fingerprint then."""

    story: str = ""
    """A paragraph on how it came to this, where the evidence fits a well-known fault."""

    @property
    def verdict_class(self) -> str:
        return CODES[self.code]


@dataclass(frozen=True)
class Budgets:
    """How long a wait may last before it counts as stuck, in seconds."""

    owed_s: float = 5.0
    """A reply that the protocol owes at once."""
    stuck_after_s: float = 30.0
    """An open-ended request, when the worker's own timeout is not known."""
    stuck_after_given: bool = False
    """--stuck-after was given: it goes before the worker's own timeout."""
    guarded_s: float | None = None
    """The same in the main thread, where a master guards it and ends the worker soon."""

    def patience_s(self, *, main: bool) -> float:
        """How long an open-ended request may last in the main thread, or in another one."""
        return self.guarded_s if main and self.guarded_s is not None else self.stuck_after_s

    def request_s(self, worker_timeout_s: float | None, *, main: bool = False) -> float:
        """The budget of an open-ended request in a worker with this timeout (None or 0: it has none)."""
        if (main and self.guarded_s is not None) or self.stuck_after_given or not worker_timeout_s:
            return self.patience_s(main=main)
        return worker_timeout_s


@dataclass(frozen=True)
class Edge:
    """Who waits for whom, by nodes such as "thread:TID" and "lock:0xADDR"; `graph.py` names all of them."""

    source: str
    target: str
    label: str = ""


@dataclass(frozen=True)
class Diagnosis:
    verdict: Finding
    findings: tuple[Finding, ...]
    """The verdict first."""
    edges: tuple[Edge, ...] = ()
    waits_for: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """tid -> (kind, ref): kind is socket, lock, pipe, child, timer or none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Node of an edge -> what it is, in words."""
