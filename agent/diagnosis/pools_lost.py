"""Results that nobody works on any more: `work-lost`; and workers that all wait for a lock that a dead one took.

multiprocessing's pool replaces a worker that dies, but not the task that died with it: whoever waits for the result
waits for ever. The pools collector has looked into each place where the task could still be.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, remedies
from stucktrace.diagnosis.lock_words import since
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later
from stucktrace.diagnosis.pools import caller, endless
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, count, listing
from stucktrace.facts import Awaited, PoolFact, Snapshot


def work_lost(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`work-lost`: the result's worker is gone, and the task with it.

    multiprocessing's pool replaces a worker that dies, but not the task that died with it: whoever waits for the
    result waits for ever. The same when a pool was made before a fork: its threads are in the parent alone.

    Proven: always. The threads that carry tasks and results have nothing in their hands, the task queue and both
    pipes are empty, and every worker waits for its next task. Or: the pool was made in another process, and none of
    its threads is in this one.

    Now: restart the process; the report has the command.

    Later: find out who killed the worker (the kernel's log, a crash in a C extension, `os._exit` in a task);
    `concurrent.futures.ProcessPoolExecutor` raises BrokenProcessPool at once; a timeout for `get()`; make pools
    after the fork.

    Not: a pool of which any worker does anything: it may have the task. Workers that all wait for their queue's
    lock (`orphaned-lock`).

    Wrong: none is known.

    Try: a task that ends its worker:

        python3 -c "import multiprocessing, os
        multiprocessing.Pool(1).apply(os._exit, (1,))" &
        sleep 3; stucktrace pid $!
    """
    for pool, wait, each in _waiters(snapshot, ("nowhere", "unsent")):
        yield _unsent(snapshot, pool, wait, each) if each.state == "unsent" else _lost(snapshot, pool, wait, each)


def queue_locked(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """Every worker of a process pool waits for the lock of their queue, and none of them is inside.

    `likely`: only workers take that lock, so most likely one was killed while it held it; a process outside of the pool
    that took it is the one thing left.
    """
    for pool, wait, each in _waiters(snapshot, ("locked",)):
        if wait.age_s is not None and wait.age_s >= budgets.owed_s:
            yield _locked(snapshot, pool, wait, each)


def _waiters(snapshot: Snapshot, states: tuple[str, ...]) -> Iterator[tuple[PoolFact, Wait, Awaited]]:
    """One for each pool: its first waiter."""
    known = {wait.tid: wait for wait in waits(snapshot)}
    for pool in snapshot.pools:
        for each in sorted(pool.awaited, key=lambda each: (each.tid != snapshot.process.pid, each.tid)):
            wait = known.get(each.tid)
            if each.state in states and wait is not None and endless(wait):
                yield pool, wait, each
                break


def _lost(snapshot: Snapshot, pool: PoolFact, wait: Wait, each: Awaited) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    return Finding(
        "work-lost",
        PROVEN,
        f"{name} {since(wait)} a result of {pool.name} on which nobody works: its task is in no queue, and all "
        f"{count(len(pool.members), 'worker process', 'worker processes')} wait for a next task; the one that had it "
        "is gone",
        evidence=(
            Evidence(
                "process_vm_readv",
                "queued",
                0,
                f"{pool.name}: job {each.result} is unfinished; the task queue and the pipes to and from the workers "
                f"are empty; {_handlers(snapshot, pool)} nothing in hand",
            ),
            _workers_line(pool, "wait for their next task"),
            *_younger(pool, wait),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, caller(wait, each.frame)),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "find out who killed the worker: the kernel's log for an out-of-memory kill, a crash in a C extension, "
                "os._exit or sys.exit in a task",
                "multiprocessing's pool starts another worker, but forgets the task",
            ),
            Later(
                "use concurrent.futures.ProcessPoolExecutor, or give get() a timeout",
                "the executor raises BrokenProcessPool as soon as a worker dies",
            ),
        ),
        tid=wait.tid,
        chain=(
            name,
            f"waits for a result of {pool.name}",
            f"its task (job {each.result})",
            "in no queue and with no worker",
        ),
        frame=caller(wait, each.frame),
        explains=_others(pool, wait),
    )


def _unsent(snapshot: Snapshot, pool: PoolFact, wait: Wait, each: Awaited) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    maker = f"pid {pool.made_by}" if pool.made_by is not None else "its parent"
    carriers = "threads" if pool.kind == "threads" else "threads that carry its tasks and results"
    return Finding(
        "work-lost",
        PROVEN,
        f"{name} {since(wait)} a result of {pool.name}, which this process has by fork: the pool's {carriers} are in "
        f"{maker} alone, so the task is never begun",
        evidence=(
            Evidence(
                "process_vm_readv",
                "made_by",
                pool.made_by,
                f"{pool.name} was made in {maker}; this is pid {snapshot.process.ns_pid}, and no thread here works for "
                "the pool",
            ),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, caller(wait, each.frame)),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "make the pool in each process after the fork (post_fork, worker_process_init, on first use), not at "
                "import under a preloading master",
                "fork copies the pool as an object, and none of its threads",
            ),
        ),
        tid=wait.tid,
        chain=(name, f"waits for a result of {pool.name}", f"whose threads are in {maker}", "which knows no such task"),
        frame=caller(wait, each.frame),
        explains=_others(pool, wait),
    )


def _locked(snapshot: Snapshot, pool: PoolFact, wait: Wait, each: Awaited) -> Finding:
    name = evidence.who(snapshot, wait.tid)
    return Finding(
        "orphaned-lock",
        LIKELY,
        f"{name} has waited {age(wait.age_s)} for a result of {pool.name}, all of whose workers wait for the lock of "
        "their queue; none of them has it: most likely a worker was killed while it held it",
        evidence=(
            _workers_line(pool, "wait for the read lock of their queue"),
            *_younger(pool, wait),
            evidence.call_line(snapshot, wait.thread, wait.age_s),
            *evidence.frame_line(wait.frames, caller(wait, each.frame)),
        ),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "do not kill single workers of a pool (and look for the out-of-memory killer); end the whole pool, or "
                "use concurrent.futures.ProcessPoolExecutor",
                "a semaphore between processes is not released when its holder dies",
            ),
        ),
        tid=wait.tid,
        chain=(name, f"waits for a result of {pool.name}", "its workers wait for their queue's lock", "nobody has it"),
        frame=caller(wait, each.frame),
        explains=_others(pool, wait),
    )


def _handlers(snapshot: Snapshot, pool: PoolFact) -> str:
    names = [evidence.who(snapshot, tid) for tid in pool.helpers]
    return f"its helper threads {listing(names)} have" if names else "its helper threads have"


def _workers_line(pool: PoolFact, what: str) -> Evidence:
    named = [f"pid {each.pid} ({age(each.age_s)} old)" for each in pool.members]
    return Evidence("/proc/PID/syscall", "workers", len(pool.members), f"its workers {listing(named)} all {what}")


def _younger(pool: PoolFact, wait: Wait) -> tuple[Evidence, ...]:
    """Workers that were started during the wait: they replaced others."""
    if wait.age_s is None:
        return ()
    young = [each.pid for each in pool.members if each.age_s is not None and each.age_s < wait.age_s]
    if not young:
        return ()
    started = (
        "was started during the wait, in the place of one"
        if len(young) == 1
        else "were started during the wait, in the place of others"
    )
    text = f"{listing([f'pid {pid}' for pid in young])} {started} that ended"
    return (Evidence("/proc/PID/stat", "replaced", len(young), text),)


def _others(pool: PoolFact, wait: Wait) -> tuple[int, ...]:
    return tuple(dict.fromkeys(each.tid for each in pool.awaited if each.tid != wait.tid))
