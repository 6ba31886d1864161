"""What role a process has, and which limits apply to it.

Source: its command line (behind a title: the original one, from its memory) and those of its parents, gunicorn's
settings, Celery's options, and gunicorn's heartbeat: each worker touches an unlinked file named wgunicorn-* with the
monotonic clock, and its master kills it when that is older than the timeout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from stucktrace.collectors import command_line, gunicorn_config, procfs
from stucktrace.collectors.command_line import CELERY_BEAT, CELERY_WORKER, GUNICORN, CommandLine
from stucktrace.errors import CannotInspect
from stucktrace.facts import WorkerFact

_CLASSES = ("gthread", "gevent", "eventlet", "tornado", "uvicorn", "sync", "aiohttp")
_ROLES = {GUNICORN: ("gunicorn-master", "gunicorn-worker"), CELERY_WORKER: ("celery-main", "celery-child")}
_POOLS = {"processes": "prefork", "solo": "solo", "threads": "threads", "gevent": "gevent", "eventlet": "eventlet"}
_HEARTBEAT = "wgunicorn-"
HIDDEN = "process title"
"""`WorkerFact.timeout_source` where the title hides the options, and they are not to be had from memory either."""


@dataclass(frozen=True)
class Start:
    """As much of a process as decides its role."""

    pid: int
    ppid: int
    argv: tuple[str, ...]
    hidden_argv: tuple[str, ...] = ()
    """The original command line, where argv is a title."""


def kind_of(start: Start, *, is_python: bool) -> str:
    """The role alone: cheap, from two or three command lines."""
    mine = command_line.read(start.argv)
    if mine.program == CELERY_BEAT:
        return "celery-beat"
    if mine.program in _ROLES:
        master, worker = _ROLES[mine.program]
        if not _is_child(start, mine):
            return master
        if not _below_a_worker(start):
            return worker
    return "python" if is_python else "other"


def _below_a_worker(start: Start) -> bool:
    """A worker's own fork (of multiprocessing, say) looks just like the worker; but its parent is one."""
    try:
        parent = procfs.read_stat(start.ppid)
        line = command_line.read(procfs.read_argv(start.ppid))
    except CannotInspect:
        return False
    return line.program in _ROLES and _is_child(Start(parent.pid, parent.ppid, ()), line)


def _is_child(start: Start, mine: CommandLine) -> bool:
    if mine.role == "worker":
        return True
    try:
        parent = command_line.read(procfs.read_argv(start.ppid)) if start.ppid else CommandLine("")
    except CannotInspect:
        parent = CommandLine("")
    if parent.program == mine.program:
        # A master that its predecessor started anew (gunicorn's USR2) is a child too, but no fork.
        # And a fork that has not set its own title yet still shows its master's.
        forked = procfs.forked(start.pid, start.ppid)
        return forked if forked is not None else not mine.role
    # Its master is gone: a worker has its own heartbeat file and no children.
    return (
        not mine.role
        and mine.program == GUNICORN
        and not procfs.children(start.pid)
        and len(_heartbeat_files(start.pid)) == 1
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
    notified = last_notify_s(start.pid) if kind == "gunicorn-worker" else None
    if line.title:
        line = command_line.read(start.hidden_argv)
        if line.program != GUNICORN:
            return WorkerFact(kind, timeout_source=HIDDEN, last_notify_s=notified)
    settings = gunicorn_config.read(start.pid, line.arguments, environ, procfs.read_link(start.pid, "cwd"))
    threads = command_line.number(_text(settings["threads"].value))
    worker_class = class_name(_text(settings["worker_class"].value) or "")
    if worker_class == "sync" and threads and threads > 1:
        worker_class = "gthread"
    workers = command_line.number(_text(settings["workers"].value))
    timeout_s = command_line.number(_text(settings["timeout"].value))
    return WorkerFact(
        kind,
        worker_class=worker_class,
        timeout_s=timeout_s,
        timeout_source=settings["timeout"].source,
        concurrency=int(workers) if workers is not None else None,
        threads=int(threads) if threads is not None else None,
        last_notify_s=notified,
        seconds_to_kill=timeout_s - notified if timeout_s and notified is not None else None,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def class_name(given: str) -> str:
    """The short name of a worker class ("uvicorn" of "uvicorn.workers.UvicornWorker"); else the class's own name."""
    lowered = given.lower()
    if lowered.startswith("egg:"):
        lowered = lowered.rpartition("#")[2]
    return next((name for name in _CLASSES if name in lowered), given.rpartition(".")[2])


def _heartbeat_files(pid: int) -> list[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        return [name for name in names if f"/{_HEARTBEAT}" in procfs.read_link(pid, f"fd/{name}")]
    except OSError:
        return []


def last_notify_s(pid: int) -> float | None:
    """Age of the worker's last heartbeat; None when it has none that could be told from another worker's.

    Current gunicorn closes the files of other workers in a new worker; old versions do not, and then it is not known.
    """
    files = _heartbeat_files(pid)
    if len(files) != 1:
        return None
    try:
        touched = os.stat(f"/proc/{pid}/fd/{files[0]}").st_mtime
    except OSError:
        return None
    age = time.monotonic() - touched
    # A file that was never touched still has the wall clock of its creation.
    return age if age >= -1 else None


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
