"""What role a process has, and which limits apply to it.

Source: its command line and those of its ancestors, gunicorn's settings, Celery's options, and gunicorn's heartbeat
files (heartbeat.py), which also tell a worker from a re-executed master, from gunicorn's other children, and from a
child that a worker forked. What an application sets in its own code (Celery's configuration) is not seen from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stucktrace.collectors import command_line, gunicorn_config, heartbeat, openfiles, procfs
from stucktrace.collectors.command_line import CELERY_BEAT, CELERY_WORKER, GUNICORN, CommandLine
from stucktrace.errors import CannotInspect, CollectorError
from stucktrace.facts import WorkerFact

_CLASSES = {
    "geventlet": "eventlet",
    "eventlet": "eventlet",
    "gevent": "gevent",
    "gthread": "gthread",
    "threadworker": "gthread",
    "tornado": "tornado",
    "uvicorn": "uvicorn",
    "gunicornwebworker": "aiohttp",
    "gunicornuvloopwebworker": "aiohttp",
    "sync": "sync",
    "asgi": "asgi",
}
_POOLS = {"processes": "prefork"}
_WITHOUT_CHILDREN = frozenset({"solo", "threads", "gevent", "eventlet"})
_HIDDEN = "not known: its title hides the command line"


@dataclass(frozen=True)
class Start:
    """As much of a process as decides its role."""

    pid: int
    ppid: int
    argv: tuple[str, ...]


def kind_of(start: Start, *, is_python: bool) -> str:
    """The role alone: cheap."""
    mine = command_line.read(start.argv)
    if mine.program == CELERY_BEAT:
        return "celery-beat"
    if mine.program == CELERY_WORKER:
        return _celery_kind(start, mine)
    if mine.program == GUNICORN or is_python:
        # An application can start gunicorn from its own code, or write its own title: the heartbeat tells.
        return _gunicorn_kind(start, mine)
    return "other"


def read_worker(start: Start, *, is_python: bool, environ: Mapping[str, str]) -> WorkerFact:
    """The whole role. Raises nothing: what cannot be read stays None."""
    kind = kind_of(start, is_python=is_python)
    if kind in ("gunicorn-master", "gunicorn-worker"):
        return _gunicorn(start, kind, environ)
    if kind in ("celery-main", "celery-child"):
        return _celery(start, kind)
    return WorkerFact(kind)


def class_name(given: str) -> str:
    """The short name of a worker class ("uvicorn" of "uvicorn.workers.UvicornWorker"); else the class's own name."""
    last = re.split(r"[.#:]", given.strip())[-1]
    lowered = last.lower().lstrip("_")
    return next((short for start, short in _CLASSES.items() if lowered.startswith(start)), last)


def _gunicorn_kind(start: Start, mine: CommandLine) -> str:
    if mine.program == GUNICORN and mine.role == "other":
        return "python"
    files = heartbeat.files(start.pid)
    above = heartbeat.files(start.ppid) if start.ppid else None
    if files is None or (above is None and mine.program == GUNICORN):
        return _gunicorn_kind_by_argv(start, mine)
    if files & (above or frozenset()):
        if mine.role == "master":
            return "python"
        grandparent = _ppid(start.ppid)
        higher = (heartbeat.files(grandparent) if grandparent else None) or frozenset()
        return "python" if (above or frozenset()) & higher else "gunicorn-worker"
    if mine.program == GUNICORN and mine.role:
        return f"gunicorn-{mine.role}"
    if not files:
        return _gunicorn_kind_by_argv(start, mine) if mine.program == GUNICORN and not _forked(start) else "python"
    # Its own heartbeat files: a master's are its workers'. A worker whose master is gone has one, and no children.
    return "gunicorn-worker" if len(files) == 1 and not procfs.children(start.pid) else "gunicorn-master"


def _gunicorn_kind_by_argv(start: Start, mine: CommandLine) -> str:
    if mine.program != GUNICORN:
        return "python"
    if mine.role:
        return f"gunicorn-{mine.role}"
    return "gunicorn-worker" if _forked(start) else "gunicorn-master"


def _forked(start: Start) -> bool:
    """The parent runs the same program."""
    return _line(start.ppid).program == command_line.read(start.argv).program


def _celery_kind(start: Start, mine: CommandLine) -> str:
    parent = _line(start.ppid)
    if parent.program != CELERY_WORKER:
        return "celery-child" if mine.role == "worker" else "celery-main"
    # A child that a task forked inherits what the pool's child inherited: its parent is no main process.
    if parent.role == "worker" or (not parent.role and _line(_ppid(start.ppid)).program == CELERY_WORKER):
        return "python"
    if pool(parent.options) in _WITHOUT_CHILDREN:
        return "python"
    if "beat" in parent.options and not mine.role and not _shares_a_pipe(start):
        return "celery-beat"
    return "celery-child"


def _shares_a_pipe(start: Start) -> bool:
    """With its parent, beside the standard streams: each child of a pool does; the embedded beat closed them all."""
    try:
        mine, theirs = openfiles.read_fds(start.pid), openfiles.read_fds(start.ppid)
    except CollectorError:
        return True
    return any(max(fds) > 2 and inode in theirs.pipes() for inode, fds in mine.pipes().items())


def _line(pid: int) -> CommandLine:
    try:
        return command_line.read(procfs.read_argv(pid)) if pid else CommandLine(command_line.OTHER)
    except CannotInspect:
        return CommandLine(command_line.OTHER)


def _ppid(pid: int) -> int:
    try:
        return procfs.read_stat(pid).ppid if pid else 0
    except CannotInspect:
        return 0


def _gunicorn(start: Start, kind: str, environ: Mapping[str, str]) -> WorkerFact:
    notified = heartbeat.last_notify_s(start.pid, start.ppid) if kind == "gunicorn-worker" else None
    master, above = (start.ppid, _ppid(start.ppid)) if kind == "gunicorn-worker" else (start.pid, start.ppid)
    line, wrapper = command_line.read(start.argv), ""
    if line.title or line.program != GUNICORN:
        line, wrapper = _wrapped(above), " of its parent"
    if line.program != GUNICORN:
        return WorkerFact(kind, timeout_source=_HIDDEN, last_notify_s=notified)
    if not procfs.read_link(master, "cwd"):
        master = start.pid
    settings = gunicorn_config.read(master, line.options, environ)
    timeout, threads = settings["timeout"], _number(settings["threads"])
    worker_class = class_name(str(settings["worker_class"].value or ""))
    if worker_class == "sync":
        # gunicorn takes gthread for sync with threads.
        worker_class = "" if threads is None else "gthread" if threads > 1 else "sync"
    timeout_s, concurrency = _number(timeout), _number(settings["workers"])
    if timeout_s is None:
        source = f"not known: computed in {timeout.source}"
    else:
        source = timeout.source + (wrapper if timeout.source == "command line" else "")
    return WorkerFact(
        kind,
        worker_class=worker_class,
        timeout_s=timeout_s,
        timeout_source=source,
        concurrency=int(concurrency) if concurrency is not None else None,
        threads=int(threads) if threads is not None else None,
        last_notify_s=notified,
        seconds_to_kill=timeout_s - notified if timeout_s and notified is not None else None,
    )


def _wrapped(pid: int) -> CommandLine:
    """What a tini or a shell above was told to run: it still stands there when titles hide everything below."""
    try:
        return command_line.read_wrapped(procfs.read_argv(pid)) if pid else CommandLine(command_line.OTHER)
    except CannotInspect:
        return CommandLine(command_line.OTHER)


def _number(setting: gunicorn_config.Setting) -> float | None:
    return command_line.number(None if setting.value is None else str(setting.value))


def _celery(start: Start, kind: str) -> WorkerFact:
    line = command_line.read(start.argv)
    if kind == "celery-child" and line.title:
        line = _line(start.ppid)
    soft = command_line.number(line.options.get("soft-time-limit"))
    hard = command_line.number(line.options.get("time-limit"))
    concurrency = command_line.number(line.options.get("concurrency"))
    if concurrency is None and kind == "celery-main" and pool(line.options) == "prefork":
        concurrency = _count_children(start.pid)
    return WorkerFact(
        kind,
        pool=pool(line.options),
        timeout_s=soft if soft is not None else hard,
        timeout_source="command line" if soft is not None or hard is not None else "",
        hard_timeout_s=hard,
        concurrency=int(concurrency) if concurrency else None,
    )


def pool(options: Mapping[str, str]) -> str:
    """Celery's pool by its short name; a class given with its path keeps its own."""
    given = options.get("pool", "prefork")
    return _POOLS.get(given, class_name(given) if "." in given or ":" in given else given)


def _count_children(pid: int) -> int:
    found = 0
    for child in procfs.children(pid):
        try:
            found += kind_of(Start(child, pid, procfs.read_argv(child)), is_python=True) == "celery-child"
        except CannotInspect:
            continue
    return found
