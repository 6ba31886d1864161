"""The process as a whole: its role, its relatives, its container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MASTERS = frozenset({"gunicorn-master", "celery-main"})
WORKERS = frozenset({"gunicorn-worker", "celery-child"})
"""What masters start, and start anew."""
ROLES = MASTERS | WORKERS | {"celery-beat"}
"""Every kind that is gunicorn or Celery."""


@dataclass(frozen=True)
class WorkerFact:
    """What role the process has, and what limits apply to it. Source: argv, config files, parent, heartbeat file."""

    kind: str
    """"gunicorn-master", "gunicorn-worker", "celery-main", "celery-child", "celery-beat", "python", "other"."""
    worker_class: str = ""
    """gunicorn: sync, gthread, gevent, eventlet, tornado, uvicorn ...; "" when not known."""
    pool: str = ""
    """Celery: prefork, solo, threads, gevent, eventlet."""
    timeout_s: float | None = None
    """gunicorn's --timeout (0: none), or Celery's soft time limit."""
    timeout_source: str = ""
    hard_timeout_s: float | None = None
    concurrency: int | None = None
    threads: int | None = None
    last_notify_s: float | None = None
    """Age of a gunicorn worker's last heartbeat."""
    seconds_to_kill: float | None = None


@dataclass(frozen=True)
class Relative:
    """A parent, child or sibling of the target."""

    pid: int
    relation: str
    """"parent", "child", "sibling"."""
    command: str
    state: str
    kind: str
    """As `WorkerFact.kind`."""
    start_time: int
    alive: bool = True
    threads: tuple[tuple[int, str], ...] = ()
    """(ns_tid, name) of its threads; filled for the parent only."""
    same_program: bool = False
    """The parent runs with the target's own arguments, or is its master: the target is its fork, most likely."""


@dataclass(frozen=True)
class Container:
    id: str
    """"" where only its pod is known."""
    runtime: str = ""
    pod: str = ""
    """The pod's uid."""
    namespace: str = ""
    """Of Kubernetes; it and the pod's name are known only where a list of pods may be asked for."""
    name: str = ""
    """The container's, within its pod."""
    pod_name: str = ""

    @property
    def pod_as_told(self) -> str:
        """The pod's name where it is known, else its uid."""
        return f"{self.namespace}/{self.pod_name}" if self.pod_name else self.pod


@dataclass(frozen=True)
class ProcessFact:
    """The process as a whole. Source: /proc/PID/{stat,status,cmdline,exe,cgroup,maps}."""

    pid: int
    ns_pid: int
    ppid: int
    start_time: int
    """Clock ticks since boot: with the pid, the process's identity."""
    command: str
    argv: tuple[str, ...]
    state: str
    uid: int = 0
    age_s: float = 0.0
    rss_bytes: int | None = None
    fd_count: int | None = None
    executable: str = ""
    is_python: bool = False
    python_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Distribution name (normalised, lower case) -> version."""
    worker: WorkerFact = WorkerFact("other")
    container: Container | None = None
    frozen: bool = False
    """Its cgroup is frozen."""
    tracer_pid: int = 0
    hooked_c_clients: tuple[str, ...] = ()
    """C client libraries mapped in, by stem: "libpq", "librdkafka", "libmemcached" ..."""
    libraries: tuple[str, ...] = ()
    """Names of shared objects mapped (base names), for recognising libraries."""
    handles_signals: bool = False
    """It has handlers for signals other than SIGINT, which every Python handles."""
