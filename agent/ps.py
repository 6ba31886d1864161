"""The rows of `stucktrace ps`: the node's workers, what each one's main thread is in and since when, and a verdict.

A glance first, at all of them in one pass over the kernel. It is enough for a worker that stands in its role's own idle
wait, which the kernel alone shows. Only the others are inspected as `stucktrace pid` does, which costs some 20 ms of
CPU time each.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace import pod_lookup
from stucktrace.errors import CannotInspect, CollectorError, NoSuchProcess, StucktraceError
from stucktrace.facts import ROLES, WORKERS, Container, ProcessFact, Snapshot, WorkerFact
from stucktrace.rows import IDLE, Row, at_rest, doing, inside, inspected, ordered
from stucktrace.run import Earlier, Options

if TYPE_CHECKING:
    from stucktrace.collectors.innermost import Family
    from stucktrace.collectors.kernel import Opened

"""All of one master have the same class and limits: they are read once."""
VERDICT_STANDS_S = 10.0


@dataclass(frozen=True)
class Selection:
    """Which processes are shown beside gunicorn's and Celery's."""

    match: re.Pattern[str] | None = None
    """Python processes whose command line it is found in."""
    everything: bool = False
    """Every Python process."""


@dataclass(frozen=True)
class _Known:
    """What an inspection said, and of what."""

    row: Row
    doing: tuple[object, ...] | None
    at: float
    """CLOCK_MONOTONIC."""
    earlier: Earlier


class Table:
    """Looks at the node, again and again when wanted.

    A verdict stands for VERDICT_STANDS_S while every thread is in the same call on the same thing. `at_a_time`: so many
    processes are inspected in a look, those with the oldest verdicts first; None: all.
    """

    def __init__(
        self,
        selection: Selection,
        options: Options,
        opened: Callable[[], Opened],
        *,
        verdicts: bool = True,
    ) -> None:
        self._selection = selection
        self._options = replace(options, children=False, siblings=False, greenlets=False)
        self._opened = opened
        self._verdicts = verdicts
        self.at_a_time: int | None = None
        self._known: dict[int, _Known] = {}
        self._families: dict[int, Family] = {}
        """pid of a master -> its workers."""
        self._pods: set[str] = set()
        self._name: Callable[[Container | None], Container | None] = lambda container: container
        self.pending = False
        """Some were not inspected yet, for want of `at_a_time`."""
        self.blind: tuple[str, str] | None = None
        """Where of no process it could be read what it is inside: why, and the remedy."""

    def look(self) -> Iterator[tuple[Row, ...]]:
        """All rows, at first without the verdicts that take their time; the last ones are complete."""
        from stucktrace.inspection import inspect_each

        self._families = {}
        seen = {snapshot.process.pid: snapshot for snapshot in self._glance()}
        rows = {pid: self._row(snapshot, seen) for pid, snapshot in seen.items()}
        self._known = {pid: known for pid, known in self._known.items() if pid in seen}
        yield ordered(rows.values())
        due = [pid for pid, row in rows.items() if self._due(row)] if self._verdicts else []
        due.sort(key=lambda pid: self._known[pid].at if pid in self._known else 0.0)
        self.pending = any(
            pid not in self._known for pid in due[len(due) if self.at_a_time is None else self.at_a_time :]
        )
        before = {pid: known.earlier for pid, known in self._known.items()}
        for pid, answer in inspect_each(due[: self.at_a_time], self._options, self._opened, before):
            if isinstance(answer, NoSuchProcess):
                del rows[pid]
                continue
            if isinstance(answer, StucktraceError):
                rows[pid] = replace(rows[pid], because=answer.message)
                continue
            found = answer.snapshot
            rows[pid] = replace(inspected(answer), process=seen[pid].process)
            earlier = Earlier(found.process, found.threads, found.python, found.work, found.time)
            self._known[pid] = _Known(rows[pid], doing(seen[pid]), time.monotonic(), earlier)
        if due:
            yield ordered(rows.values())

    def _named(self, processes: tuple[ProcessFact, ...]) -> Iterator[ProcessFact]:
        """With the names of pods, where there are new ones and somebody may be asked."""
        containers = [process.container for process in processes]
        pods = {container.pod for container in containers if container is not None}
        if not pods <= self._pods:
            self._pods, self._name = pods, pod_lookup.named(containers)
        return (replace(process, container=self._name(process.container)) for process in processes)

    def _row(self, snapshot: Snapshot, all_seen: Mapping[int, Snapshot]) -> Row:
        """What the glance tells, and the verdict of an earlier look when it stands."""
        process = snapshot.process
        row = Row(process, threads=len(snapshot.threads), inside=inside(snapshot, process.pid))
        above = all_seen.get(process.ppid)
        if at_rest(snapshot, above.fds.values() if above else (), partial(self._innermost, process)):
            return replace(row, verdict=IDLE)
        known = self._known.get(process.pid)
        if known is None or known.row.process.start_time != process.start_time:
            self._known.pop(process.pid, None)
            return row
        if known.doing is None or known.doing != doing(snapshot):
            return row
        now = inside(snapshot, known.row.inside.tid) if known.row.inside else None
        if now is not None and known.row.inside is not None:
            now = replace(now, thread=known.row.inside.thread)
        return replace(row, inside=now, work=known.row.work, verdict=known.row.verdict)

    def _innermost(self, process: ProcessFact) -> tuple[tuple[str, str], ...] | None:
        """Of each thread of a worker; forks of one master are read alike."""
        from stucktrace.collectors import innermost, procfs

        try:
            if not procfs.forked(process.pid, process.ppid):
                return None
            if process.ppid not in self._families:
                self._families[process.ppid] = innermost.Family(process.pid)
        except OSError:
            return None
        return self._families[process.ppid].innermost(process.pid)

    def _due(self, row: Row) -> bool:
        if row.verdict is IDLE:
            return False
        known = self._known.get(row.pid)
        return row.verdict is None or known is None or time.monotonic() - known.at > VERDICT_STANDS_S

    def _glance(self) -> list[Snapshot]:
        """The threads, sockets and fds of every process, in one pass."""
        from stucktrace.collectors import epoll, openfiles, sockets, threads

        processes = {process.pid: process for process in self._named(tuple(find(self._selection)))}
        opened = self._opened()
        seen = threads.look(tuple(processes), opened.kernel)
        files = {}
        for pid in processes:
            with suppress(CollectorError):
                files[pid] = openfiles.read_fds(pid)
        sockets_of = sockets.collect(tuple(files), files, opened.kernel)
        found = [
            Snapshot(
                time.time(),
                replace(process, fd_count=len(files[pid].links) if pid in files else None),
                threads=seen.facts[pid],
                sockets=sockets_of.get(pid, ()),
                epolls=epoll.collect(process, files[pid]) if pid in files else (),
                fds=files[pid].links if pid in files else {},
            )
            for pid, process in processes.items()
            if seen.facts.get(pid)
        ]
        lacks = next(iter((*seen.missing, *opened.missing)), None)
        readable = any(thread.syscall or thread.state == "R" for one in found for thread in one.threads)
        self.blind = (f"{lacks.what}: {lacks.because}", lacks.remedy) if found and lacks and not readable else None
        return found


def find(selection: Selection) -> Iterator[ProcessFact]:
    """The processes to show, with what costs little: of the workers of one master the limits are read once."""
    from stucktrace.collectors import candidates, cgroups, containers, heartbeat, procfs, workers
    from stucktrace.collectors.process import read_process

    known: dict[tuple[int, str], WorkerFact] = {}
    for pid in procfs.all_pids():
        with suppress(CannotInspect):
            glimpse = workers.glance(pid) if pid != os.getpid() else None
            if glimpse is None:
                continue
            argv, stat, kind = glimpse
            if not (kind in ROLES or (_wanted(selection, argv) and candidates.is_python(pid))):
                continue
            worker = known.get((stat.ppid, kind))
            if worker is None:
                process = read_process(pid)
                if kind in WORKERS:
                    known[stat.ppid, kind] = process.worker
                yield process
                continue
            if kind == "gunicorn-worker":
                worker = replace(worker, last_notify_s=heartbeat.last_notify_s(pid, stat.ppid))
            paths = cgroups.read_paths(pid)
            yield ProcessFact(
                pid,
                pid,
                stat.ppid,
                stat.start_time,
                stat.command,
                argv,
                stat.state,
                age_s=stat.age_s,
                rss_bytes=stat.rss_bytes,
                is_python=True,
                worker=worker,
                container=containers.read_container(pid, paths),
                frozen=cgroups.frozen(pid, paths),
            )


def _wanted(selection: Selection, argv: tuple[str, ...]) -> bool:
    return selection.everything or (selection.match is not None and selection.match.search(" ".join(argv)) is not None)
