"""Incidents: facts about things that happen to a process over time, which no single snapshot shows.

The agent sees them in the kernel's lifecycle events and in samples (node/incidents.py); what they mean is decided in
diagnosis/incidents.py, from the incident and a snapshot of the process it happened to. Conventions as in facts.py:
`_s` seconds, `_bytes` bytes, times CLOCK_REALTIME, None "not known".
"""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.facts import ConntrackFact

RSS, FDS = "rss", "fds"
"""What grows."""


@dataclass(frozen=True)
class WorkerAborted:
    """A gunicorn master sent SIGABRT to its own worker: its heartbeat was older than the timeout."""

    master: int
    time: float
    timeout_s: float | None
    heartbeat_age_s: float | None
    """When the signal was sent."""
    application: str = ""
    """The master's command line."""
    seen: bool = True
    """False: the signal itself was not; the worker ended right after its heartbeat had become overdue."""


@dataclass(frozen=True)
class Start:
    """A worker that a master started and that has ended again, or not."""

    pid: int
    time: float
    lived_s: float | None
    """None: it lives."""
    status: int | None = None
    """As wait(2) tells it; None: not known."""


@dataclass(frozen=True)
class RestartStorm:
    """A master starts worker after worker, for each of them ends soon."""

    kind: str
    """The master's: "gunicorn-master" or "celery-main"."""
    starts: tuple[Start, ...]
    """The latest, the oldest first."""
    window_s: float
    """In which they were started."""
    memory_limit: str = ""
    """Celery's option that ends a child of this size after each task, as it was given; "" without one."""
    application: str = ""


@dataclass(frozen=True)
class OrphanedWorker:
    """A worker whose master is gone, and that goes on without it."""

    master: int
    since: float
    """When the master ended."""
    parent: int
    """Who has it now."""
    parent_command: str = ""
    application: str = ""


@dataclass(frozen=True)
class OomKilled:
    """The kernel killed the process to get memory back."""

    time: float
    rss_bytes: int | None
    """When it was last sampled."""
    limit_bytes: int | None
    """Of its cgroup (memory.max); None: it has none, or it cannot be read."""
    usage_bytes: int | None
    """Of its cgroup, when it was last sampled."""
    cgroup: str = ""
    seen: bool = True
    """False: the kill itself was not seen; it was killed by SIGKILL, and its cgroup's counter of such kills grew."""
    application: str = ""


@dataclass(frozen=True)
class Growth:
    """A quantity that grew steadily."""

    what: str
    """RSS or FDS."""
    samples: tuple[tuple[float, float], ...]
    """(time, value), the oldest first."""
    per_s: float
    """How fast: the median slope between samples."""
    limit: float | None
    """Where it ends: the cgroup's or the node's memory, or RLIMIT_NOFILE."""
    limit_source: str = ""
    application: str = ""


@dataclass(frozen=True)
class LoopStalled:
    """Several looks at a Celery main process found one callback on top of its event loop, and no return to the poll."""

    looks: int
    seconds: float
    """Between the first and the last of them."""


@dataclass(frozen=True)
class BeatStopped:
    """Celery beat has not woken up for longer than it ever sleeps, and nothing will wake it."""

    asleep_s: float
    """Its main thread has not run for so long, at least."""
    longest_s: float
    """It sleeps no longer than this between two ticks."""
    source: str = ""
    """Where `longest_s` is from."""
    application: str = ""


@dataclass(frozen=True)
class BeatTwice:
    """Two Celery beats run one schedule: every entry is sent twice."""

    other: int
    """The pid of the other one, which is older."""
    together_s: float
    """For so long both have been seen."""
    schedule: str
    """The file that both write; "" for a scheduler without one."""
    both_open: bool
    """Both have that very file open."""
    application: str = ""


@dataclass(frozen=True)
class ConntrackPressure:
    """The conntrack table that the process's connections are in runs full."""

    before: ConntrackFact
    after: ConntrackFact
    window_s: float
    """Between the two readings."""


Incident = (
    WorkerAborted
    | RestartStorm
    | OrphanedWorker
    | OomKilled
    | Growth
    | LoopStalled
    | BeatStopped
    | BeatTwice
    | ConntrackPressure
)


def code_of(incident: Incident) -> str:
    """The verdict code of what happened."""
    if isinstance(incident, Growth):
        return "memory-growth" if incident.what == RSS else "fd-growth"
    return _CODES[type(incident)]


_CODES: dict[type, str] = {
    WorkerAborted: "worker-timeout",
    RestartStorm: "restart-storm",
    OrphanedWorker: "orphaned-worker",
    OomKilled: "oom-killed",
    LoopStalled: "blocked-loop",
    BeatStopped: "beat-stopped",
    BeatTwice: "beat-twice",
    ConntrackPressure: "conntrack-pressure",
}
