"""`pipe-stuck`, from who holds which end of a pipe (over /proc/*/fd), and what they do.

Holders that are alive are taken to act in time, so a reader is never stuck by age alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.diagnosis import evidence, remedies
from stucktrace.diagnosis.futexes import alone, bare
from stucktrace.diagnosis.graph import CHILD_CALLS, SHARED_SEMAPHORES, waited_child
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, WARNING, Budgets, Evidence, Finding, Later, Now
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age, listing, size
from stucktrace.facts import PipeFact, Relative, Snapshot

READ_CALLS = frozenset({"read", "readv", "splice", "tee", "recvfrom", "recvmsg"})
WRITE_CALLS = frozenset({"write", "writev", "splice", "sendfile", "vmsplice", "tee"})
FULL_BYTES = 60_000
"""A pipe's default size is 65536; a writer already sleeps when its piece does not fit."""
_INIT = 1


@dataclass(frozen=True)
class _Reason:
    confidence: str
    does: str
    why: str
    role: str
    """Who would have to act: "reader" or "writer"."""


def pipe_stuck(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`pipe-stuck`: the pipe's other end will never read, write or close.

    A reader gets the end of a pipe only when every copy of its write end is closed; a writer into a full pipe goes
    on only when somebody reads. The processes that hold the other end cannot or will not do it.

    Proven: every holder's files could be read, and all of them are stopped; or the writer is the only thread of the
    only process that could read; or a process waits for a child that is blocked in a write into a pipe that only
    this process reads (`subprocess.wait()` with `stdout=PIPE`).

    Likely: the reader's own process holds the only write end; only orphans of the same pool hold it; the holders do
    nothing but wait for this process; the output of a child that has ended is kept open by what it started; nobody
    has read for longer than a request may take; or the same as above with files of some holders that could not be
    read.

    Possible: another thread of this process might act.

    Now: continue what is stopped, else restart the process; the report has the command.

    Later: close the ends that a process does not use right after the fork; read a child's output while it runs
    (`communicate`); `get()` everything out of a multiprocessing.Queue before `join()`.

    Not: an idle child of a prefork pool, whose parent holds the write end and lives; a pipeline of a shell; a named
    FIFO; a pipe that is polled, or made for a signal handler to write to; any wait below 5 s.

    Wrong: a holder elsewhere whose files could not be read: the evidence says so, and nothing is `proven` then.

    Try: a process that reads its own pipe:

        python3 -c "import os; r, w = os.pipe(); os.read(r, 1)" &
        sleep 6; stucktrace pid $!
    """
    for wait in waits(snapshot):
        call = wait.thread.syscall
        if call is None or wait.thread.state not in "SD" or wait.age_s is None or wait.age_s < budgets.owed_s:
            continue
        if call.name in CHILD_CALLS:
            yield from _child_cannot_write(snapshot, wait)
        elif wait.pipe is not None:
            writes = call.waits_to == "write" or call.name in WRITE_CALLS - READ_CALLS
            reason = (_nobody_reads if writes else _nobody_writes)(snapshot, budgets, wait, wait.pipe)
            if reason is not None:
                yield _finding(snapshot, wait, wait.pipe, reason)
        elif wait.lock is not None and wait.lock.kind in SHARED_SEMAPHORES:
            yield from _orphan_behind_siblings(snapshot, wait)


def _nobody_writes(snapshot: Snapshot, budgets: Budgets, wait: Wait, pipe: PipeFact) -> _Reason | None:
    """A blocking read whose writers are the reader itself, orphans like itself, or stopped.

    Not for poll or select: a program that watches its own pipe is woken by its own signal handler (the self-pipe
    trick), nor where its own write end is made for one (it does not block); `possible` where it has such handlers. Not
    for a named FIFO: anybody can open it later, and daemons hold both ends on purpose.
    """
    call = wait.thread.syscall
    if (left := _left_to_a_grandchild(snapshot, budgets, wait, pipe)) is not None:
        return left
    if call is None or call.name not in READ_CALLS or pipe.path or pipe.end == "write" or not pipe.writers:
        return None
    own, others = snapshot.process.pid, set(pipe.writers) - {snapshot.process.pid}
    stopped = _stopped(snapshot, others)
    does = "waits for data or the end of"
    if not others and pipe.own_write_nonblocking:
        return None
    if not others:
        why = "this process itself holds the only write end"
        if alone(snapshot) and not _handler_may_write(snapshot):
            return _Reason(LIKELY, does, f"{why}, and its only thread is the one that reads", "writer")
        return _Reason(POSSIBLE, does, f"{why}, so no other process can write or close it", "writer")
    if stopped and len(stopped) == len(others) and own not in pipe.writers:
        why = f"{_named(stopped)}, which would have to write, {'is' if len(stopped) == 1 else 'are'} stopped"
        return _Reason(PROVEN, does, why, "writer")
    if others and own not in pipe.writers and alone(snapshot) and others <= _wait_for_us(snapshot):
        why = f"{_pids(others)}, which would have to write, only {_read(others)} a pipe that this process alone feeds"
        return _Reason(LIKELY, does, why, "writer")
    if _is_orphan(snapshot) and others <= _like_itself(snapshot) and others & _siblings(snapshot):
        holds = "holds" if len(others) == 1 else "hold"
        why = f"the parent that fed it is gone, and only {_pids(others)}, orphans too, still {holds} the write end"
        return _Reason(LIKELY, does, why, "writer")
    return None


def _left_to_a_grandchild(snapshot: Snapshot, budgets: Budgets, wait: Wait, pipe: PipeFact) -> _Reason | None:
    """`subprocess` reads the output of a child that has ended: who inherited the pipe from it keeps it open.

    The child is a zombie (the reader has not come to reap it), no child that lives holds the pipe, and the budget of a
    request is spent: a background process was started with the pipe as its output.
    """
    frame, others = wait.frame, set(pipe.writers) - {snapshot.process.pid}
    if frame is None or not frame.file.endswith("/subprocess.py") or wait.reading.purpose is not Purpose.JOIN:
        return None
    ended = [relative for relative in snapshot.children if relative.state == "Z"]
    alive = {relative.pid for relative in snapshot.children if relative.state != "Z"}
    spent = (wait.age_s or 0.0) >= budgets.request_s(snapshot.process.worker.timeout_s)
    if not ended or not others or others & alive or snapshot.process.pid in pipe.writers or not spent:
        return None
    keeps = "keeps it open" if len(others) == 1 else "keep it open"
    why = f"its child has ended ({_named(ended[:3])}), and {_pids(others)}, which inherited the pipe, {keeps}"
    return _Reason(LIKELY, "waits for the end of the output in", why, "writer")


def _wait_for_us(snapshot: Snapshot) -> set[int]:
    """Processes that do nothing but read from a pipe whose only write end is this process's."""
    own = {snapshot.process.pid}
    return {pid for pipe in snapshot.pipes if set(pipe.writers) == own for pid in pipe.blocked_readers}


def _read(pids: set[int]) -> str:
    return "reads" if len(pids) == 1 else "read"


def _handler_may_write(snapshot: Snapshot) -> bool:
    """It has signal handlers of its own making. Those of gunicorn and Celery are known not to write to such a pipe."""
    return snapshot.process.handles_signals and snapshot.process.worker.kind in ("python", "other")


def _nobody_reads(snapshot: Snapshot, budgets: Budgets, wait: Wait, pipe: PipeFact) -> _Reason | None:
    """A write into a full pipe that nobody empties: no reader but itself, a stopped one, or none in time."""
    if pipe.end == "read" or not pipe.readers:
        return None
    own, others = snapshot.process.pid, set(pipe.readers) - {snapshot.process.pid}
    stopped = _stopped(snapshot, others)
    does = "waits for room in"
    if not others and not pipe.path:
        why = "only this process holds the read end"
        if alone(snapshot):
            return _Reason(PROVEN, does, f"{why}, and its only thread is the one that writes", "reader")
        return _Reason(POSSIBLE, does, why, "reader")
    if stopped and len(stopped) == len(others) and own not in pipe.readers:
        why = f"{_named(stopped)}, which would have to read, {'is' if len(stopped) == 1 else 'are'} stopped"
        return _Reason(PROVEN, does, why, "reader")
    if others and others <= set(pipe.waiting_readers):
        does_nothing = "does nothing" if len(others) == 1 else "do nothing"
        why = f"{_pids(others)} could read it, and {does_nothing} but wait for a child to end"
        return _Reason(LIKELY, does, why, "reader")
    if (wait.age_s or 0.0) >= budgets.request_s(snapshot.process.worker.timeout_s):
        holds = "holds the read end and has not read" if len(others) == 1 else "hold the read end and have not read"
        return _Reason(LIKELY, does, f"{_pids(others) or 'whoever could'} {holds} for as long", "reader")
    return None


def _child_cannot_write(snapshot: Snapshot, wait: Wait) -> Iterator[Finding]:
    """The thread waits for a child to end, and that child's pipe to this process is full: it cannot end.

    The classic of `subprocess.wait()` with `stdout=PIPE`. Another thread of this process might read: then `possible`.
    """
    child = waited_child(wait.thread)
    children = {relative.pid for relative in snapshot.children}
    own = snapshot.process.pid
    for pipe in snapshot.pipes:
        writers, blocked = set(pipe.writers) - {own}, set(pipe.blocked_writers)
        full = bool(blocked) or (pipe.unread_bytes or 0) >= FULL_BYTES
        # A forked child has the read end too (multiprocessing.Queue); blocked in its own write it reads nothing.
        if pipe.end == "write" or own not in pipe.readers or set(pipe.readers) - {own} - blocked or not full:
            continue
        meant = {child} if child in children else children
        if not meant & (writers | blocked):
            continue
        who = _pids(blocked or (writers & children))
        why = f"{who} cannot go on while the pipe is full, and only this process could read it"
        # A child that is not in the write itself, or one child of several, may end all the same.
        sure = meant <= blocked and set(pipe.readers) == {own}
        confidence = POSSIBLE if not alone(snapshot) else PROVEN if sure else LIKELY
        yield _finding(snapshot, wait, pipe, _Reason(confidence, "waits for a child that writes into", why, "reader"))


def _orphan_behind_siblings(snapshot: Snapshot, wait: Wait) -> Iterator[Finding]:
    """A worker of a process pool whose parent died, waiting its turn to read the pool's queue.

    The children of a `ProcessPoolExecutor` share one pipe and a semaphore that lets one of them read. All hold both
    ends, so the read never ends when the parent does, and the others wait on the semaphore.
    """
    if not _is_orphan(snapshot) or not any("/queues.py" in f.file or "/pool.py" in f.file for f in wait.frames):
        return
    like = _like_itself(snapshot) | {snapshot.process.pid}
    if any(pipe.end != "write" and not set(pipe.writers) <= like for pipe in snapshot.pipes):
        return
    for pipe in snapshot.pipes:
        if pipe.end != "write" and pipe.writers:
            why = "the parent that fed its queue is gone, and only orphans like itself hold the queue's pipe"
            yield _finding(snapshot, wait, pipe, _Reason(LIKELY, "waits for its turn to read", why, "writer"))
            return


def _is_orphan(snapshot: Snapshot) -> bool:
    """Its parent is gone: it was handed to init, or to a reaper that is not of its kind."""
    process, parent = snapshot.process, snapshot.parent
    if not _forked_worker(snapshot):
        return False
    return process.ppid <= _INIT or parent is None or not parent.alive or parent.kind == "other"


def _forked_worker(snapshot: Snapshot) -> bool:
    """Its role says that it was made by a pool, or the stack of its main thread begins as such a child's does.

    Other frames of multiprocessing are a parent's as well: who started a `Pool` from a shell is no orphan.
    """
    if snapshot.process.worker.kind in ("celery-child", "gunicorn-worker"):
        return True
    main = snapshot.main_thread
    return any(
        bare(frame) == "_bootstrap" and frame.file.endswith("/process.py")
        for frame in (snapshot.frames(main.tid) if main else ())
    )


def _like_itself(snapshot: Snapshot) -> set[int]:
    """Siblings and descendants that share its fate."""
    return {relative.pid for relative in snapshot.relatives if relative.relation in ("sibling", "child")}


def _siblings(snapshot: Snapshot) -> set[int]:
    """Without one of these among its holders, a pipe is what the process shares with children of its own."""
    return {relative.pid for relative in snapshot.relatives if relative.relation == "sibling"}


def _stopped(snapshot: Snapshot, pids: set[int]) -> list[Relative]:
    return [relative for relative in snapshot.relatives if relative.pid in pids and relative.state in "Tt"]


def _named(relatives: list[Relative]) -> str:
    return listing([f"pid {relative.pid} ({relative.command})" for relative in relatives])


def _pids(pids: set[int]) -> str:
    return listing([f"pid {pid}" for pid in sorted(pids)])


def _finding(snapshot: Snapshot, wait: Wait, pipe: PipeFact, reason: _Reason) -> Finding:
    role, confidence = reason.role, reason.confidence
    holders = pipe.writers if role == "writer" else pipe.readers
    vain = "perhaps in vain" if confidence == POSSIBLE else "in vain"
    name = evidence.who(snapshot, wait.thread.tid)
    where = f"pipe {pipe.inode}" + (f" (fd {pipe.fds[0]})" if pipe.fds else "")
    if not pipe.complete and confidence == PROVEN:
        confidence = LIKELY
    lines = [
        evidence.call_line(snapshot, wait.thread, wait.age_s),
        Evidence("/proc/*/fd", f"{role}s", len(holders), f"held by, as {role}: {_pids(set(holders))}"),
        *evidence.frame_line(wait.frames, wait.reading.frame),
    ]
    if pipe.unread_bytes is not None:
        lines.append(
            Evidence("FIONREAD", "unread", pipe.unread_bytes, f"{size(pipe.unread_bytes)} unread in it", "bytes")
        )
    if not pipe.complete:
        lines.append(
            Evidence(
                "/proc/*/fd", "complete", False, "some processes' fds could not be read: there may be more holders"
            )
        )
    return Finding(
        "pipe-stuck",
        confidence,
        f"{name} {reason.does} {where} for {age(wait.age_s)}, {vain}: {reason.why}",
        evidence=tuple(lines),
        severity=WARNING if confidence == POSSIBLE else "critical",
        now=_now(snapshot, holders),
        later=(
            *_queue_first(wait),
            Later(
                "close the ends that a process does not use right after the fork, read a child's output while it "
                "runs "
                "(communicate), and give the wait a timeout",
                "a pipe ends only when every copy of its other end is closed",
            ),
        ),
        tid=wait.thread.tid,
        fd=pipe.fds[0] if pipe.fds else None,
        chain=(name, evidence.call_text(wait.thread), where, f"{role}s: {_pids(set(holders))}"),
        frame=wait.reading.frame,
    )


def _queue_first(wait: Wait) -> tuple[Later, ...]:
    """For who joins a child of multiprocessing, and for the child's thread that writes what was put into a queue."""
    inside = {(bare(frame), frame.file.rpartition("/")[2]) for frame in wait.frames if "multiprocessing/" in frame.file}
    if not inside & {("join", "process.py"), ("_feed", "queues.py")}:
        return ()
    return (
        Later(
            "get() everything that the child puts into a multiprocessing.Queue before join()",
            "a process does not end before its queues' feeder threads have written all that was put",
        ),
    )


def _now(snapshot: Snapshot, holders: tuple[int, ...]) -> tuple[Now, ...]:
    stopped = _stopped(snapshot, set(holders))
    if stopped:
        pids = " ".join(str(relative.pid) for relative in stopped)
        return (
            Now(
                f"kill -CONT {pids}",
                "it goes on where it was stopped; somebody may have stopped it on purpose",
                "nothing",
            ),
        )
    return remedies.restart(snapshot)
