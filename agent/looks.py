"""Looks at processes: one pass of all collectors, and a second one after a sampling window.

Several processes share a pass: one look at the kernel, one search of the node's fd tables, stacks read side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace import join, looks_memory
from stucktrace.facts import (
    CallActivity,
    ProcessFact,
    PythonFact,
    Relative,
    SocketFact,
    TcpEvent,
    ThreadFact,
)
from stucktrace.join import Look, Window
from stucktrace.run import Earlier, Run

if TYPE_CHECKING:
    from stucktrace.collectors.conntrack import Answers
    from stucktrace.collectors.file_holders import Held
    from stucktrace.collectors.openfiles import OpenFiles

STACK_READERS = 4
"""py-spy processes at a time: each is short and mostly system time."""


def look(
    run: Run, processes: Mapping[int, ProcessFact], before: Mapping[int, Look] | None = None, since: float = 0.0
) -> dict[int, Look]:
    """One pass of all collectors. `before`: the look of the time `since` to compare with; what hardly changes is taken
    from it."""
    from stucktrace.collectors import epoll, file_locks, openfiles, pipes, relatives, threads, work

    began = time.time()
    pids = tuple(processes)
    threads_of = _threads(run, pids)
    pids = tuple(pid for pid in pids if threads_of.get(pid))
    unchanged = {
        pid: known.python
        for pid, known in run.earlier.items()
        if known.python is not None and join.still_asleep(known.threads, threads_of.get(pid, ()))
    }
    stacks = _Stacks(
        run, [processes[pid] for pid in pids if processes[pid].is_python and pid not in unchanged], threads_of
    )
    files: dict[int, OpenFiles] = {}
    for pid in pids:
        table = run.collect("files", None, partial(openfiles.read_fds, pid), pid)
        if table is not None:
            files[pid] = table
            if not table.complete:
                run.miss(openfiles.unreadable_links(pid), pid)
    epolls = {pid: run.collect("epoll", (), partial(epoll.collect, processes[pid], files[pid]), pid) for pid in files}
    details = {
        pid: join.waited_fds(threads_of[pid], epolls[pid], {fd for fds in files[pid].sockets().values() for fd in fds})
        for pid in files
    }
    sockets_of = _sockets(run, pids, files, details)
    for pid, seen in sockets_of.items():
        if not details.get(pid):
            # Its fd table cannot be read; BPF tells the fds of its sockets all the same.
            details[pid] = join.waited_fds(threads_of[pid], (), {fd for socket in seen for fd in socket.fds})
    entries = {pid: _entries(run, pid, sockets_of[pid], details.get(pid, ())) for pid in sockets_of}
    sockets_of = {pid: asked.sockets if (asked := entries[pid]) else sockets_of[pid] for pid in sockets_of}
    held = run.collect("pipes", None, partial(_pipe_holders, processes, files)) if len(files) > 1 else None
    pipes_of = {
        pid: run.collect("pipes", (), partial(pipes.collect, processes[pid], files[pid], held), pid) for pid in files
    }
    family: dict[int, Relative | None] = {}
    relatives_of = {
        pid: before[pid].relatives
        if before
        else run.collect("relatives", (), partial(relatives.collect, processes[pid], family), pid)
        for pid in pids
    }
    python_of = {**unchanged, **stacks.read()}
    looks: dict[int, Look] = {}
    for pid in pids:
        process, seen_threads, python = processes[pid], threads_of[pid], python_of.get(pid)
        if before:
            # A poller that is met awake is shown in its poll, and so has the lock that it polls.
            compared = threads.compare(before[pid].threads, seen_threads)
            seen_threads = join.polling(before[pid].threads, compared, began - since)
        lock_facts, pools = looks_memory.in_futexes(run, process, seen_threads, python, relatives_of[pid])
        known = before.get(pid) if before else None
        suspended = (
            known.greenlets
            if known is not None and join.still_asleep(known.threads, threads_of[pid])
            else looks_memory.greenlets(run, process, seen_threads, python, lock_facts)
        )
        looks[pid] = Look(
            time=began,
            threads=seen_threads,
            sockets=sockets_of.get(pid, ()),
            python=python,
            epolls=epolls.get(pid, ()),
            pipes=pipes_of.get(pid, ()),
            locks=lock_facts,
            pools=pools,
            file_locks=run.collect("file locks", (), partial(file_locks.collect, process, seen_threads), pid),
            relatives=relatives_of[pid],
            child_locks=looks_memory.child_locks(run, process, relatives_of[pid]),
            conntrack=asked.full if (asked := entries.get(pid)) else (),
            work=join.served(run.earlier[pid].work, began - run.earlier[pid].time)
            if pid in unchanged
            else run.collect("work", (), partial(work.collect, process, seen_threads, join.serving(python)), pid),
            greenlets=suspended,
            amqp=looks_memory.amqp(run, process, seen_threads, python, sockets_of.get(pid, ()), tasks=suspended),
            subscriptions=known.subscriptions
            if known is not None
            else looks_memory.subscriptions(run, process, python),
            fds=files[pid].links if pid in files and files[pid].complete else None,
        )
    return looks


def _threads(run: Run, pids: Collection[int]) -> Mapping[int, tuple[ThreadFact, ...]]:
    from stucktrace.collectors import threads

    look = run.collect("threads", threads.Look({}, ""), partial(threads.look, pids, run.kernel))
    run.hooks["threads"] = look.source
    for missing in look.missing:
        run.miss(missing, None)
    return look.facts


def _sockets(
    run: Run, pids: Collection[int], files: Mapping[int, OpenFiles], details: Mapping[int, Collection[int]]
) -> Mapping[int, tuple[SocketFact, ...]]:
    from stucktrace.collectors import sockets

    nothing = sockets.Sockets({}, (), "")
    seen = run.collect("sockets", nothing, partial(sockets.collect, pids, files, run.kernel, details))
    run.hooks["sockets"] = seen.source
    for missing in seen.missing:
        run.miss(missing, None)
    return seen


def _entries(run: Run, pid: int, sockets: tuple[SocketFact, ...], waited_fds: Collection[int]) -> Answers | None:
    """What conntrack says of those that a thread waits on and that retransmit or lost their entry, if there are any."""
    lost = run.options.sightings.lost if run.options.sightings else ()
    if not any(
        socket.protocol == "tcp" and ((socket.unacked and socket.retransmits) or socket.inode in lost)
        for socket in sockets
    ):
        return None
    from stucktrace.collectors import conntrack

    if run.options.sightings:
        run.hooks["conntrack"] = run.options.sightings.means
    collect = partial(conntrack.collect, pid, sockets, waited_fds, run.options.sightings)
    answers = run.collect("conntrack", None, collect, pid)
    for missing in answers.missing if answers else ():
        run.miss(missing, pid)
    return answers


def _pipe_holders(
    processes: Mapping[int, ProcessFact], files: Mapping[int, OpenFiles]
) -> tuple[tuple[Held, ...], bool]:
    """The node's fd tables, searched once for the pipes of all processes."""
    from stucktrace.collectors import file_holders, pipes

    return file_holders.find({link for pid, table in files.items() for link in pipes.links(processes[pid], table)})


class _Stacks:
    """Reads the Python stacks of several processes beside everything else: most of that time is py-spy's own."""

    def __init__(self, run: Run, processes: list[ProcessFact], threads: Mapping[int, tuple[ThreadFact, ...]]) -> None:
        self._run = run
        self._left = list(reversed(processes))
        self._threads = threads
        self._read: dict[int, PythonFact] = {}
        self._readers = [
            threading.Thread(target=self._work, daemon=True) for _ in range(min(STACK_READERS, len(processes)))
        ]
        for reader in self._readers:
            reader.start()

    def _work(self) -> None:
        from stucktrace.collectors import python

        options = self._run.options
        while self._left:
            try:
                process = self._left.pop()
            except IndexError:
                return
            fact = self._run.collect(
                "python",
                None,
                partial(
                    python.collect,
                    process,
                    self._threads[process.pid],
                    native=False,
                    show_locals=options.show_locals,
                ),
                process.pid,
            )
            if fact is not None:
                self._read[process.pid] = fact

    def read(self) -> dict[int, PythonFact]:
        """The stacks that could be read."""
        for reader in self._readers:
            reader.join()
        return self._read


def sample(
    run: Run, processes: Mapping[int, ProcessFact], first: dict[int, Look], looks: dict[int, Look]
) -> dict[int, Window]:
    """A second look at these processes after a while, put into `looks`, and what happened in between."""
    from stucktrace.collectors import tcp, waits
    from stucktrace.collectors.process import sleep_while_alive

    pids = tuple(processes)
    run.earlier.update(
        (pid, Earlier(processes[pid], look.threads, look.python, look.work, look.time))
        for pid, look in first.items()
        if pid in processes
    )
    with run.timed("window"), waits.watching(pids, run.kernel) as calls, tcp.watching(pids, run.kernel) as segments:
        began = time.time()
        again = _threads(run, pids)
        for pid in pids:
            if again.get(pid):
                first[pid] = replace(first[pid], threads=again[pid])
        sleep_while_alive(pids, max(join.window_s(first[pid], run.options.sample_s) for pid in pids))
        second = look(run, processes, first, began)
        activity: Mapping[int, tuple[CallActivity, ...]] = run.collect("waits", {}, calls.activity)
        events: Mapping[int, tuple[TcpEvent, ...]] = run.collect("tcp", {}, segments.events)
        complete = calls.complete
    for missing in (*calls.missing, *segments.missing):
        run.miss(missing, None)
    looks.update(second)
    return {
        pid: Window(second[pid].time - began, activity.get(pid, ()), complete, events.get(pid, ())) for pid in second
    }
