"""What role a process has, and which limits apply to it.

Source: its command line (behind a title: the original one, from its memory) and those of its parents, gunicorn's
settings, Celery's options, and gunicorn's heartbeat files (heartbeat.py), which master and worker share: they tell a
worker from gunicorn's other children, and a gunicorn that an application started from its own code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from stucktrace.collectors import command_line, gunicorn_config, heartbeat, openfiles, procfs
from stucktrace.collectors.command_line import CELERY_BEAT, CELERY_WORKER, GUNICORN, CommandLine
from stucktrace.errors import CannotInspect, CollectorError
from stucktrace.facts import WorkerFact

_CLASSES = ("gthread", "gevent", "eventlet", "tornado", "uvicorn", "sync", "aiohttp")
_ROLES = {GUNICORN: ("gunicorn-master", "gunicorn-worker"), CELERY_WORKER: ("celery-main", "celery-child")}
_POOLS = {"processes": "prefork", "solo": "solo", "threads": "threads", "gevent": "gevent", "eventlet": "eventlet"}
_POOLS_WITHOUT_CHILDREN = frozenset({"solo", "threads", "gevent", "eventlet"})
HIDDEN = "process title"
"""`WorkerFact.timeout_source` where the title hides the options, and they are not to be had from memory either."""
EMBEDDED = "application"
"""The same, where an application starts gunicorn from its own code and sets it there."""


@dataclass(frozen=True)
class Start:
    """As much of a process as decides its role."""

    pid: int
    ppid: int
    argv: tuple[str, ...]
    hidden_argv: tuple[str, ...] = ()
    """The original command line, where argv is a title."""


class Glimpse(NamedTuple):
    """What tells workers from a node's other processes."""

    argv: tuple[str, ...]
    stat: procfs.Stat
    kind: str
    """Of those that are not gunicorn or Celery it is not certain."""


def glance(pid: int) -> Glimpse | None:
    """None for a kernel thread and one on its way out. Raises CannotInspect."""
    argv = procfs.read_argv(pid)
    if not argv:
        return None
    stat = procfs.read_stat(pid)
    # Enough to ask whether a program that starts gunicorn by itself is one; what --match finds is asked properly.
    maybe_python = "py" in procfs.read_link(pid, "exe").rpartition("/")[2]
    kind = kind_of(Start(pid, stat.ppid, argv), is_python=maybe_python)
    return None if stat.ending else Glimpse(argv, stat, kind)


def kind_of(start: Start, *, is_python: bool) -> str:
    """The role alone: cheap, from two or three command lines and fd tables."""
    mine = command_line.read(start.argv)
    if mine.program == CELERY_BEAT:
        return "celery-beat"
    if mine.program in _ROLES:
        master, worker = _ROLES[mine.program]
        if not _is_child(start, mine):
            return master
        if not _below_a_worker(start):
            return (_gunicorn_child if mine.program == GUNICORN else _celery_child)(start, mine) or worker
    return (_embedded(start) or "python") if is_python else "other"


def _gunicorn_child(start: Start, mine: CommandLine) -> str:
    """ "python" for what else a gunicorn master forks; "" for a worker: the master opened its heartbeat file."""
    return "python" if mine.role != "worker" and heartbeat.shared(start.pid, start.ppid) is False else ""


def _celery_child(start: Start, mine: CommandLine) -> str:
    """What else a Celery main process forks; "" for a child of its pool."""
    parent = _line(start.ppid)
    if mine.role or parent.program != CELERY_WORKER:
        return ""
    if command_line.option(parent.arguments, "-P", "--pool") in _POOLS_WITHOUT_CHILDREN:
        return "python"
    beat = any(word == "--beat" or re.match(r"^-[CDE]*B", word) for word in parent.arguments)
    return "celery-beat" if beat and not _shares_a_pipe(start) else ""


def _shares_a_pipe(start: Start) -> bool:
    """With its parent, beside the standard streams: each child of a pool does; the embedded beat closed them all."""
    try:
        mine, theirs = openfiles.read_fds(start.pid), openfiles.read_fds(start.ppid)
    except CollectorError:
        return True
    return any(max(fds) > 2 and inode in theirs.pipes() for inode, fds in mine.pipes().items())


def _embedded(start: Start) -> str:
    """The role in a gunicorn that an application runs from its own code, or under its own title; "" without one."""
    files = heartbeat.files(start.pid)
    if not files:
        return ""
    above = heartbeat.files(start.ppid) or frozenset()
    if files & above:
        # What a worker forked inherits the file too.
        return "" if above & (heartbeat.files(_ppid(start.ppid)) or frozenset()) else "gunicorn-worker"
    children = procfs.children(start.pid)
    return "gunicorn-master" if any(files & (heartbeat.files(child) or frozenset()) for child in children) else ""


def _line(pid: int) -> CommandLine:
    try:
        return command_line.read(procfs.read_argv(pid)) if pid else CommandLine("")
    except CannotInspect:
        return CommandLine("")


def _ppid(pid: int) -> int:
    try:
        return procfs.read_stat(pid).ppid
    except CannotInspect:
        return 0


def _below_a_worker(start: Start) -> bool:
    """A worker's own fork (of multiprocessing, say) looks just like the worker; but its parent is one."""
    line = _line(start.ppid)
    return line.program in _ROLES and _is_child(Start(start.ppid, _ppid(start.ppid), ()), line)


def _is_child(start: Start, mine: CommandLine) -> bool:
    if mine.role == "worker":
        return True
    if _line(start.ppid).program == mine.program:
        # A master that its predecessor started anew (gunicorn's USR2) is a child too, but no fork.
        # And a fork that has not set its own title yet still shows its master's.
        forked = procfs.forked(start.pid, start.ppid)
        return forked if forked is not None else not mine.role
    # Its master is gone: a worker has its own heartbeat file and no children.
    return (
        not mine.role
        and mine.program == GUNICORN
        and not procfs.children(start.pid)
        and len(heartbeat.files(start.pid) or ()) == 1
    )


def read_worker(start: Start, *, is_python: bool, environ: Mapping[str, str] | None) -> WorkerFact:
    """The whole role. Raises nothing: what cannot be read stays None. `environ` None: it cannot be read."""
    kind = kind_of(start, is_python=is_python)
    if kind in ("gunicorn-master", "gunicorn-worker"):
        return _gunicorn(start, kind, environ)
    if kind in ("celery-main", "celery-child"):
        return _celery(start, kind)
    return WorkerFact(kind)


def _gunicorn(start: Start, kind: str, environ: Mapping[str, str] | None) -> WorkerFact:
    line = command_line.read(start.argv)
    hidden = bool(line.title)
    if hidden:
        line = command_line.read(start.hidden_argv)
    if line.program != GUNICORN:
        return notified(start.pid, start.ppid, WorkerFact(kind, timeout_source=HIDDEN if hidden else EMBEDDED))
    # An application may change its worker's directory; its master keeps the one that the settings were read in.
    above = kind == "gunicorn-worker" and _line(start.ppid).program == GUNICORN
    cwd = (procfs.read_link(start.ppid, "cwd") if above else "") or procfs.read_link(start.pid, "cwd")
    settings = gunicorn_config.read(start.pid, line.arguments, environ, cwd)
    threads = command_line.number(_text(settings["threads"].value))
    worker_class = class_name(_text(settings["worker_class"].value) or "")
    if worker_class == "sync" and threads and threads > 1:
        worker_class = "gthread"
    workers = command_line.number(_text(settings["workers"].value))
    timeout_s = command_line.number(_text(settings["timeout"].value))
    fact = WorkerFact(
        kind,
        worker_class=worker_class,
        timeout_s=timeout_s,
        timeout_source=settings["timeout"].source,
        concurrency=int(workers) if workers is not None else None,
        threads=int(threads) if threads is not None else None,
    )
    return notified(start.pid, start.ppid, fact)


def notified(pid: int, ppid: int, worker: WorkerFact) -> WorkerFact:
    """The same with the age of its last heartbeat, if it is a gunicorn worker."""
    if worker.kind != "gunicorn-worker":
        return worker
    age_s, timeout_s = heartbeat.last_notify_s(pid, ppid), worker.timeout_s
    left_s = timeout_s - age_s if timeout_s and age_s is not None else None
    return replace(worker, last_notify_s=age_s, seconds_to_kill=left_s)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def class_name(given: str) -> str:
    """The short name of a worker class ("uvicorn" of "uvicorn.workers.UvicornWorker"); else the class's own name."""
    lowered = given.lower()
    if lowered.startswith("egg:"):
        lowered = lowered.rpartition("#")[2]
    return next((name for name in _CLASSES if name in lowered), given.rpartition(".")[2])


def _celery(start: Start, kind: str) -> WorkerFact:
    line = command_line.read(start.argv)
    hidden = command_line.read(start.hidden_argv)
    arguments = hidden.arguments if line.title and hidden.program == CELERY_WORKER else line.arguments
    pool = command_line.option(arguments, "-P", "--pool")
    soft = command_line.number(command_line.option(arguments, "--soft-time-limit"))
    hard = command_line.number(command_line.option(arguments, "--time-limit"))
    concurrency = command_line.number(command_line.option(arguments, "-c", "--concurrency"))
    return WorkerFact(
        kind,
        pool=_POOLS.get(pool, pool) if pool else _pool(start.pid, kind),
        timeout_s=soft if soft is not None else hard,
        timeout_source="command line" if soft is not None or hard is not None else "",
        hard_timeout_s=hard,
        concurrency=int(concurrency) if concurrency is not None else None,
    )


def _pool(pid: int, kind: str) -> str:
    """Without an option the application's settings may name the pool: only one of processes shows."""
    return "prefork" if kind == "celery-child" or procfs.children(pid) else ""
