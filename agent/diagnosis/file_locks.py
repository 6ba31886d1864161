"""File locks (flock, fcntl) that are not released. Source: /proc/locks and the holders' fds.

Who waits for a file lock waits for a whole process. Standing by for a leader's lock is a design, so a live holder is
never called stuck by age alone; one that is stopped or gone is, and so is a process that waits for itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis import evidence, remedies
from stucktrace.diagnosis.futexes import alone
from stucktrace.diagnosis.lock_words import by_tid
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Evidence, Finding, Later, Now
from stucktrace.diagnosis.waits import Wait
from stucktrace.diagnosis.words import age, listing, process
from stucktrace.facts import FileLockFact, Relative, Snapshot


def file_lock(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`deadlock` when the only thread waits for a lock that its own process holds through another open of the file, and
    when processes of one thread each wait for each other's files in a circle (the kernel finds that for POSIX locks
    alone); `lock-held` when every holder is stopped."""
    known = by_tid(snapshot)
    for lock in snapshot.file_locks:
        wait = known.get(lock.waiter_tid)
        if wait is None or wait.age_s is None or wait.thread.slept_through is False:
            continue
        if set(lock.holders) == {snapshot.process.pid} and alone(snapshot) and wait.age_s >= 1:
            yield _with_itself(snapshot, lock, wait)
        if lock.beyond and lock.beyond[-1].pid == snapshot.process.pid and alone(snapshot) and wait.age_s >= 1:
            yield _circle(snapshot, lock, wait)
        stopped = [
            relative for relative in snapshot.relatives if relative.pid in lock.holders and relative.state in "Tt"
        ]
        if lock.holders and len(stopped) == len(set(lock.holders)) and wait.age_s >= budgets.owed_s:
            yield _holder_stopped(snapshot, lock, wait, stopped)


def _with_itself(snapshot: Snapshot, lock: FileLockFact, wait: Wait) -> Finding:
    name = evidence.who(snapshot, lock.waiter_tid)
    return Finding(
        "deadlock",
        PROVEN,
        f"{name} has waited {age(wait.age_s)} for the {lock.kind} lock on {lock.path}, which this very process "
        "holds through "
        "another open of the file: its only thread is the one that waits",
        evidence=_lines(snapshot, lock, wait),
        now=remedies.restart(snapshot),
        later=(
            Later(
                "open the file once, or release the first lock",
                "two opens of a file exclude each other, in one process too",
            ),
        ),
        tid=lock.waiter_tid,
        chain=(name, evidence.call_text(wait.thread), lock.path, f"held by pid {snapshot.process.pid} itself"),
        frame=wait.reading.frame,
    )


def _circle(snapshot: Snapshot, lock: FileLockFact, wait: Wait) -> Finding:
    name = evidence.who(snapshot, lock.waiter_tid)
    others = lock.beyond[:-1]
    waiting = [f"{process(step.pid, step.command)} waits for {step.path}" for step in others]
    chain = [name, evidence.call_text(wait.thread), f"{lock.path}, held by"]
    for step in others:
        chain += [process(step.pid, step.command), f"{step.path}, held by"]
    return Finding(
        "deadlock",
        PROVEN,
        f"{name} has waited {age(wait.age_s)} for the {lock.kind} lock on {lock.path}, and waits in a circle: "
        f"{listing(waiting)}; each holds the file that the one before it waits for, and none has another thread",
        evidence=(
            *_lines(snapshot, lock, wait),
            *(Evidence("/proc/locks", "holder", step.pid, text) for step, text in zip(others, waiting, strict=True)),
        ),
        now=remedies.restart(snapshot),
        later=(Later("lock these files in the same order everywhere", "the kernel finds no circle of flock locks"),),
        tid=lock.waiter_tid,
        chain=(*chain, name),
        frame=wait.reading.frame,
    )


def _holder_stopped(snapshot: Snapshot, lock: FileLockFact, wait: Wait, stopped: list[Relative]) -> Finding:
    name = evidence.who(snapshot, lock.waiter_tid)
    pids = listing([process(relative.pid, relative.command) for relative in stopped])
    return Finding(
        "lock-held",
        LIKELY,
        f"{name} has waited {age(wait.age_s)} for the {lock.kind} lock on {lock.path}; its holder {pids} is stopped",
        evidence=(
            *_lines(snapshot, lock, wait),
            *(
                Evidence(
                    "/proc/PID/stat", "state", relative.state, f"{process(relative.pid, relative.command)} is stopped"
                )
                for relative in stopped
            ),
        ),
        now=(
            Now(
                f"kill -CONT {' '.join(str(r.pid) for r in stopped)}",
                "somebody may have stopped it on purpose",
                "nothing",
            ),
        ),
        tid=lock.waiter_tid,
        chain=(name, evidence.call_text(wait.thread), lock.path, f"held by {pids}, stopped"),
        frame=wait.reading.frame,
    )


def _lines(snapshot: Snapshot, lock: FileLockFact, wait: Wait) -> tuple[Evidence, ...]:
    return (
        evidence.call_line(snapshot, wait.thread, wait.age_s),
        Evidence("/proc/locks", "holders", len(lock.holders), f"{lock.kind} on {lock.path}: held by {holders(lock)}"),
        *evidence.frame_line(wait.frames, wait.reading.frame),
    )


def holders(lock: FileLockFact) -> str:
    """ "gunicorn (pid 812) and pid 90"; "nobody that could be found"."""
    commands = (*lock.holder_commands, *[""] * len(lock.holders))
    return (
        listing([process(pid, commands[index]) for index, pid in enumerate(lock.holders)])
        or "nobody that could be found"
    )
