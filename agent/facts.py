"""Facts: immutable records of one thing seen. Collectors make them, diagnosis reads them, nothing changes them.

Conventions for every field in this file:
- `_s` is seconds, as an age or a length of time at `Snapshot.time`; `_bytes` is bytes; times are CLOCK_REALTIME.
- Addresses and inodes are plain ints here (hex strings only in the JSON report).
- pid and tid are ids as seen from the tool's own PID namespace; `ns_pid` and `ns_tid` are the target's own view.
- None means "not known", never "no". Why something is not known stands in `Seen.missing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Syscall:
    """The system call that a thread is inside. Source: bpf_task_pt_regs or /proc/PID/task/TID/syscall."""

    number: int
    name: str
    args: tuple[int, ...]
    """The six raw arguments, unsigned 64-bit."""
    fd: int | None = None
    """The fd it waits on: the call's own fd argument, or the one fd of a poll or select set, else None."""
    fds: tuple[int, ...] = ()
    """Every fd of a poll, ppoll, select or pselect6 set, read from the target's memory; else just `fd`."""
    waits_to: str = ""
    """"read", "write", "connect" or "": what it waits to be able to do with its fd, as far as its events tell."""
    endless: bool | None = None
    """True: no timeout was given. False: one was. None: the call takes none, or it could not be read."""
    timeout_s: float | None = None
    """The relative timeout given, where it could be read."""
    poll_events: int | None = None
    """The events asked for, where it is a poll or ppoll of one fd."""


@dataclass(frozen=True)
class ThreadFact:
    """One thread in the kernel's eyes. Source: iter/task, else /proc/PID/task/TID/{stat,syscall,status,sched,wchan}."""

    tid: int
    ns_tid: int
    name: str
    state: str
    """The kernel's letter: R S D T t Z X I."""
    syscall: Syscall | None = None
    """None: on the CPU in user space, or not readable."""
    on_cpu_s: float | None = None
    """User plus system CPU time since the thread began."""
    blocked_s: float | None = None
    """How long ago it went to sleep (its present sleep, which can be one of many short ones). None when running."""
    blocked_since_source: str = ""
    switches: int | None = None
    """Voluntary plus involuntary context switches; unchanged between two looks means it never woke."""
    wchan: str = ""
    kernel_stack: tuple[str, ...] = ()
    cpu_s_in_window: float | None = None
    """CPU time used between two looks (`Snapshot.window_s` apart); None when there was one look."""
    slept_through: bool | None = None
    """True: between two looks it never woke. None when there was one look."""


@dataclass(frozen=True)
class CallActivity:
    """What one thread did with one fd through one call during the sampling window. Source: the waits probes."""

    tid: int
    call: str
    fd: int | None
    returns: int
    """How often the call returned."""
    moved_bytes: int
    """Sum of positive results of calls that move bytes (recv*, send*, read, write); 0 for the rest."""
    empty: int
    """Returns that achieved nothing: EAGAIN, ETIMEDOUT, 0 events."""
    last_error: int
    """errno of the last failed return, 0 when none failed."""


@dataclass(frozen=True)
class TcpEvent:
    """An event on a socket of the target during the window. Source: tcp and sock tracepoints."""

    kind: str
    """"retransmit", "state", "error", "reset-received"."""
    inode: int | None
    local: str
    remote: str
    count: int
    error: int = 0
    """errno for kind "error"."""
    new_state: str = ""


@dataclass(frozen=True)
class Frame:
    """One Python frame (or, with `native`, one C frame), as py-spy names it."""

    function: str
    """Qualified with its class from CPython 3.11 on ("Condition.wait"), bare before ("wait")."""
    file: str
    """Full path in the target's view, or the library of a native frame."""
    line: int
    native: bool = False
    locals: tuple[tuple[str, str], ...] = ()
    """(name, repr) when --locals was asked for, already redacted."""

    @property
    def text(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class PythonThread:
    """The Python side of one thread. Frames are innermost first."""

    tid: int
    name: str
    frames: tuple[Frame, ...]
    owns_gil: bool = False
    ident: int | None = None
    """`threading.get_ident()`: the pthread address."""


@dataclass(frozen=True)
class PythonFact:
    """The interpreter in the target. Source: py-spy dump --json."""

    version: str
    threads: tuple[PythonThread, ...]
    gil_readable: bool = True
    """False where the GIL's holder cannot be known (free-threaded build, or a partial read)."""
    paused_at_most_s: float | None = None
    """Upper bound of the time the target stood still; None: not stopped at all."""


@dataclass(frozen=True)
class Keepalive:
    """Keepalive settings of one TCP socket, in force now."""

    on: bool
    idle_s: float | None
    interval_s: float | None
    count: int | None
    probes_unanswered: int | None = None


@dataclass(frozen=True)
class Peer:
    """The other end of a socket when it lives on this node."""

    pids: tuple[int, ...]
    """Processes that hold it; () when nobody does (for example in an accept queue)."""
    command: str
    """The command name of the first holder, or ""."""
    state: str
    """Its TCP state, or CONNECTED for a UNIX socket."""
    unread_bytes: int | None
    """What it has received and its application has not read."""
    in_accept_queue: bool = False
    holder_state: str = ""
    """State letter of the first holder's main thread (T: stopped)."""
    inode: int | None = None
    listener_pids: tuple[int, ...] = ()
    """When in an accept queue: who holds the listening socket."""


@dataclass(frozen=True)
class SocketFact:
    """One socket of the target. Source: iter/task_file, else sock_diag, /proc/PID/net and getsockopt on a duplicate."""

    fds: tuple[int, ...]
    inode: int
    family: str
    """"inet", "inet6" or "unix"; "other"."""
    protocol: str
    """"tcp", "udp", "unix-stream", "unix-dgram", "unix-seqpacket", "raw", "netlink", "other"."""
    state: str
    """TCP state by its kernel name (ESTABLISHED, SYN_SENT, CLOSE_WAIT, LISTEN ...), or "" ."""
    local: str = ""
    """"address:port", "[v6]:port", or a UNIX path ("@name" for abstract)."""
    remote: str = ""
    direction: str = ""
    """"in" when it came through a listening port of the target or its parent, "out", or "" when not known."""
    unacked: int | None = None
    """Segments sent and not acknowledged (packets_out)."""
    retransmits: int | None = None
    """Retransmissions of the present outage (icsk_retransmits)."""
    backoff: int | None = None
    rto_s: float | None = None
    """The present retransmission timeout, backoff included."""
    timer: str = ""
    """"retransmit", "keepalive", "persist", "time-wait", "delayed-ack" or ""(none): the armed timer."""
    timer_expires_s: float | None = None
    last_send_s: float | None = None
    """Age of the last data segment sent; during an outage this is the last retransmission."""
    last_receive_s: float | None = None
    """Age of the last data received."""
    last_ack_s: float | None = None
    """Age of the last ACK received."""
    send_window_bytes: int | None = None
    bytes_sent: int | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None
    send_bytes: int | None = None
    """Send queue: written and not acknowledged."""
    receive_bytes: int | None = None
    """Receive queue: arrived and not read. For LISTEN: connections waiting for accept."""
    backlog: int | None = None
    """LISTEN only: the most connections that may wait."""
    keepalive: Keepalive | None = None
    user_timeout_s: float | None = None
    """TCP_USER_TIMEOUT; 0 is "not set"."""
    syn_retries: int | None = None
    """net.ipv4.tcp_syn_retries, or TCP_SYNCNT of this socket."""
    retries2: int | None = None
    """net.ipv4.tcp_retries2 of its network namespace."""
    soft_error: int = 0
    """sk_err_soft: for example EHOSTUNREACH reported by ICMP while retransmitting."""
    shared_with: tuple[int, ...] = ()
    """Other pids that hold the same open socket."""
    used_by: tuple[int, ...] = ()
    """Those of `shared_with` with a thread inside a call on it now; looked up only for sockets that are waited on."""
    peer: Peer | None = None
    conntrack: str | None = None
    """"present", "absent" (only where conntrack is hooked), or None."""
    conntrack_where: str = ""
    """The network namespace that `conntrack` is about."""
    conntrack_assumes: str = ""
    """What "absent" takes for granted to mean that packets are lost; "" when nothing."""
    conntrack_seen_s: float | None = None
    """How long ago the agent saw the entry there that is absent now; None: it did not."""
    window_received_bytes: int | None = None
    """Bytes that arrived between two looks; None when there was one look."""
    window_acked_bytes: int | None = None
    delayed_ack_pending: bool | None = None
    """True: data arrived and our ACK for it is still owed."""


@dataclass(frozen=True)
class EpollWatch:
    """One registration in an epoll set. Source: /proc/PID/fdinfo/EPFD."""

    fd: int
    events: int
    inode: int
    present: bool
    """The fd table still has this fd, on this very file."""
    held_by: tuple[int, ...] = ()
    """Other pids that hold the file when it is stale."""


@dataclass(frozen=True)
class EpollFact:
    fd: int
    watches: tuple[EpollWatch, ...]


@dataclass(frozen=True)
class PipeFact:
    """A pipe or FIFO that the target holds. Source: pipe inodes over /proc/*/fd."""

    fds: tuple[int, ...]
    inode: int
    end: str
    """Which end the target holds: "read", "write" or "both"."""
    readers: tuple[int, ...]
    """All pids that hold a read end, the target included."""
    writers: tuple[int, ...]
    complete: bool
    """False: some processes' fd tables could not be read, so there may be further holders."""
    unread_bytes: int | None = None
    path: str = ""
    """The path of a named FIFO."""
    blocked_writers: tuple[int, ...] = ()
    """Other pids with a thread inside a write to this pipe; looked for where nobody but the target and they can
    read it."""
    waiting_readers: tuple[int, ...] = ()
    """Other pids that read this pipe and now only wait for a child to end; looked for where the target writes."""
    blocked_readers: tuple[int, ...] = ()
    """Other pids whose every thread is inside a read of this pipe; looked for where the target alone can write it."""
    own_write_nonblocking: bool = False
    """The target's own write end is O_NONBLOCK, as a signal handler's has to be (`signal.set_wakeup_fd`)."""


@dataclass(frozen=True)
class LockOwner:
    """Who holds a lock."""

    state: str
    """"self", "alive", "absent" (no such thread here), "unknown"."""
    tid: int | None = None
    ns_tid: int | None = None
    pid: int | None = None
    name: str = ""
    """The thread's name; for an absent owner the name of the parent's thread that it was, when that still lives."""
    parent_thread: bool = False
    """The absent owner is (or was) a thread of the parent: the lock was inherited over fork.

    With state "unknown": the parent's copy is held for this owner's pthread address, and a new thread here (`tid`) has
    the same address by reuse, so it may be either; `name` is the parent's thread."""


@dataclass(frozen=True)
class LockFact:
    """The lock behind a futex wait. Source: the futex arguments, process_vm_readv and /proc/PID/maps."""

    address: int
    kind: str
    """"pthread-mutex", "robust-mutex", "pi-mutex", "rwlock", "condition", "semaphore",
    "shared-semaphore", "join", "gil", and of CPython "lock", "rlock", "pymutex"; else "unknown"."""
    waiter_tid: int
    mapping: str
    """What the address lies in: "[heap]", "[stack]", "anonymous", "shared anonymous", or a file's path."""
    shared: bool = False
    """In a mapping shared between processes."""
    word: int | None = None
    owner: LockOwner | None = None
    """None: this kind has no owner that could be read."""
    count: int | None = None
    """Recursion count of an RLock or recursive mutex."""
    path: str = ""
    """A name for it from the code, for example "self._lock" or "Handler.lock"."""
    stable: bool = True
    """Two reads agreed."""
    note: str = ""


@dataclass(frozen=True)
class ConntrackFact:
    """The conntrack table of one network namespace. Source: ctnetlink GET_STATS and GET_STATS_CPU.

    The counters have been growing since the namespace was made: what counts is the difference between two reads.
    """

    netns: int
    """The namespace's inode."""
    count: int
    """Entries now."""
    maximum: int | None
    """nf_conntrack_max: the same number for every namespace of the node, each of which may have so many. None: an older
    kernel does not tell."""
    found: int = 0
    invalid: int = 0
    """Packets that belong to no known connection, where they should."""
    insert_failed: int = 0
    """New connections whose first packet was dropped because the entry was there already or the table changed."""
    drop: int = 0
    """New connections whose first packet was dropped because there was no room for an entry."""
    early_drop: int = 0
    """Unanswered entries thrown out to make room."""
    error: int = 0
    where: str = ""
    """What to call the namespace."""
    window_drop: int | None = None
    """How far `drop` grew between two reads; None when there was one."""

    @property
    def fill(self) -> float | None:
        """Share of the table in use; None without a limit."""
        return self.count / self.maximum if self.maximum else None


@dataclass(frozen=True)
class WorkFact:
    """What a thread is serving. Source: the frames' variables, read from memory without stopping the target."""

    tid: int
    kind: str
    """"request" or "task"."""
    name: str
    """"GET /orders/7" (never the query), or the task's name."""
    id: str = ""
    """The task's id."""
    age_s: float | None = None
    method: str = ""
    path: str = ""
    peer: str = ""
    """The client's "address:port", or its address alone."""


@dataclass(frozen=True)
class FileLockFact:
    """A flock, fcntl or lease wait. Source: /proc/locks."""

    waiter_tid: int
    kind: str
    path: str
    holders: tuple[int, ...]
    holder_commands: tuple[str, ...] = ()


MASTERS = frozenset({"gunicorn-master", "celery-main"})
WORKERS = frozenset({"gunicorn-worker", "celery-child"})
"""What masters start, and start anew."""
ROLES = MASTERS | WORKERS | {"celery-beat"}
"""Every kind that is gunicorn or Celery."""


@dataclass(frozen=True)
class WorkerFact:
    """What role the process has, and what limits apply to it. Source: argv, config files, parent, heartbeat file."""

    kind: str
    """"gunicorn-master", "gunicorn-worker", "celery-main", "celery-child", "celery-beat", "python", "other"."""
    worker_class: str = ""
    """gunicorn: sync, gthread, gevent, eventlet, tornado, uvicorn ...; "" when not known."""
    pool: str = ""
    """Celery: prefork, solo, threads, gevent, eventlet."""
    timeout_s: float | None = None
    """gunicorn's --timeout (0: none), or Celery's soft time limit."""
    timeout_source: str = ""
    hard_timeout_s: float | None = None
    concurrency: int | None = None
    threads: int | None = None
    last_notify_s: float | None = None
    """Age of a gunicorn worker's last heartbeat."""
    seconds_to_kill: float | None = None


@dataclass(frozen=True)
class Relative:
    """A parent, child or sibling of the target."""

    pid: int
    relation: str
    """"parent", "child", "sibling"."""
    command: str
    state: str
    kind: str
    """As `WorkerFact.kind`."""
    start_time: int
    alive: bool = True
    threads: tuple[tuple[int, str], ...] = ()
    """(ns_tid, name) of its threads; filled for the parent only."""
    same_program: bool = False
    """The parent runs with the target's own arguments, or is its master: the target is its fork, most likely."""


@dataclass(frozen=True)
class Container:
    id: str
    runtime: str = ""
    pod: str = ""
    """The pod's uid."""
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True)
class ProcessFact:
    """The process as a whole. Source: /proc/PID/{stat,status,cmdline,exe,cgroup,maps}."""

    pid: int
    ns_pid: int
    ppid: int
    start_time: int
    """Clock ticks since boot: with the pid, the process's identity."""
    command: str
    argv: tuple[str, ...]
    state: str
    uid: int = 0
    age_s: float = 0.0
    rss_bytes: int | None = None
    fd_count: int | None = None
    executable: str = ""
    is_python: bool = False
    python_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Distribution name (normalised, lower case) -> version."""
    worker: WorkerFact = WorkerFact("other")
    container: Container | None = None
    frozen: bool = False
    """Its cgroup is frozen."""
    tracer_pid: int = 0
    hooked_c_clients: tuple[str, ...] = ()
    """C client libraries mapped in, by stem: "libpq", "librdkafka", "libmemcached" ..."""
    libraries: tuple[str, ...] = ()
    """Names of shared objects mapped (base names), for recognising libraries."""
    handles_signals: bool = False
    """It has handlers for signals other than SIGINT, which every Python handles."""


@dataclass(frozen=True)
class Missing:
    """Something that could not be seen, why, and what would let us see it."""

    what: str
    because: str
    remedy: str


@dataclass(frozen=True)
class Seen:
    """How the snapshot was made."""

    engine: str
    """"core" or "none"."""
    hooks: Mapping[str, str] = field(default_factory=dict)
    """Subject (threads, sockets, waits, tcp, ...) -> the means that was used (iter/task, /proc, tp_btf, ...)."""
    lost_records: int = 0
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """All facts about one process at one instant, joined. Pure data with lookups."""

    time: float
    process: ProcessFact
    threads: tuple[ThreadFact, ...] = ()
    python: PythonFact | None = None
    sockets: tuple[SocketFact, ...] = ()
    epolls: tuple[EpollFact, ...] = ()
    pipes: tuple[PipeFact, ...] = ()
    locks: tuple[LockFact, ...] = ()
    file_locks: tuple[FileLockFact, ...] = ()
    relatives: tuple[Relative, ...] = ()
    work: tuple[WorkFact, ...] = ()
    activity: tuple[CallActivity, ...] = ()
    activity_complete: bool = False
    """True: the waits probes counted in the whole window, so no entry means no call returned."""
    tcp_events: tuple[TcpEvent, ...] = ()
    conntrack: tuple[ConntrackFact, ...] = ()
    """Full tables on the way of a connect that is not answered; they are read for such a one only."""
    window_s: float = 0.0
    """Time between the two looks; 0 when there was one."""
    fds: Mapping[int, str] = field(default_factory=dict)
    """fd -> what /proc/PID/fd/N links to ("socket:[123]", "pipe:[4]", "anon_inode:[eventpoll]", a path)."""
    fds_complete: bool = True
    """False: the fd table could not be read."""
    seen: Seen = Seen("none")
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _threads(self) -> dict[int, ThreadFact]:
        return {thread.tid: thread for thread in self.threads}

    @cached_property
    def _python(self) -> dict[int, PythonThread]:
        return {thread.tid: thread for thread in self.python.threads} if self.python else {}

    @cached_property
    def _sockets(self) -> dict[int, SocketFact]:
        return {fd: socket for socket in self.sockets for fd in socket.fds}

    @cached_property
    def _pipes(self) -> dict[int, PipeFact]:
        return {fd: pipe for pipe in self.pipes for fd in pipe.fds}

    @cached_property
    def _epolls(self) -> dict[int, EpollFact]:
        return {epoll.fd: epoll for epoll in self.epolls}

    @cached_property
    def _locks(self) -> dict[int, LockFact]:
        return {lock.waiter_tid: lock for lock in self.locks}

    def thread(self, tid: int) -> ThreadFact | None:
        return self._threads.get(tid)

    def python_thread(self, tid: int) -> PythonThread | None:
        return self._python.get(tid)

    def frames(self, tid: int) -> tuple[Frame, ...]:
        """The Python frames of a thread, innermost first; () when none were read."""
        thread = self._python.get(tid)
        return thread.frames if thread else ()

    def socket(self, fd: int | None) -> SocketFact | None:
        return self._sockets.get(fd) if fd is not None else None

    def pipe(self, fd: int | None) -> PipeFact | None:
        return self._pipes.get(fd) if fd is not None else None

    def epoll(self, fd: int | None) -> EpollFact | None:
        return self._epolls.get(fd) if fd is not None else None

    def lock(self, tid: int) -> LockFact | None:
        """The lock that this thread waits for."""
        return self._locks.get(tid)

    def work_of(self, tid: int) -> WorkFact | None:
        """What this thread serves."""
        return next((work for work in self.work if work.tid == tid), None)

    @cached_property
    def _activity(self) -> dict[int, list[CallActivity]]:
        by_tid: dict[int, list[CallActivity]] = {}
        for entry in self.activity:
            by_tid.setdefault(entry.tid, []).append(entry)
        return by_tid

    def activity_of(self, tid: int) -> Iterator[CallActivity]:
        return iter(self._activity.get(tid, ()))

    @property
    def main_thread(self) -> ThreadFact | None:
        return self._threads.get(self.process.pid)

    @property
    def parent(self) -> Relative | None:
        return next((relative for relative in self.relatives if relative.relation == "parent"), None)

    @property
    def children(self) -> tuple[Relative, ...]:
        return tuple(relative for relative in self.relatives if relative.relation == "child")
