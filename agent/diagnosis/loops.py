"""Event loops that cannot turn: `blocked-loop` and `stale-epoll`.

An event loop's thread either waits in the loop's own poll call, which is its rest, or runs a callback. A callback that
sits in a blocking call keeps every other task of the loop from running. What tells them apart is the stack: the frame
next inside the loop's frame is its poll, or it is a callback. Whether the fd is in the loop's epoll set tells nothing
(Celery's Redis connection and gevent's sockets are in it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stucktrace.diagnosis import evidence, loop_locks, remedies
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, WARNING, Budgets, Evidence, Finding, Later, Now
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.waits import Wait, waits
from stucktrace.diagnosis.words import age
from stucktrace.facts import CallActivity, EpollFact, Frame, Snapshot

EPOLL_CALLS = frozenset({"epoll_wait", "epoll_pwait", "epoll_pwait2"})
STORM_PER_S = 500.0
"""An epoll that returns this often for nothing does not wait any more; a busy loop's returns move bytes."""


@dataclass(frozen=True)
class Loop:
    """How one kind of event loop looks in a stack. Files are tails of paths; one that ends with "/" is a package."""

    name: str
    function: str
    file: str
    rest: tuple[str, ...]
    """Functions directly inside the loop's frame that are its own waiting and housekeeping, not a callback."""
    library: str = ""
    """Only where this distribution is installed in the target."""


LOOPS = (
    Loop(
        "the asyncio event loop", "_run_once", "asyncio/base_events.py", ("select", "_process_events", "_write_to_self")
    ),
    Loop("kombu's event loop", "create_loop", "kombu/asynchronous/hub.py", ("poll",)),
    Loop("kombu's event loop", "create_loop", "kombu/async/hub.py", ("poll",)),
    Loop("Celery's event loop", "asynloop", "celery/worker/loops.py", ("create_loop",)),
    Loop("gevent's hub", "run", "gevent/hub.py", ()),
    Loop("eventlet's hub", "run", "eventlet/hubs/hub.py", ("wait", "presleep", "default_sleep")),
    Loop(
        "Twisted's reactor", "mainLoop", "twisted/internet/base.py", ("doPoll", "doIteration", "doSelect", "doEvents")
    ),
    Loop("trio's event loop", "unrolled_run", "trio/_core/_run.py", ("get_events",)),
    Loop("uvloop's event loop", "run", "asyncio/runners.py", ("run_until_complete", "close", "_lazy_init"), "uvloop"),
    Loop("uvloop's event loop", "run", "uvloop/__init__.py", ("run_until_complete", "run", "wrapper"), "uvloop"),
)

_CELERY_LOOPS = ("kombu's event loop", "Celery's event loop")
_SOLO_FILE = "celery/concurrency/base.py"
_DISPATCHERS = frozenset({"_doReadOrWrite", "_process_events"})
"""Inside some loops' poll functions callbacks run; inside these frames they do."""

_GREEN_FILES = (
    "gevent/baseserver.py",
    "gevent/pywsgi.py",
    "gevent/greenlet.py",
    "gevent/pool.py",
    "gunicorn/workers/ggevent.py",
    "gunicorn/workers/geventlet.py",
    "eventlet/greenthread.py",
    "eventlet/greenpool.py",
    "eventlet/wsgi.py",
)
_GREEN_LIBRARIES = ("_gevent_c", "corecext", "corecffi")
_FORKS = frozenset({"_bootstrap", "_launch"})
_THREAD_ENTRIES = frozenset(
    {"<module>", "_bootstrap", "_bootstrap_inner", "_run_module_as_main", "_run_code", "run_code"}
)

_ON_PURPOSE = frozenset({Purpose.WORK, Purpose.SUBSCRIPTION})
_SLEEPS = frozenset({Purpose.SLEEP, Purpose.RETRY})
_NOTIFIED = frozenset({Purpose.JOIN, Purpose.CONDITION})
"""What the library's own frame says little about: the caller's line is the one to know."""


def bare(frame: Frame) -> str:
    return frame.function.rpartition(".")[2]


def in_file(frame: Frame, tail: str) -> bool:
    path = "/" + frame.file
    return f"/{tail}" in path if tail.endswith("/") else path.endswith(f"/{tail}")


def blocked_loop(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`blocked-loop`: the event loop's thread sits in a call that is not the loop's.

    A callback, coroutine or greenlet made a blocking call in the loop's own thread (asyncio, kombu's and Celery's
    loop, gevent, eventlet, Twisted, trio, uvloop). Every other task of the loop stands still, heartbeats too.

    Proven: the call has lasted for longer than a request may take (`--stuck-after`, else the worker's timeout, else
    30 s). Or it is a wait without a timeout for a native lock that a suspended greenlet or task of the same thread
    holds: that one cannot go on before its loop does.

    Likely: the call has lasted for 5 s; a sleep always. The agent also says it of a Celery main process that was
    found in the same callback look after look for 30 s, with no poll in between.

    Possible: the call's very purpose is to wait (a consumer inside a coroutine).

    Now: restart the process; the report has the command.

    Later: a client made for this loop, or the call in a thread (`asyncio.to_thread`), with a timeout; the loop's
    own sleep; await a future instead of calling its `result()`; locks that the loop knows.

    Not: the loop's own poll, which is its rest. A callback that computes (`working`). A task of Celery's solo pool,
    which runs in the loop on purpose. The native threads of gevent's pool, which exist to block. A parent's loop in
    the stack of a forked child.

    Wrong: a loop of one task that may well stand still: `likely` until the budget is over.

    Try: a sleep in a coroutine:

        python3 -c "import asyncio, time
        async def main():
            time.sleep(60)
        asyncio.run(main())" &
        sleep 6; stucktrace pid $!
    """
    for wait in waits(snapshot):
        call, age_s = wait.thread.syscall, wait.age_s
        if call is None or wait.thread.state not in "SD" or age_s is None or age_s < budgets.owed_s:
            continue
        if wait.lock is not None and wait.lock.kind == "gil":
            continue
        callback = callback_of(snapshot, wait)
        if callback is None or _runs_a_task(wait, callback):
            continue
        yield loop_locks.told(snapshot, wait, callback.loop, _blocked(snapshot, budgets, wait, callback, age_s))


@dataclass(frozen=True)
class Callback:
    loop: str
    depth: int
    """How many frames, innermost ones, are the callback's."""


def callback_of(snapshot: Snapshot, wait: Wait) -> Callback | None:
    """The event loop whose callback this thread is inside; None: no loop, or the loop is at rest."""
    frames = _since_fork(wait.frames)
    for index, frame in enumerate(frames):
        loop = next((loop for loop in LOOPS if _is_loop(snapshot, loop, frame)), None)
        if loop is None:
            continue
        inner = [frame for frame in frames[:index] if not frame.native]
        if not inner or (bare(inner[-1]) in loop.rest and not any(bare(frame) in _DISPATCHERS for frame in inner)):
            return None
        return Callback(loop.name, index)
    return _green(snapshot, wait, frames)


def _runs_a_task(wait: Wait, callback: Callback) -> bool:
    """Celery's solo pool runs its tasks inside of Celery's own loop, which is what it is for."""
    own = callback.loop in _CELERY_LOOPS
    inner = _since_fork(wait.frames)[: callback.depth]
    return own and any(bare(frame) == "apply_target" and in_file(frame, _SOLO_FILE) for frame in inner)


def callback_frame(snapshot: Snapshot, tid: int) -> Frame | None:
    """The outermost frame of the callback that the thread's event loop runs; None: no loop, or it is at rest."""
    frames = _since_fork(snapshot.frames(tid))
    for index, frame in enumerate(frames):
        loop = next((loop for loop in LOOPS if _is_loop(snapshot, loop, frame)), None)
        if loop is not None:
            inner = [frame for frame in frames[:index] if not frame.native]
            return inner[-1] if inner and bare(inner[-1]) not in loop.rest else None
    return None


def _is_loop(snapshot: Snapshot, loop: Loop, frame: Frame) -> bool:
    if frame.native or bare(frame) != loop.function or not in_file(frame, loop.file):
        return False
    return not loop.library or loop.library in snapshot.process.packages


def turns_a_loop(snapshot: Snapshot, tid: int) -> bool:
    """The thread runs an event loop or a greenlets' hub, at rest or in a callback."""
    frames = _since_fork(snapshot.frames(tid))
    if any(_is_loop(snapshot, loop, frame) for frame in frames for loop in LOOPS):
        return True
    return tid == snapshot.process.pid and _has_greenlets(snapshot) and _has_epoll(snapshot)


def _has_greenlets(snapshot: Snapshot) -> bool:
    return any(name.startswith((*_GREEN_LIBRARIES, "_greenlet")) for name in snapshot.process.libraries)


def _since_fork(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Without the frames that a forked child inherited: its parent's loop is not its own."""
    for index, frame in enumerate(frames):
        if bare(frame) in _FORKS and ("multiprocessing/" in frame.file or "billiard/" in frame.file):
            return frames[:index]
    return frames


def _green(snapshot: Snapshot, wait: Wait, frames: tuple[Frame, ...]) -> Callback | None:
    """A greenlet in a call of the operating system: had it waited the green way, its hub would be on the stack.

    Its outermost frame is a green library's, or the function that was spawned (a thread's stack begins elsewhere).
    The native threads of gevent's pool exist to block.
    """
    call = wait.thread.syscall
    shown = [frame for frame in frames if not frame.native]
    if not shown or call is None or call.name in EPOLL_CALLS:
        return None
    if any(in_file(frame, tail) for frame in shown for tail in ("gevent/threadpool.py", "eventlet/tpool.py")):
        return None
    if any(in_file(shown[-1], tail) for tail in _GREEN_FILES):
        library = "eventlet" if "eventlet" in shown[-1].file else "gevent"
        return Callback(f"{library}'s hub", len(frames))
    loaded = any(name.startswith(_GREEN_LIBRARIES) for name in snapshot.process.libraries)
    main = wait.thread.tid == snapshot.process.pid
    outermost = shown[-1]
    if (
        loaded
        and main
        and _has_epoll(snapshot)
        and outermost.function not in _THREAD_ENTRIES
        and len(frames) == len(wait.frames)
    ):
        return Callback("the greenlets' hub", len(frames))
    return None


def _has_epoll(snapshot: Snapshot) -> bool:
    return bool(snapshot.epolls) or any("eventpoll" in link for link in snapshot.fds.values())


def _blocked(snapshot: Snapshot, budgets: Budgets, wait: Wait, callback: Callback, age_s: float) -> Finding:
    purpose = wait.reading.purpose
    decided_inside = wait.reading.frame is None or wait.reading.frame < callback.depth
    if purpose in _ON_PURPOSE and decided_inside:
        confidence = POSSIBLE
    elif purpose in _SLEEPS or age_s < budgets.request_s(snapshot.process.worker.timeout_s):
        confidence = LIKELY
    else:
        confidence = PROVEN
    index = wait.reading.frame if decided_inside and wait.reading.frame is not None else _own_frame(wait, callback)
    name, call = evidence.who(snapshot, wait.thread.tid), evidence.call_text(wait.thread)
    frame, own = wait.frames[index], wait.frames[_own_frame(wait, callback)]
    place = evidence.where(frame)
    if purpose in _NOTIFIED and _in_library(frame) and not _in_library(own):
        place += f", called in {evidence.where(own)},"
    summary = (
        f"{callback.loop} stands still: its thread {name} has been in {call} under {place} for "
        f"{age(age_s)}, and nothing else of the loop can run meanwhile"
    )
    lines = (
        evidence.call_line(snapshot, wait.thread, age_s),
        Evidence("py-spy", "frame", frame.text, f"the call was made by {place.rstrip(',')}, in a callback of the loop"),
        *_loop_line(wait, callback),
    )
    return Finding(
        "blocked-loop",
        confidence,
        summary,
        evidence=lines,
        now=remedies.restart(snapshot),
        later=(_later(purpose, frame),),
        tid=wait.thread.tid,
        fd=wait.thread.syscall.fd if wait.thread.syscall else None,
        chain=(f"tasks of {callback.loop}", name, call, *_peer(wait)),
        frame=index,
    )


def _own_frame(wait: Wait, callback: Callback) -> int:
    """The innermost frame of the callback that is not of an installed or standard library, else the innermost."""
    for index, frame in enumerate(wait.frames[: callback.depth]):
        if not frame.native and not _in_library(frame):
            return index
    return 0


def _in_library(frame: Frame) -> bool:
    return "/lib/python" in frame.file or "-packages/" in frame.file


def _loop_line(wait: Wait, callback: Callback) -> tuple[Evidence, ...]:
    if callback.depth >= len(wait.frames):
        return (
            Evidence("py-spy", "loop", callback.loop, "the stack is a greenlet's: the hub runs only when it returns"),
        )
    frame = wait.frames[callback.depth]
    return (Evidence("py-spy", "loop", frame.text, f"the loop is further out: {evidence.where(frame)}"),)


def _peer(wait: Wait) -> tuple[str, ...]:
    return (f"{wait.socket.protocol} {wait.socket.remote or wait.socket.local}",) if wait.socket else ()


def _later(purpose: Purpose, frame: Frame) -> Later:
    if purpose is Purpose.JOIN and in_file(frame, "concurrent/futures/_base.py"):
        return Later(
            "await the future (asyncio.wrap_future, loop.run_in_executor) and do not call its result() in the loop's "
            "own thread",
            "result() stops every task of the loop; where the future's own work needs the loop "
            "(run_coroutine_threadsafe), it can never come",
        )
    if purpose in _SLEEPS:
        return Later(
            "sleep with the loop's own sleep (asyncio.sleep, gevent.sleep)", "time.sleep stops every task of the loop"
        )
    return Later(
        "use a client made for this loop, or run the call in a thread (asyncio.to_thread, a thread pool); give "
        "it a timeout",
        "a blocking call stops every task of the loop, its heartbeats and timeouts too",
    )


def stale_epoll(snapshot: Snapshot, budgets: Budgets) -> Iterator[Finding]:
    """`stale-epoll`: epoll reports a file that the process no longer has.

    Epoll registers the open file, not its number. A file that is closed here while another process still holds it
    stays registered and cannot be taken out; once it is ready, epoll returns at once, for ever.

    Proven: the set watches a file that is not in the fd table; its waits return more than 500 times a second
    without leading to calls that move bytes; all else that it watches are sockets, and all calls were counted.

    Likely: something else than sockets is in the set, not all calls were counted, or (without BPF) the thread that
    polls the set spends its time on the CPU.

    Possible: the registration alone, which is harmless until the file becomes ready.

    Now: restart the process, or end the one that keeps the file open; the report names it.

    Later: take a file out of the set before closing it; open it close-on-exec, or close it in forked children.

    Not: a loop that is busy: its returns move bytes.

    Wrong: none is known where it is proven.

    Try: a pipe that is closed here and open in a child:

        python3 -c "import os, select, time
        r, w = os.pipe(); s = select.epoll(); s.register(r); os.write(w, b'x')
        if os.fork() == 0:
            time.sleep(60)
        os.close(r)
        while True:
            s.poll()" &
        sleep 2; stucktrace pid $!; kill $!
    """
    for epoll in snapshot.epolls:
        if any(not watch.present for watch in epoll.watches):
            yield _stale(snapshot, epoll)


def _stale(snapshot: Snapshot, epoll: EpollFact) -> Finding:
    stale = [watch for watch in epoll.watches if not watch.present]
    storm = _storm(snapshot, epoll)
    holders = sorted({pid for watch in stale for pid in watch.held_by})
    fds = ", ".join(str(watch.fd) for watch in stale)
    lines = [
        Evidence(
            "/proc/PID/fdinfo",
            "stale registrations",
            len(stale),
            f"epoll fd {epoll.fd} watches fd {fds}, which the process no longer has on that file",
        )
    ]
    if holders:
        text = f"the file is still open in {', '.join(f'pid {pid}' for pid in holders)}"
        lines.append(Evidence("/proc/*/fd", "held by", holders[0], text))
    tid, confidence, spins = None, POSSIBLE, ""
    if storm is not None:
        rate = storm.returns / snapshot.window_s
        only_sockets = all(snapshot.socket(watch.fd) for watch in epoll.watches if watch.present)
        tid, confidence = storm.tid, PROVEN if only_sockets and snapshot.activity_complete else LIKELY
        spins = f": {storm.call} returns {rate:.0f} times a second and nothing comes of it"
        lines.append(
            Evidence(
                "waits",
                "returns",
                storm.returns,
                f"{storm.call} returned {storm.returns} times in {age(snapshot.window_s)}",
            )
        )
    elif (busy := _busy_in(snapshot, epoll)) is not None:
        tid, confidence = busy, LIKELY
        spins = f": {evidence.who(snapshot, busy)} spends its time on the CPU around it"
    summary = f"epoll fd {epoll.fd} still watches a file that this process has closed (was fd {fds}){spins}"
    killed = tuple(
        Now(f"end pid {pid} (kill -TERM {pid}), which keeps the file open", "its own work ends", "what it works on")
        for pid in holders[:3]
    )
    return Finding(
        "stale-epoll",
        confidence,
        summary,
        evidence=tuple(lines),
        severity=WARNING if confidence == POSSIBLE else "critical",
        now=(*remedies.restart(snapshot), *killed),
        later=(
            Later(
                "take a file out of the epoll set before closing it, and open it close-on-exec (or close it in "
                "forked children)",
                "a registration lives as long as any process holds the open file, and cannot be removed once the "
                "fd is gone",
            ),
        ),
        tid=tid,
        fd=epoll.fd,
        chain=(evidence.who(snapshot, tid), f"epoll fd {epoll.fd}", f"closed fd {fds}"),
    )


def _storm(snapshot: Snapshot, epoll: EpollFact) -> CallActivity | None:
    """The thread whose waits on this set return all the time without leading to any call that moves bytes."""
    if snapshot.window_s <= 0:
        return None
    for entry in snapshot.activity:
        if entry.call not in EPOLL_CALLS or entry.fd != epoll.fd:
            continue
        moves = sum(other.returns - other.empty for other in snapshot.activity_of(entry.tid) if other.moved_bytes)
        if (entry.returns - entry.empty) / snapshot.window_s >= STORM_PER_S and moves < entry.returns / 20:
            return entry
    return None


def _busy_in(snapshot: Snapshot, epoll: EpollFact) -> int | None:
    """Without the probes: the thread that polls this set and used at least half of the window on the CPU."""
    if snapshot.activity_complete or snapshot.window_s < 0.2:
        return None
    for thread in snapshot.threads:
        busy = (thread.cpu_s_in_window or 0.0) >= snapshot.window_s / 2
        polls = thread.syscall is not None and thread.syscall.name in EPOLL_CALLS and thread.syscall.fd == epoll.fd
        frames = snapshot.frames(thread.tid)
        in_poll = bool(frames) and any(
            bare(frame) in ("poll", "select", "_run_once", "create_loop") for frame in frames[:3]
        )
        if busy and (polls or in_poll):
            return thread.tid
    return None
