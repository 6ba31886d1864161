"""Evidence lines about threads and stacks, in the same words in every rule. Pure text from facts."""

from __future__ import annotations

from stucktrace.diagnosis.model import Evidence
from stucktrace.diagnosis.words import age
from stucktrace.facts import Frame, Snapshot, ThreadFact

_STATES = {"R": "runs", "S": "sleeps", "D": "sleeps uninterruptibly", "T": "is stopped", "t": "is stopped by a tracer"}


def who(snapshot: Snapshot, tid: int | None) -> str:
    """ "MainThread (tid 100)"."""
    if tid is None:
        return "a thread"
    name = _name(snapshot, tid)
    return f"{name} (tid {tid})" if name else f"thread {tid}"


def name_of(snapshot: Snapshot, tid: int) -> str:
    """ "MainThread", for a list of many."""
    return _name(snapshot, tid) or f"thread {tid}"


def _name(snapshot: Snapshot, tid: int) -> str:
    python, thread = snapshot.python_thread(tid), snapshot.thread(tid)
    if python and not python.name and tid == snapshot.process.pid:
        return "the main thread"
    return (python.name if python else "") or (thread.name if thread else "")


def where(frame: Frame) -> str:
    """A frame in short: "Channel.wait (amqp/channel.py:97)"; of a nested function its own name alone."""
    file, name = "/".join(frame.file.split("/")[-2:]), frame.function.rpartition("<locals>.")[2]
    return f"{name} ({file}:{frame.line})" if frame.line else f"{name} ({file})"


def thread_source(snapshot: Snapshot) -> str:
    return snapshot.seen.hooks.get("threads", "/proc/PID/task")


def call_text(thread: ThreadFact) -> str:
    """ "recvfrom on fd 7"; "user space" outside of any call."""
    call = thread.syscall
    if call is None:
        return "user space" if thread.state == "R" else "a call that could not be read"
    fd = f" on fd {call.fd}" if call.fd is not None else ""
    endless = " without a timeout" if call.endless else ""
    return f"{call.name}{fd}{endless}"


def call_line(snapshot: Snapshot, thread: ThreadFact, age_s: float | None = None) -> Evidence:
    """What a thread is inside, and since when."""
    slept_s = thread.blocked_s if age_s is None else age_s
    since = f" for {age(slept_s)}" if slept_s is not None else ""
    state = _STATES.get(thread.state, f"is in state {thread.state}")
    text = f"{who(snapshot, thread.tid)} {state} in {call_text(thread)}{since}"
    return Evidence(
        thread_source(snapshot), "syscall", thread.syscall.name if thread.syscall else None, text, time=snapshot.time
    )


def frame_line(frames: tuple[Frame, ...], index: int | None) -> tuple[Evidence, ...]:
    """The frame that matters, or nothing where no stack was read."""
    if not frames:
        return ()
    frame = frames[index] if index is not None and index < len(frames) else frames[0]
    return (Evidence("py-spy", "frame", frame.text, f"its stack is at {where(frame)}"),)


def missing_line(snapshot: Snapshot) -> tuple[Evidence, ...]:
    """What could not be seen, as evidence of why no more is said."""
    return tuple(
        Evidence("stucktrace", "missing", missing.what, f"{missing.what}: {missing.because}")
        for missing in snapshot.seen.missing[:3]
    )
