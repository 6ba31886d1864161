"""Parent, children and siblings of a process. Source: /proc/PID/stat and the children lists of threads."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from stucktrace.collectors import command_line, procfs, workers
from stucktrace.errors import CannotInspect
from stucktrace.facts import ProcessFact, Relative

MOST = 512
SETTLED_AFTER_S = 10.0
"""By then a process has begun its own program, and a worker has made its heartbeat file."""


def collect(process: ProcessFact, known: dict[int, Relative | None] | None = None) -> tuple[Relative, ...]:
    """The parent (with its threads), children, and siblings where the parent runs the same program.

    An orphan's parent is whoever reaps it; its siblings are then the other children there with its very arguments.
    `known`: what was read in this look; the members of one family share it, so each process is read once.
    """
    known = {} if known is None else known
    found: list[Relative] = []
    family = bool(process.ppid) and _same_family(process)
    if process.ppid and (parent := _relative(process.ppid, known)):
        threads = parent.threads or _threads(process.ppid)
        known[process.ppid] = replace(parent, threads=threads)
        found.append(replace(parent, relation="parent", threads=threads, same_program=family))
    found += _all(procfs.children(process.pid)[:MOST], "child", known)
    if family:
        siblings = [pid for pid in procfs.children(process.ppid) if pid != process.pid]
        found += _all(siblings[:MOST], "sibling", known)
    elif process.ppid and process.argv:
        found += _all(_same_argv(process), "sibling", known)
    return tuple(found)


def _all(pids: list[int], relation: str, known: dict[int, Relative | None]) -> list[Relative]:
    found = (_relative(pid, known) for pid in pids)
    return [replace(relative, relation=relation, threads=()) for relative in found if relative]


def _same_argv(process: ProcessFact) -> list[int]:
    found = []
    for pid in procfs.children(process.ppid)[:MOST]:
        try:
            if pid != process.pid and procfs.read_argv(pid) == process.argv:
                found.append(pid)
        except CannotInspect:
            continue
    return found


def _same_family(process: ProcessFact) -> bool:
    """The parent runs the same program, so its other children do the same work."""
    try:
        argv = procfs.read_argv(process.ppid)
    except CannotInspect:
        return False
    mine, theirs = command_line.read(process.argv), command_line.read(argv)
    return argv == process.argv or (mine.program == theirs.program != command_line.OTHER)


def _relative(pid: int, known: dict[int, Relative | None]) -> Relative | None:
    if pid not in known:
        known[pid] = _read(pid)
    return known[pid]


def _read(pid: int) -> Relative | None:
    try:
        stat = procfs.read_stat(pid)
        if stat.kernel_thread:
            return None
        argv = procfs.read_argv(pid)
    except CannotInspect:
        return None
    start = workers.Start(pid, stat.ppid, argv)
    is_python = _looks_like_python(stat.command, argv)
    # What it is takes a look at its files and its parent's, and does not change once it has settled.
    settled = stat.age_s > SETTLED_AFTER_S
    kind = _kind(stat.start_time, start, is_python) if settled else workers.kind_of(start, is_python=is_python)
    return Relative(
        pid=pid,
        relation="",
        command=stat.command,
        state=stat.state,
        kind=kind,
        start_time=stat.start_time,
        alive=not stat.ending,
    )


@lru_cache(4096)
def _kind(_start_time: int, start: workers.Start, is_python: bool) -> str:
    return workers.kind_of(start, is_python=is_python)


def _looks_like_python(command: str, argv: tuple[str, ...]) -> bool:
    return "python" in command.lower() or (bool(argv) and "python" in argv[0].rpartition("/")[2].lower())


def _threads(pid: int) -> tuple[tuple[int, str], ...]:
    """(id in its own namespace, name) of each thread."""
    found = []
    try:
        for tid in procfs.thread_ids(pid):
            status = procfs.parse_status(procfs.read(pid, f"task/{tid}/status").decode(errors="replace"))
            found.append((procfs.last_number(status.get("NSpid", ""), tid), status.get("Name", "")))
    except CannotInspect:
        return tuple(found)
    return tuple(found)
