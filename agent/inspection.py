"""One inspection: runs the collectors over a process and its children, joins what they saw, and has it diagnosed.

Everything here does I/O; what it means is decided in `diagnosis`, which is pure. A collector that fails costs its own
facts only: the reason goes into the report, and the rest is still said.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from stucktrace import join
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import STUCK, Budgets, Diagnosis
from stucktrace.errors import CannotInspect, CollectorError, NoSuchProcess, StucktraceError
from stucktrace.facts import (
    CallActivity,
    Missing,
    ProcessFact,
    PythonFact,
    Relative,
    Seen,
    Snapshot,
    SocketFact,
    TcpEvent,
    ThreadFact,
)
from stucktrace.join import Look, Window

if TYPE_CHECKING:
    from stucktrace.collectors.file_holders import Held
    from stucktrace.collectors.kernel import Kernel, Opened
    from stucktrace.collectors.openfiles import OpenFiles
    from stucktrace.siblings import Siblings

T = TypeVar("T")
D = TypeVar("D")

STACK_READERS = 4
"""py-spy processes at a time: each is short and mostly system time."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    engine: str = "auto"
    native: bool = False
    show_locals: bool = False
    sample_s: float = 0.5
    budgets: Budgets = field(default_factory=Budgets)


@dataclass(frozen=True)
class Inspection:
    """One inspected process."""

    diagnosis: Diagnosis
    snapshot: Snapshot
    children: tuple[Inspection, ...] = ()
    siblings: Siblings | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


class _Run:
    """The collectors' guard: what they could not see, and how long each took, in one inspection."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kernel: Kernel | None = None
        self.hooks: dict[str, str] = {}
        self.for_all: list[Missing] = []
        self.missing: dict[int, list[Missing]] = {}
        self.gone: set[int] = set()
        self.timings_ms: dict[str, float] = {}

    def collect(self, name: str, default: D, function: Callable[[], T], pid: int | None = None) -> T | D:
        """`function()`, or `default` when it fails; the failure is kept for `pid`'s report (None: for all)."""
        began = time.perf_counter()
        try:
            return function()
        except CollectorError as error:
            self.miss(error.missing, pid)
        except CannotInspect as error:
            # About the target or about a relative of it: whether the target itself is gone is asked at the end.
            self.miss(Missing(name, error.message, error.remedy), pid)
        except Exception as error:
            if os.environ.get("STUCKTRACE_DEBUG"):
                import traceback

                traceback.print_exc(file=sys.stderr)
            because = f"internal error, {type(error).__name__}: {error}"[:300]
            self.miss(Missing(name, because, "report this; STUCKTRACE_DEBUG=1 shows the traceback"), pid)
        finally:
            spent = (time.perf_counter() - began) * 1000
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + spent
        return default

    def miss(self, missing: Missing, pid: int | None) -> None:
        where = self.for_all if pid is None else self.missing.setdefault(pid, [])
        if missing not in where:
            where.append(missing)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter() - began) * 1000


MASTERS = ("gunicorn-master", "celery-main")


class Opening:
    """Loads the BPF programs in a thread, while /proc is read: neither needs the other."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._opened: Opened | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            from stucktrace.collectors.kernel import open_kernel

            self._opened = open_kernel(self._engine)
        except Exception as error:
            self._error = error

    def opened(self) -> Opened:
        """The kernel, or None with the reason. Raises CannotInspect when the engine asked for cannot be had."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._opened is not None
        return self._opened


def follow(pid: int) -> tuple[int, ...]:
    """The processes meant by `pid`: itself, or the Python processes under a tini, sh or supervisord."""
    from stucktrace.collectors import candidates

    try:
        return candidates.find_python(pid) or (pid,)
    except CannotInspect:
        return (pid,)


def inspect(pid: int, options: Options, kernel: Kernel | None, missing: tuple[Missing, ...] = ()) -> Inspection:
    """One process, and its children when it is a master."""
    from stucktrace.collectors.kernel import Opened

    answer = inspect_all((pid,), options, lambda: Opened(kernel, missing))[pid]
    if isinstance(answer, StucktraceError):
        raise answer
    return answer


def inspect_all(
    pids: Collection[int], options: Options, opened: Callable[[], Opened]
) -> dict[int, Inspection | StucktraceError]:
    """All these processes and their masters' children, in one look at the kernel and at most one sampling window."""
    from stucktrace.collectors.process import still_same

    run = _Run(options)
    answers: dict[int, Inspection | StucktraceError] = {}
    processes, families = _processes(run, pids, answers)
    if not processes:
        return answers
    with run.timed("kernel"):
        run.kernel, run.for_all = opened().kernel, list(opened().missing)
    first = _look(run, processes)
    windows: dict[int, Window] = {}
    looks = dict(first)
    restless = [pid for pid, look in first.items() if options.sample_s > 0 and join.undecided(look)]
    if restless:
        windows = _sample(run, {pid: processes[pid] for pid in restless}, first, looks)
    snapshots = {
        pid: join.snapshot(
            processes[pid], look, _seen(run, pid), first[pid] if pid in windows else None, windows.get(pid)
        )
        for pid, look in looks.items()
    }
    with run.timed("diagnosis"):
        diagnoses = {pid: diagnose(snapshot, options.budgets) for pid, snapshot in snapshots.items()}
    for pid in snapshots:
        if not run.collect("identity", True, partial(still_same, processes[pid]), pid):
            run.gone.add(pid)
    for pid in pids:
        if pid in answers:
            continue
        if pid in run.gone or pid not in snapshots:
            answers[pid] = NoSuchProcess(
                f"process {pid} ended while it was looked at", "look at the one that took its place"
            )
            continue
        inspected = Inspection(
            diagnosis=diagnoses[pid],
            snapshot=snapshots[pid],
            children=tuple(
                Inspection(diagnoses[child], snapshots[child])
                for child in families.get(pid, ())
                if child in snapshots and child not in run.gone
            ),
            siblings=_siblings(run, snapshots[pid], diagnoses[pid]),
            timings_ms=run.timings_ms,
        )
        answers[pid] = inspected
    return {pid: answers[pid] for pid in pids}


def _siblings(run: _Run, snapshot: Snapshot, diagnosis: Diagnosis) -> Siblings | None:
    if diagnosis.verdict.verdict_class != STUCK:
        return None
    from stucktrace.siblings import count

    return run.collect("siblings", None, partial(count, snapshot, diagnosis.verdict, run.kernel))


def _processes(
    run: _Run, pids: Collection[int], answers: dict[int, Inspection | StucktraceError]
) -> tuple[dict[int, ProcessFact], dict[int, tuple[int, ...]]]:
    """Every process to look at, and the children of those that are masters. What cannot be read is answered at once."""
    from stucktrace.collectors import candidates
    from stucktrace.collectors.process import read_process

    processes: dict[int, ProcessFact] = {}
    families: dict[int, tuple[int, ...]] = {}
    with run.timed("process"):
        for pid in pids:
            try:
                process = read_process(pid)
                _not_a_zombie(process)
            except StucktraceError as error:
                answers[pid] = error
                continue
            processes[pid] = process
            if processes[pid].worker.kind not in MASTERS:
                continue
            children = run.collect("children", (), partial(candidates.children_of, processes[pid]), pid)
            families[pid] = children
            for child in children:
                if child not in processes:
                    try:
                        processes[child] = read_process(child)
                    except NoSuchProcess:
                        continue
                    except StucktraceError as error:
                        run.miss(Missing(f"child {child}", error.message, error.remedy), pid)
    for pid, process in processes.items():
        if process.worker.kind.startswith("gunicorn-") and process.worker.timeout_s is None:
            run.miss(_no_timeout(process), pid)
    return processes, families


def _no_timeout(process: ProcessFact) -> Missing:
    from stucktrace.collectors.workers import HIDDEN

    source = process.worker.timeout_source
    because = {
        HIDDEN: "its process title hides the command line (setproctitle), and its memory does not tell",
        "environment": "it may stand in GUNICORN_CMD_ARGS, and the environment cannot be read",
    }.get(source, f"{source} computes it, or cannot be read" if source else "its command line cannot be read")
    return Missing(
        "gunicorn's timeout",
        because,
        "give --timeout on gunicorn's command line; --stuck-after SECONDS says how long a request may take meanwhile",
    )


def _not_a_zombie(process: ProcessFact) -> None:
    """A zombie has nothing left to look at; only its parent can. A process whose main thread alone ended is none."""
    from stucktrace.collectors.procfs import thread_ids

    if process.state not in "ZX" or len(thread_ids(process.pid)) > 1:
        return
    raise CannotInspect(
        f"process {process.pid} ({process.command}) is a zombie: it has ended, and its parent {process.ppid} has not "
        "taken note of that",
        f"see what the parent does: stucktrace pid {process.ppid}",
    )


def _look(run: _Run, processes: Mapping[int, ProcessFact], before: Mapping[int, Look] | None = None) -> dict[int, Look]:
    """One pass of all collectors. `before`: the look to compare with; what hardly changes is taken from it."""
    from stucktrace.collectors import epoll, file_locks, locks, openfiles, pipes, relatives, threads

    began = time.time()
    pids = tuple(processes)
    threads_of = _threads(run, pids)
    pids = tuple(pid for pid in pids if threads_of.get(pid))
    stacks = _Stacks(run, [processes[pid] for pid in pids if processes[pid].is_python], threads_of)
    files: dict[int, OpenFiles] = {}
    for pid in pids:
        table = run.collect("files", None, partial(openfiles.read_fds, pid), pid)
        if table is not None:
            files[pid] = table
    epolls = {pid: run.collect("epoll", (), partial(epoll.collect, processes[pid], files[pid]), pid) for pid in files}
    details = {
        pid: join.waited_fds(threads_of[pid], epolls[pid], {fd for fds in files[pid].sockets().values() for fd in fds})
        for pid in files
    }
    sockets_of = _sockets(run, pids, files, details)
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
    python_of = stacks.read()
    looks: dict[int, Look] = {}
    for pid in pids:
        process, seen_threads, python = processes[pid], threads_of[pid], python_of.get(pid)
        looks[pid] = Look(
            time=began,
            threads=threads.compare(before[pid].threads, seen_threads) if before else seen_threads,
            sockets=sockets_of.get(pid, ()),
            python=python,
            epolls=epolls.get(pid, ()),
            pipes=pipes_of.get(pid, ()),
            locks=run.collect(
                "locks", (), partial(locks.collect, process, seen_threads, python, relatives_of[pid]), pid
            ),
            file_locks=run.collect("file locks", (), partial(file_locks.collect, process, seen_threads), pid),
            relatives=relatives_of[pid],
            fds=files[pid].links if pid in files and files[pid].complete else None,
        )
    return looks


def _threads(run: _Run, pids: Collection[int]) -> Mapping[int, tuple[ThreadFact, ...]]:
    from stucktrace.collectors import threads

    look = run.collect("threads", threads.Look({}, ""), partial(threads.look, pids, run.kernel))
    run.hooks["threads"] = look.source
    for missing in look.missing:
        run.miss(missing, None)
    return look.facts


def _sockets(
    run: _Run, pids: Collection[int], files: Mapping[int, OpenFiles], details: Mapping[int, Collection[int]]
) -> Mapping[int, tuple[SocketFact, ...]]:
    from stucktrace.collectors import sockets

    nothing = sockets.Sockets({}, (), "")
    seen = run.collect("sockets", nothing, partial(sockets.collect, pids, files, run.kernel, details))
    run.hooks["sockets"] = seen.source
    for missing in seen.missing:
        run.miss(missing, None)
    return seen


def _pipe_holders(
    processes: Mapping[int, ProcessFact], files: Mapping[int, OpenFiles]
) -> tuple[tuple[Held, ...], bool]:
    """The node's fd tables, searched once for the pipes of all processes."""
    from stucktrace.collectors import file_holders, pipes

    return file_holders.find({link for pid, table in files.items() for link in pipes.links(processes[pid], table)})


class _Stacks:
    """Reads the Python stacks of several processes beside everything else: most of that time is py-spy's own."""

    def __init__(self, run: _Run, processes: list[ProcessFact], threads: Mapping[int, tuple[ThreadFact, ...]]) -> None:
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
                    native=options.native,
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


def _sample(
    run: _Run, processes: Mapping[int, ProcessFact], first: dict[int, Look], looks: dict[int, Look]
) -> dict[int, Window]:
    """A second look at these processes after a while, put into `looks`, and what happened in between."""
    from stucktrace.collectors import tcp, waits

    pids = tuple(processes)
    with run.timed("window"), waits.watching(pids, run.kernel) as calls, tcp.watching(pids, run.kernel) as segments:
        began = time.time()
        again = _threads(run, pids)
        for pid in pids:
            if again.get(pid):
                first[pid] = replace(first[pid], threads=again[pid])
        time.sleep(max(join.window_s(first[pid], run.options.sample_s) for pid in pids))
        second = _look(run, processes, first)
        activity: Mapping[int, tuple[CallActivity, ...]] = run.collect("waits", {}, calls.activity)
        events: Mapping[int, tuple[TcpEvent, ...]] = run.collect("tcp", {}, segments.events)
        complete = calls.complete
    for missing in (*calls.missing, *segments.missing):
        run.miss(missing, None)
    looks.update(second)
    return {
        pid: Window(second[pid].time - began, activity.get(pid, ()), complete, events.get(pid, ())) for pid in second
    }


def _seen(run: _Run, pid: int) -> Seen:
    kernel = run.kernel
    kernel_hooks = kernel.hooks.items() if kernel else ()
    return Seen(
        engine="core" if kernel else "none",
        hooks={subject: means for subject, means in (*run.hooks.items(), *kernel_hooks) if means},
        lost_records=kernel.lost_records() if kernel else 0,
        missing=(*run.missing.get(pid, ()), *run.for_all),
    )
