"""Facts -> snapshot: what two looks say together, and whether a second one is needed. Pure: no I/O, no clock.

A look is what the collectors saw in one pass. One is enough where the kernel's own ages decide: a thread asleep for
30 s in a receive without a timeout needs no second look to say so. Two looks, a sampling window apart, tell a poll that
is repeated for ever from one that makes progress, and a thread that computes from one that spins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from stucktrace.diagnosis import stacks
from stucktrace.diagnosis.network_connect import RESOLVER_POLL_S
from stucktrace.diagnosis.stacks import Purpose
from stucktrace.diagnosis.states import TRACED_STOP_S
from stucktrace.facts import (
    AmqpFact,
    CallActivity,
    ConntrackFact,
    EpollFact,
    FileLockFact,
    Frame,
    GreenletFact,
    LockFact,
    PipeFact,
    PoolFact,
    ProcessFact,
    PythonFact,
    Relative,
    Seen,
    Snapshot,
    SocketFact,
    Subscription,
    TcpEvent,
    ThreadFact,
    WorkFact,
)

MOST_EPOLL_DETAILS = 64
"""Sockets of one epoll set whose peers and options are read; a loop with more is judged by the kernel's walk alone."""


@dataclass(frozen=True)
class Look:
    """What the collectors saw of one process in one pass."""

    time: float
    """CLOCK_REALTIME."""
    threads: tuple[ThreadFact, ...] = ()
    sockets: tuple[SocketFact, ...] = ()
    python: PythonFact | None = None
    epolls: tuple[EpollFact, ...] = ()
    pipes: tuple[PipeFact, ...] = ()
    locks: tuple[LockFact, ...] = ()
    file_locks: tuple[FileLockFact, ...] = ()
    pools: tuple[PoolFact, ...] = ()
    child_locks: tuple[LockFact, ...] = ()
    relatives: tuple[Relative, ...] = ()
    conntrack: tuple[ConntrackFact, ...] = ()
    work: tuple[WorkFact, ...] = ()
    greenlets: tuple[GreenletFact, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    amqp: tuple[AmqpFact, ...] = ()
    fds: Mapping[int, str] | None = None
    """None: the fd table could not be read."""


@dataclass(frozen=True)
class Window:
    """What happened between two looks."""

    seconds: float
    activity: tuple[CallActivity, ...] = ()
    complete: bool = False
    """The probes counted during the whole window."""
    tcp_events: tuple[TcpEvent, ...] = ()


def serving(python: PythonFact | None) -> PythonFact | None:
    """The threads that may serve something: without the commonest ones that wait for a connection or a task."""
    if python is None:
        return None
    return replace(python, threads=tuple(thread for thread in python.threads if not _parked(thread.frames)))


def _parked(frames: tuple[Frame, ...]) -> bool:
    reading = stacks.read(frames)
    if reading.purpose is not Purpose.WORK or reading.frame is None:
        return False
    frame = frames[reading.frame]
    if frame.file.endswith("/concurrent/futures/thread.py"):
        return frame.function == "_worker"
    return "/gunicorn/" in frame.file or frame.file.endswith("/billiard/pool.py")


def snapshot(
    process: ProcessFact, look: Look, seen: Seen, first: Look | None = None, window: Window | None = None
) -> Snapshot:
    """The last look as a snapshot; with `first` and `window`, what changed between the two is in it.

    `look.threads` were already compared with the first look's by the collector that knows their counters.
    """
    return Snapshot(
        time=look.time,
        process=process,
        threads=polling(first.threads, look.threads, window.seconds) if first and window else look.threads,
        python=look.python,
        sockets=compared(first.sockets, look.sockets) if first else look.sockets,
        epolls=look.epolls,
        pipes=look.pipes,
        locks=look.locks,
        file_locks=look.file_locks,
        pools=look.pools,
        child_locks=look.child_locks,
        relatives=look.relatives,
        work=look.work,
        greenlets=look.greenlets,
        subscriptions=look.subscriptions,
        amqp=look.amqp,
        activity=window.activity if window else (),
        activity_complete=window.complete if window else False,
        tcp_events=window.tcp_events if window else (),
        conntrack=look.conntrack,
        window_s=window.seconds if window else 0.0,
        fds=look.fds or {},
        fds_complete=look.fds is not None,
        seen=seen,
    )


def still_asleep(before: Collection[ThreadFact], now: Collection[ThreadFact]) -> bool:
    """No thread woke up between two looks, and none came or went: a stack read after the first one still stands."""
    earlier = {thread.tid: thread for thread in before}
    return len(earlier) == len(now) and all(
        thread.tid in earlier
        and thread.switches is not None
        and thread.switches == earlier[thread.tid].switches
        and "R" not in (thread.state, earlier[thread.tid].state)
        for thread in now
    )


def served(work: Iterable[WorkFact], later_s: float) -> tuple[WorkFact, ...]:
    """What threads that have not run since still serve, so much later."""
    return tuple(replace(fact, age_s=None if fact.age_s is None else fact.age_s + max(0.0, later_s)) for fact in work)


POLLER_AT_MOST = 0.1
"""Share of the window that a thread may compute and still count as one that polls."""


def polling(first: Iterable[ThreadFact], second: Iterable[ThreadFact], window_s: float) -> tuple[ThreadFact, ...]:
    """The second look's threads; one met awake between two short polls is shown in the poll of the first look.

    Such a thread sleeps nearly always. Caught in the one moment in twenty between two polls it would seem to compute.
    """
    earlier = {thread.tid: thread for thread in first}
    return tuple(_polling(earlier.get(thread.tid), thread, window_s) for thread in second)


def _polling(before: ThreadFact | None, now: ThreadFact, window_s: float) -> ThreadFact:
    if before is None or before.state not in "S" or before.syscall is None or before.syscall.endless is not False:
        return now
    awake = now.state == "R" or now.syscall is None
    if not awake or now.cpu_s_in_window is None or now.cpu_s_in_window > POLLER_AT_MOST * window_s:
        return now
    return replace(
        now, state="S", syscall=before.syscall, blocked_s=0.0, blocked_since_source=before.blocked_since_source
    )


def compared(first: Iterable[SocketFact], second: Iterable[SocketFact]) -> tuple[SocketFact, ...]:
    """The second look's sockets with what they received and got acknowledged since the first.

    A socket that was not there in the first look has no window; counters that went backwards mean another socket.
    """
    before = {socket.inode: socket for socket in first}
    return tuple(_compared(before.get(socket.inode), socket) for socket in second)


def _compared(before: SocketFact | None, now: SocketFact) -> SocketFact:
    if before is None or (before.local, before.remote) != (now.local, now.remote):
        return now
    return replace(
        now,
        window_received_bytes=_grown(before.bytes_received, now.bytes_received),
        window_acked_bytes=_grown(before.bytes_acked, now.bytes_acked),
    )


def _grown(before: int | None, now: int | None) -> int | None:
    return now - before if before is not None and now is not None and now >= before else None


def waited_fds(threads: Iterable[ThreadFact], epolls: Iterable[EpollFact], sockets: Collection[int]) -> frozenset[int]:
    """The sockets that the threads wait on, directly or through an epoll set: those worth their peers and options."""
    sets = {epoll.fd: epoll for epoll in epolls}
    waited: set[int] = set()
    for thread in threads:
        if thread.syscall is None:
            continue
        for fd in (thread.syscall.fd, *thread.syscall.fds):
            if fd in sets:
                watched = [watch.fd for watch in sets[fd].watches if watch.present and watch.fd in sockets]
                waited.update(watched[:MOST_EPOLL_DETAILS])
            elif fd is not None:
                waited.add(fd)
    return frozenset(waited.intersection(sockets))


QUIET = frozenset({Purpose.WORK, Purpose.SUBSCRIPTION, Purpose.CONDITION, Purpose.SLEEP, Purpose.JOIN})
"""Purposes whose wait may be repeated for ever without a meaning: the frames alone say that it is parked."""
POLL_AT_MOST_S = 5.0
"""A timeout up to this long can be one poll of a longer wait; a longer one is the wait itself."""
TIMED = frozenset(
    {
        "poll",
        "ppoll",
        "select",
        "pselect6",
        "epoll_wait",
        "epoll_pwait",
        "epoll_pwait2",
        "futex",
        "futex_waitv",
        "nanosleep",
        "clock_nanosleep",
        "rt_sigtimedwait",
        "recvmmsg",
        "semtimedop",
        "mq_timedreceive",
        "mq_timedsend",
        "io_getevents",
        "io_pgetevents",
    }
)
"""Calls that take a timeout, and so can be one of many."""
JUST_WOKE_S = 0.01
"""Asleep for less: it may be running nearly always, so its frames say nothing about where it waits."""


def undecided(look: Look) -> bool:
    """Whether the kernel's own ages leave open what this process does, so that a second look is worth its time."""
    frames = {thread.tid: thread.frames for thread in look.python.threads} if look.python else {}
    return any(_restless(thread, frames.get(thread.tid, ())) for thread in look.threads)


def window_s(look: Look, sample_s: float) -> float:
    """How long the window has to be: longer than asked for only where a name is being resolved, or a tracer holds it.

    glibc asks its resolver anew every 5 s and then the sleep begins again, so a look at a random moment finds a young
    query more often than not. Waiting until the present one is old enough to judge tells a silent resolver surely.
    """
    frames = {thread.tid: thread.frames for thread in look.python.threads} if look.python else {}
    return max((_window_s(thread, frames.get(thread.tid, ()), sample_s) for thread in look.threads), default=sample_s)


def _window_s(thread: ThreadFact, frames: tuple[Frame, ...], sample_s: float) -> float:
    if thread.state == "t":
        return max(sample_s, TRACED_STOP_S)
    call = thread.syscall
    if call is None or call.endless is not False or thread.blocked_s is None or not frames:
        return sample_s
    if call.name not in ("poll", "ppoll") or stacks.read(frames).purpose is not Purpose.RESOLVE:
        return sample_s
    return max(sample_s, RESOLVER_POLL_S - thread.blocked_s + 0.2)


def _restless(thread: ThreadFact, frames: tuple[Frame, ...]) -> bool:
    """Runs, or polls: only what it does over time tells a wait from progress, and work from spinning."""
    if thread.state == "t":
        # A tracer stops a thread for an instant at every call that it watches.
        return thread.blocked_s is None or thread.blocked_s < TRACED_STOP_S
    if thread.state not in "RSD":
        return False
    call = thread.syscall
    if thread.state == "R" or call is None or thread.blocked_s is None or thread.blocked_s < JUST_WOKE_S:
        return True
    if call.endless or call.name not in TIMED or max(call.timeout_s or 0.0, thread.blocked_s) > POLL_AT_MOST_S:
        return False
    purpose = stacks.read(frames).purpose
    if purpose is Purpose.RESOLVE and thread.blocked_s >= RESOLVER_POLL_S:
        return False
    return not frames or purpose not in QUIET
