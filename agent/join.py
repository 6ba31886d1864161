"""Facts -> snapshot: what two looks say together, and whether a second one is needed. Pure: no I/O, no clock.

A look is what the collectors saw in one pass. One is enough where the kernel's own ages decide: a thread asleep for
30 s in a receive without a timeout needs no second look to say so. Two looks, a sampling window apart, tell a poll that
is repeated for ever from one that makes progress, and a thread that computes from one that spins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from stucktrace.facts import (
    CallActivity,
    EpollFact,
    FileLockFact,
    LockFact,
    PipeFact,
    ProcessFact,
    PythonFact,
    Relative,
    Seen,
    Snapshot,
    SocketFact,
    TcpEvent,
    ThreadFact,
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
    relatives: tuple[Relative, ...] = ()
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


def snapshot(
    process: ProcessFact, look: Look, seen: Seen, first: Look | None = None, window: Window | None = None
) -> Snapshot:
    """The last look as a snapshot; with `first` and `window`, what changed between the two is in it.

    `look.threads` were already compared with the first look's by the collector that knows their counters.
    """
    return Snapshot(
        time=look.time,
        process=process,
        threads=look.threads,
        python=look.python,
        sockets=compared(first.sockets, look.sockets) if first else look.sockets,
        epolls=look.epolls,
        pipes=look.pipes,
        locks=look.locks,
        file_locks=look.file_locks,
        relatives=look.relatives,
        activity=window.activity if window else (),
        activity_complete=window.complete if window else False,
        tcp_events=window.tcp_events if window else (),
        window_s=window.seconds if window else 0.0,
        fds=look.fds or {},
        fds_complete=look.fds is not None,
        seen=seen,
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


def undecided(look: Look) -> bool:
    """Whether the kernel's own ages leave open what this process does, so that a second look is worth its time."""
    return any(_restless(look, thread) for thread in look.threads)


def _restless(look: Look, thread: ThreadFact) -> bool:
    raise NotImplementedError
