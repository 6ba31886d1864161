"""One inspection: runs the collectors over a process and its children, joins what they saw, and has it diagnosed.

Everything here does I/O; what it means is decided in `diagnosis`, which is pure. A collector that fails costs its own
facts only: the reason goes into the report, and the rest is still said.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace import join, layers, looks, native, probing
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import STUCK, Diagnosis
from stucktrace.errors import CannotInspect, NoSuchProcess, StucktraceError
from stucktrace.facts import MASTERS, Missing, ProcessFact, Seen, Snapshot
from stucktrace.join import Look, Window
from stucktrace.run import Earlier, Options, Run

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
    """The processes meant by `pid`: itself, or the Python processes under a tini, sh or supervisord.

    CannotInspect when that is nobody but this very command.
    """
    from stucktrace.collectors import candidates

    try:
        found = candidates.find_python(pid) or (pid,)
    except CannotInspect:
        return (pid,)
    if found == (pid,):
        from stucktrace.collectors import rights

        rights.not_ourselves(pid)
    return found


def inspect_all(
    pids: Collection[int], options: Options, opened: Callable[[], Opened]
) -> dict[int, Inspection | StucktraceError]:
    """All these processes and their masters' children, in one look at the kernel and at most one sampling window."""
    answers = dict(inspect_each(pids, options, opened))
    return {pid: answers[pid] for pid in pids}


def inspect_each(
    pids: Collection[int], options: Options, opened: Callable[[], Opened], earlier: Mapping[int, Earlier] | None = None
) -> Iterator[tuple[int, Inspection | StucktraceError]]:
    """As `inspect_all`, each answer as soon as it is there: those that need no sampling window first.

    `earlier`: what is known by pid of a recent look; what hardly changes is not read again, nor are stacks of threads
    that have not run since.
    """
    run = Run(options)
    run.earlier.update(earlier or {})
    answers: dict[int, StucktraceError] = {}
    processes, families = _processes(run, pids, answers)
    yield from answers.items()
    if not processes:
        return
    with run.timed("kernel"):
        run.kernel, run.for_all = opened().kernel, list(opened().missing)
    first = looks.look(run, processes)
    seen = _Passes(processes, first, dict(first), {})
    waiting = [pid for pid in pids if pid not in answers]
    restless = [pid for pid, look in first.items() if options.sample_s > 0 and join.undecided(look)]
    for pid in waiting:
        family = (pid, *families.get(pid, ()))
        if not set(family) & set(restless):
            yield pid, _answer(run, family, seen)
    if restless:
        windows = looks.sample(run, {pid: processes[pid] for pid in restless}, first, seen.last)
        for pid in waiting:
            family = (pid, *families.get(pid, ()))
            if set(family) & set(restless):
                yield pid, _answer(run, family, replace(seen, windows=windows))


@dataclass(frozen=True)
class _Passes:
    """What was seen of each process, by pid."""

    processes: Mapping[int, ProcessFact]
    first: Mapping[int, Look]
    last: dict[int, Look]
    windows: Mapping[int, Window]


def _answer(run: Run, family: tuple[int, ...], seen: _Passes) -> Inspection | StucktraceError:
    """What was seen of a process and its children (`family`, the process first), diagnosed."""
    from stucktrace.collectors.process import still_same

    pid, found = family[0], {}
    for member in family:
        if member not in seen.last:
            continue
        window = seen.windows.get(member)
        earlier = seen.first[member] if window else None
        snapshot = join.snapshot(
            seen.processes[member], seen.last[member], _seen(run, seen.processes[member]), earlier, window
        )
        with run.timed("diagnosis"):
            diagnosis = diagnose(snapshot, run.options.budgets)
        if member == pid:
            snapshot, diagnosis = probing.probed(run, snapshot, diagnosis)
        snapshot, diagnosis = native.explained(run, snapshot, diagnosis)
        if member == pid:
            snapshot = layers.deepened(run, snapshot, diagnosis)
        if run.collect("identity", True, partial(still_same, seen.processes[member]), member):
            found[member] = Inspection(diagnosis, snapshot)
    if run.options.broker is not None and pid in found:
        found[pid] = _with_broker(run, pid, found)
    if pid not in found:
        return NoSuchProcess(f"process {pid} ended while it was looked at", "look at the one that took its place")
    own = found.pop(pid)
    return replace(
        own,
        children=tuple(found.values()),
        siblings=_siblings(run, own.snapshot, own.diagnosis),
        timings_ms=dict(run.timings_ms),
    )


def _with_broker(run: Run, pid: int, found: Mapping[int, Inspection]) -> Inspection:
    """With the broker's own view of the process."""
    from stucktrace import broker_look
    from stucktrace.diagnosis.consumers import parked

    busy = tuple(member for member, each in found.items() if member != pid and not parked(each.snapshot))
    snapshot = broker_look.asked(run, found[pid].snapshot, busy)
    return Inspection(diagnose(snapshot, run.options.budgets), snapshot)


def _siblings(run: Run, snapshot: Snapshot, diagnosis: Diagnosis) -> Siblings | None:
    if diagnosis.verdict.verdict_class != STUCK or not run.options.siblings:
        return None
    from stucktrace.siblings import count

    return run.collect("siblings", None, partial(count, snapshot, diagnosis.verdict, run.kernel))


def _processes(
    run: Run, pids: Collection[int], answers: dict[int, StucktraceError]
) -> tuple[dict[int, ProcessFact], dict[int, tuple[int, ...]]]:
    """Every process to look at, and the children of those that are masters. What cannot be read is answered at once."""
    from stucktrace.collectors import candidates
    from stucktrace.collectors.process import read_again, read_process

    processes: dict[int, ProcessFact] = {}
    families: dict[int, tuple[int, ...]] = {}
    with run.timed("process"):
        for pid in pids:
            try:
                process = read_again(run.earlier[pid].process) if pid in run.earlier else read_process(pid)
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


def _seen(run: Run, process: ProcessFact) -> Seen:
    kernel = run.kernel
    kernel_hooks = kernel.hooks.items() if kernel else ()
    return Seen(
        engine=kernel.engine if kernel else "none",
        hooks={subject: means for subject, means in (*run.hooks.items(), *kernel_hooks) if means},
        lost_records=kernel.lost_records() if kernel else 0,
        missing=_missing(run, process),
    )


def _missing(run: Run, process: ProcessFact) -> tuple[Missing, ...]:
    """What could not be seen; first how a container is started that sees it, where we are in one."""
    found = (*run.missing.get(process.pid, ()), *run.for_all)
    if not any("CAP_SYS_PTRACE" in missing.remedy or "CAP_DAC_READ" in missing.remedy for missing in found):
        return found
    from stucktrace.collectors import rights

    why = rights.explain(process)
    return (why, *found) if why is not None else found
