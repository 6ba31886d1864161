"""One inspection: runs the collectors over a process and its children, joins what they saw, and has it diagnosed.

Everything here does I/O; what it means is decided in `diagnosis`, which is pure. A collector that fails costs its own
facts only: the reason goes into the report, and the rest is still said.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from stucktrace import join, looks
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import STUCK, Diagnosis
from stucktrace.errors import CannotInspect, NoSuchProcess, StucktraceError
from stucktrace.facts import Missing, ProcessFact, Seen, Snapshot
from stucktrace.join import Window
from stucktrace.run import Options, Run

if TYPE_CHECKING:
    from stucktrace.collectors.kernel import Opened
    from stucktrace.siblings import Siblings


@dataclass(frozen=True)
class Inspection:
    """One inspected process."""

    diagnosis: Diagnosis
    snapshot: Snapshot
    children: tuple[Inspection, ...] = ()
    siblings: Siblings | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


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


def inspect_all(
    pids: Collection[int], options: Options, opened: Callable[[], Opened]
) -> dict[int, Inspection | StucktraceError]:
    """All these processes and their masters' children, in one look at the kernel and at most one sampling window."""
    from stucktrace.collectors.process import still_same

    run = Run(options)
    answers: dict[int, Inspection | StucktraceError] = {}
    processes, families = _processes(run, pids, answers)
    if not processes:
        return answers
    with run.timed("kernel"):
        run.kernel, run.for_all = opened().kernel, list(opened().missing)
    first = looks.look(run, processes)
    windows: dict[int, Window] = {}
    last = dict(first)
    restless = [pid for pid, look in first.items() if options.sample_s > 0 and join.undecided(look)]
    if restless:
        windows = looks.sample(run, {pid: processes[pid] for pid in restless}, first, last)
    snapshots = {
        pid: join.snapshot(
            processes[pid], look, _seen(run, pid), first[pid] if pid in windows else None, windows.get(pid)
        )
        for pid, look in last.items()
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


def _siblings(run: Run, snapshot: Snapshot, diagnosis: Diagnosis) -> Siblings | None:
    if diagnosis.verdict.verdict_class != STUCK:
        return None
    from stucktrace.siblings import count

    return run.collect("siblings", None, partial(count, snapshot, diagnosis.verdict, run.kernel))


def _processes(
    run: Run, pids: Collection[int], answers: dict[int, Inspection | StucktraceError]
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
            if not run.options.children or processes[pid].worker.kind not in MASTERS:
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
    from stucktrace.collectors.workers import EMBEDDED, HIDDEN

    source = process.worker.timeout_source
    because = {
        HIDDEN: "its process title hides the command line (setproctitle), and its memory does not tell",
        EMBEDDED: "its application starts gunicorn from its own code, and sets it there",
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


def _seen(run: Run, pid: int) -> Seen:
    kernel = run.kernel
    kernel_hooks = kernel.hooks.items() if kernel else ()
    return Seen(
        engine="core" if kernel else "none",
        hooks={subject: means for subject, means in (*run.hooks.items(), *kernel_hooks) if means},
        lost_records=kernel.lost_records() if kernel else 0,
        missing=(*run.missing.get(pid, ()), *run.for_all),
    )
