"""The logical wait of each thread: what it waits for and since when, across short repeated polls.

Joined from the system call that the thread is in, the fd behind it, and the Python frames. A system call's age is not
the wait's age: psycopg3 polls 100 ms at a time, Celery's loop up to 2 s. Where the call is short and repeated, the
wait is as old as the last movement of data on its socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stucktrace.diagnosis import stacks, tcp_timers, vocabulary
from stucktrace.diagnosis.purposes import Purpose, Reading
from stucktrace.facts import Frame, LockFact, PipeFact, Snapshot, SocketFact, Syscall, ThreadFact

_POLLIN, _POLLPRI, _POLLERR = 0x1, 0x2, 0x8
_C_CLIENT_EVENTS = {
    "libpq": frozenset({_POLLIN | _POLLERR}),
    "libmysqlclient": frozenset({_POLLIN, _POLLIN | _POLLPRI}),
    "libmariadb": frozenset({_POLLIN}),
}
"""The events that each library asks for when it waits for an answer; a program's own poll asks for others."""

POLL_S = 5.0
"""A call with a timeout below this is one of a series of polls, and an epoll of just this (pika's); a longer one is a
wait of its own."""

RECEIVE_CALLS = frozenset({"read", "readv", "recvfrom", "recvmsg", "recvmmsg", "pread64", "preadv"})
SEND_CALLS = frozenset({"write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile", "splice"})
POLL_CALLS = frozenset(
    {"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2", "epoll_wait_old", "_newselect"}
)
SLEEP_CALLS = frozenset({"nanosleep", "clock_nanosleep"})
CHILD_CALLS = frozenset({"wait4", "waitid", "waitpid"})
SIGNAL_CALLS = frozenset({"pause", "rt_sigtimedwait", "rt_sigsuspend", "sigsuspend"})
ACCEPT_CALLS = frozenset({"accept", "accept4"})
LOCK_CALLS = frozenset({"futex", "futex_wait", "futex_waitv", "semtimedop", "semop"})
FILE_LOCK_CALLS = frozenset({"flock", "fcntl"})


@dataclass(frozen=True)
class Wait:
    """What one thread waits for."""

    thread: ThreadFact
    frames: tuple[Frame, ...]
    """Python frames, innermost first; () when none were read."""
    reading: Reading
    """The purpose as the frames and the call say together."""
    call: str
    """Name of the system call, "" when it is not known."""
    fds: tuple[int, ...]
    """Every fd that it waits on; an epoll set counts as the fds that it watches."""
    socket: SocketFact | None = None
    """The one socket among `fds`, when there is exactly one that matters."""
    fd: int | None = None
    """The fd of `socket` or `pipe`, else the call's own."""
    pipe: PipeFact | None = None
    lock: LockFact | None = None
    age_s: float | None = None
    age_source: str = ""
    polls: bool = False
    """The present call is one of a series of short ones."""
    still: bool | None = None
    """Between two looks nothing moved: True; something did: False; None: there was one look."""
    sends: bool = False
    """It waits to send, not to receive."""

    @property
    def tid(self) -> int:
        return self.thread.tid

    @property
    def purpose(self) -> Purpose:
        return self.reading.purpose

    @property
    def frame(self) -> Frame | None:
        """The frame that decided what the wait is for, else the innermost one."""
        if self.reading.frame is not None and self.reading.frame < len(self.frames):
            return self.frames[self.reading.frame]
        return next((frame for frame in self.frames if not frame.native), None)


def waits(snapshot: Snapshot) -> tuple[Wait, ...]:
    """The wait of every thread that is in one; threads that compute are left out."""
    cached = snapshot.__dict__.get("_logical_waits")
    if cached is None:
        cached = tuple(_waits(snapshot))
        # The snapshot is immutable and many rules ask: keep the answer with it, as its own cached lookups do.
        snapshot.__dict__["_logical_waits"] = cached
    return tuple(cached)


def _waits(snapshot: Snapshot) -> Iterator[Wait]:
    for thread in snapshot.threads:
        if thread.state in ("Z", "X", "I"):
            continue
        if thread.syscall is None and thread.state not in ("S", "D", "T", "t"):
            continue
        yield _wait(snapshot, thread)


def _wait(snapshot: Snapshot, thread: ThreadFact) -> Wait:
    call = thread.syscall
    name = call.name if call else ""
    frames = snapshot.frames(thread.tid)
    fds = _fds(snapshot, call)
    fd, socket = _one_socket(snapshot, call, fds)
    pipe = None if socket else next((snapshot.pipe(one) for one in fds if snapshot.pipe(one)), None)
    if fd is None:
        fd = next((one for one in fds if snapshot.pipe(one)), None) if pipe else (call.fd if call else None)
    sends = name in SEND_CALLS or bool(call and name in POLL_CALLS and call.waits_to == "write")
    wait = Wait(
        thread,
        frames,
        refine(stacks.read(frames), call, socket, frames, snapshot),
        name,
        fds,
        socket,
        fd,
        pipe,
        snapshot.lock(thread.tid) if name in LOCK_CALLS or not name else None,
        polls=_polls(thread),
        sends=sends,
    )
    age_s, source = _age(wait)
    return replace(wait, age_s=age_s, age_source=source, still=_still(snapshot, wait))


def _fds(snapshot: Snapshot, call: Syscall | None) -> tuple[int, ...]:
    if call is None:
        return ()
    fds = call.fds or ((call.fd,) if call.fd is not None else ())
    found: dict[int, None] = {}
    for fd in fds:
        epoll = snapshot.epoll(fd)
        watched = [watch.fd for watch in epoll.watches if watch.present] if epoll else []
        found.update(dict.fromkeys(watched or [fd]))
    return tuple(found)


def _one_socket(snapshot: Snapshot, call: Syscall | None, fds: tuple[int, ...]) -> tuple[int | None, SocketFact | None]:
    """The socket that the wait is about: the only one, or the only connection beside the wake-up sockets of a loop.

    A wake-up socket is a UNIX pair, or one on loopback whose two ends are both this process's (pika's).
    """
    sockets = [(fd, socket) for fd in fds if (socket := snapshot.socket(fd))]
    if len(sockets) > 1:
        sockets = [(fd, socket) for fd, socket in sockets if socket.family != "unix" and socket.state != "LISTEN"]
    if len(sockets) > 1:
        own = {(socket.local, socket.remote) for socket in snapshot.sockets if socket.remote}
        sockets = [(fd, socket) for fd, socket in sockets if (socket.remote, socket.local) not in own]
    return sockets[0] if len(sockets) == 1 else (None, None)


def refine(
    reading: Reading, call: Syscall | None, socket: SocketFact | None, frames: tuple[Frame, ...], snapshot: Snapshot
) -> Reading:
    """The reading of the frames, corrected by what the thread really does in the kernel.

    A C function has no frame: the innermost Python frame is its caller, and only the call tells what it does.
    """
    if call is None:
        return reading
    name, frame = call.name, reading.frame
    unknown = reading.purpose is Purpose.UNKNOWN
    if name in SLEEP_CALLS:
        if reading.purpose in (Purpose.RETRY, Purpose.WORK, Purpose.SLEEP) or (
            reading.purpose is Purpose.LOCK and not reading.by_name
        ):
            return reading
        return Reading(Purpose.SLEEP, "sleeps", frame, reading.family)
    if name in LOCK_CALLS and reading.by_name:
        # A name such as consume() says nothing about the lock that is taken in it.
        return Reading(Purpose.UNKNOWN, "", frame, reading.family)
    if name in ACCEPT_CALLS or (unknown and socket is not None and socket.state == "LISTEN"):
        return reading if reading.purpose is Purpose.WORK else Reading(Purpose.WORK, "waits for a connection", frame)
    if name in CHILD_CALLS and (unknown or reading.by_name):
        return Reading(Purpose.JOIN, "waits for a child process", frame)
    if name in SIGNAL_CALLS and (unknown or reading.by_name):
        return Reading(Purpose.WORK, "waits for a signal", frame)
    if name in FILE_LOCK_CALLS and (unknown or reading.by_name):
        return Reading(Purpose.LOCK, "acquires a lock on a file", frame)
    if name == "connect" and reading.purpose is not Purpose.RESOLVE:
        return Reading(Purpose.CONNECT, "connects to a peer", frame, reading.family)
    if unknown and (name in RECEIVE_CALLS or name in POLL_CALLS) and (special := _special_file(call, snapshot)):
        return Reading(*special, frame)
    if unknown and socket is not None and socket.protocol == "udp" and socket.remote.rsplit(":", 1)[-1] == "53":
        return Reading(Purpose.RESOLVE, "waits for an answer of the resolver", frame)
    if unknown and name in SEND_CALLS and socket is not None:
        return Reading(Purpose.SEND, "sends to a peer", frame)
    if unknown and socket is not None and inside_c_client(call, socket, frames, snapshot):
        return Reading(Purpose.REQUEST, "waits inside a C client for the answer to its statement", frame, "sql")
    return reading


SPECIAL_FILES = (
    ("/dev/pts/", Purpose.WORK, "waits for input on its terminal"),
    ("/dev/tty", Purpose.WORK, "waits for input on its terminal"),
    ("/dev/console", Purpose.WORK, "waits for input on its terminal"),
    ("anon_inode:inotify", Purpose.WORK, "waits for a change of a file"),
    ("anon_inode:[fanotify]", Purpose.WORK, "waits for a change of a file"),
    ("anon_inode:[signalfd]", Purpose.WORK, "waits for a signal"),
    ("anon_inode:[timerfd]", Purpose.SLEEP, "waits for a timer"),
    ("anon_inode:[eventfd]", Purpose.CONDITION, "waits to be notified (eventfd)"),
    ("anon_inode:[pidfd]", Purpose.JOIN, "waits for a process to end"),
)
"""What a wait on a file that is neither a socket nor a pipe is for, by what its fd links to."""


def _special_file(call: Syscall, snapshot: Snapshot) -> tuple[Purpose, str] | None:
    """Told only where every fd of the call is of one such kind."""
    links = [snapshot.fds.get(fd, "") for fd in call.fds or ((call.fd,) if call.fd is not None else ())]
    for start, purpose, reason in SPECIAL_FILES:
        if links and all(link.startswith(start) for link in links):
            return purpose, reason
    return None


def inside_c_client(call: Syscall, socket: SocketFact, frames: tuple[Frame, ...], snapshot: Snapshot) -> bool:
    """A database client in C waits for an answer: libpq and its kind poll one descriptor without an end.

    Python's own sockets receive directly or poll with their timeout, and its connections between processes poll
    under a frame of Python's library. A program that waits for notifications selects or polls over its connection
    itself; `select`, polls of several fds and polls for other events than the library's are therefore left alone.
    """
    asked = [
        events
        for stem, events in _C_CLIENT_EVENTS.items()
        if any(name.startswith(stem) for name in snapshot.process.hooked_c_clients)
    ]
    if not asked or (call.poll_events is not None and not any(call.poll_events in events for events in asked)):
        return False
    innermost = next((frame for frame in frames if not frame.native), None)
    if innermost is None or vocabulary.is_transport(innermost):
        return False
    return (
        call.name in ("poll", "ppoll")
        and call.endless is True
        and len(call.fds or (call.fd,)) == 1
        and call.waits_to in ("read", "")
        and socket.protocol in ("tcp", "unix-stream")
        and socket.direction != "in"
        and _asked_last(socket)
    )


def _asked_last(socket: SocketFact) -> bool:
    """The last data that moved was ours, as far as the kernel's clock ticks tell (4 ms on many kernels)."""
    if socket.last_send_s is None or socket.last_receive_s is None:
        return True
    return socket.last_receive_s >= socket.last_send_s - 0.010


def _polls(thread: ThreadFact) -> bool:
    """The call is a short one that is made again and again."""
    call = thread.syscall
    if call is None or call.endless is not False:
        return False
    if call.timeout_s is None:
        return (thread.blocked_s or 0.0) < POLL_S
    return call.timeout_s < POLL_S or (call.timeout_s == POLL_S and call.name.startswith("epoll"))


def _age(wait: Wait) -> tuple[float | None, str]:
    blocked_s, source = wait.thread.blocked_s, wait.thread.blocked_since_source
    if not wait.polls:
        return blocked_s, source
    quiet_s = quiet(wait.socket) if wait.socket else None
    if quiet_s is None or (blocked_s is not None and blocked_s >= quiet_s):
        return blocked_s, source
    return quiet_s, "time since data moved on the socket"


def quiet(socket: SocketFact) -> float | None:
    """For how long nothing new has moved on this socket, either way; retransmissions are nothing new."""
    sent_s = tcp_timers.outage_s(socket) if socket.unacked else socket.last_send_s
    known = [value for value in (sent_s, socket.last_receive_s) if value is not None]
    return min(known, default=None)


def _still(snapshot: Snapshot, wait: Wait) -> bool | None:
    if snapshot.window_s <= 0:
        return None
    socket = wait.socket
    moved = (socket.window_received_bytes or 0) + (socket.window_acked_bytes or 0) if socket else 0
    if wait.thread.slept_through:
        return True
    if moved:
        return False
    activity = [entry for entry in snapshot.activity_of(wait.tid) if entry.fd in wait.fds or not wait.fds]
    if any(entry.moved_bytes for entry in activity):
        return False
    if not wait.polls:
        return None if wait.thread.slept_through is None else False
    return True
