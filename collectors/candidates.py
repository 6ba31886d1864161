"""Which processes are worth a look: down from an init, shell or supervisor to Python; and all there are on the node."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass

from stucktrace.collectors import cgroups, command_line, containers, interpreter, procfs, workers
from stucktrace.errors import CannotInspect, KernelThread, NotPermitted
from stucktrace.facts import ProcessFact

# Python programs whose own work is to keep other programs running: their children are what a user means.
_SUPERVISORS = (
    "watchmedo",
    "watchfiles",
    "supervisord",
    "supervisor.supervisord",
    "circusd",
    "circus.circusd",
    "honcho",
    "honcho.command",
)
_NAMES = re.compile(rb"python|pypy")
_MOST_MAPS_BYTES = 4 << 20
_CHILD_KIND = {"gunicorn-master": "gunicorn-worker", "celery-main": "celery-child"}


@dataclass(frozen=True)
class Candidate:
    """One Python process that could be looked at."""

    pid: int
    kind: str
    state: str
    age_s: float
    children: int
    container: str
    """Id, or ""."""
    command: str

    def __str__(self) -> str:
        from stucktrace.diagnosis.words import age

        where = f" in container {self.container[:12]}" if self.container else ""
        family = f" with {self.children} children" if self.children else ""
        return f"{self.pid:>8}  {self.kind:<16} up {age(self.age_s):<8} {self.command[:120]}{family}{where}"


def find_python(pid: int) -> tuple[int, ...]:
    """The Python processes that `pid` stands for: itself when it is one, else the nearest ones below it.

    A supervisor written in Python stands for the Python processes below it. (pid,) when there is no Python at all.
    Raises NoSuchProcess, NotPermitted.
    """
    stat = procfs.read_stat(pid)
    if stat.kernel_thread:
        raise KernelThread(f"process {pid} ({stat.command}) is a kernel thread", "look at a process instead")
    if _surely_python(pid) and not _supervises(pid):
        return (pid,)
    return _below(pid, depth=0) or _beside(stat) or (pid,)


def _beside(stat: procfs.Stat) -> tuple[int, ...]:
    """Of a pod whose containers share one PID namespace process 1 is its sandbox's, and they have no parent there."""
    if stat.pid != 1 or stat.command != "pause":
        return ()
    found: list[int] = []
    for pid in procfs.all_pids():
        with suppress(CannotInspect):
            if pid not in (1, os.getpid()) and procfs.read_stat(pid).ppid == 0:
                found += (pid,) if _surely_python(pid) and not _supervises(pid) else _below(pid, depth=0)
    return tuple(sorted(found))


def _surely_python(pid: int) -> bool:
    try:
        return interpreter.find(pid) is not None
    except OSError:
        return False


def _below(pid: int, depth: int) -> tuple[int, ...]:
    if depth > 16:
        return ()
    found: list[int] = []
    for child in procfs.children(pid):
        if child == os.getpid():
            # The shell that was meant started this very look too.
            continue
        if is_python(child) and not _supervises(child):
            found.append(child)
        else:
            found += _below(child, depth + 1)
    return tuple(found)


def _supervises(pid: int) -> bool:
    try:
        argv = procfs.read_argv(pid)
    except CannotInspect:
        return False
    return command_line.program_name(argv) in _SUPERVISORS


def is_python(pid: int) -> bool:
    """As `interpreter.find`, but most processes are told by their mapped files' names, which is quick.

    A statically linked interpreter under another name, with no extension module loaded, is missed here.
    """
    try:
        if not _NAMES.search(procfs.read(pid, "maps", _MOST_MAPS_BYTES)):
            return False
    except NotPermitted:
        # Its name and command line, which everybody may read, are looked at.
        pass
    except CannotInspect:
        return False
    return _surely_python(pid)


def children_of(process: ProcessFact) -> tuple[int, ...]:
    """The workers of a gunicorn master, or the pool of a Celery main process."""
    wanted = _CHILD_KIND.get(process.worker.kind)
    found = []
    for pid in procfs.children(process.pid):
        try:
            argv = procfs.read_argv(pid)
        except CannotInspect:
            continue
        if workers.kind_of(workers.Start(pid, process.pid, argv), is_python=True) == wanted and not _ending(pid):
            found.append(pid)
    return tuple(found)


def _ending(pid: int) -> bool:
    try:
        return procfs.read_stat(pid).ending
    except CannotInspect:
        return True


def list_candidates() -> tuple[Candidate, ...]:
    """Every Python process that can be seen, masters first, then by pid; ours is left out."""
    found = []
    for pid in procfs.all_pids():
        if pid == os.getpid() or not is_python(pid):
            continue
        try:
            stat = procfs.read_stat(pid)
            argv = procfs.read_argv(pid)
        except CannotInspect:
            continue
        if stat.ending:
            continue
        kind = workers.kind_of(workers.Start(pid, stat.ppid, argv), is_python=True)
        container = containers.read_container(pid, cgroups.read_paths(pid))
        found.append(
            Candidate(
                pid=pid,
                kind=kind,
                state=stat.state,
                age_s=stat.age_s,
                children=len(procfs.children(pid)) if kind in _CHILD_KIND else 0,
                container=container.id if container else "",
                command=command_line.without_userinfo(" ".join(argv)) or stat.command,
            )
        )
    return tuple(sorted(found, key=lambda candidate: (candidate.kind not in _CHILD_KIND, candidate.pid)))
