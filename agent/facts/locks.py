"""Locks, and pipes: what one thread waits for until another thread or process acts."""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.facts.python import Frame


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
    how: str = ""
    """Where it is written: "owner field" (the lock's own memory), "with block", "context manager", "acquire" (a frame
    that called it by hand), "semaphore count", "elimination" (nobody else can be it)."""
    assumes: str = ""
    """What is taken for granted to name this owner: never more than `likely` then. "" when memory itself proves it."""
    frame: int | None = None
    """Index (innermost 0) of the owner's own Python frame that holds it, in the frames of `tid`, where one does."""
    taken: Frame | None = None
    """The `with` statement, or the `acquire()`, that took it: its function, file and line. The owner may be a
    thread of the parent."""


@dataclass(frozen=True)
class OwnerElsewhere:
    """A lock's owner, and the lock shared between processes that it waits for itself, if it waits for one."""

    pid: int
    tid: int
    command: str
    state: str
    """The kernel's letter for the thread."""
    lock: int | None = None
    """Address in its own process."""
    kind: str = ""
    """Of that lock, as `LockFact.kind`."""
    switches: int | None = None
    """How often the thread was switched out: where two readings differ, it ran in between."""
    assumes: str = ""
    """What is taken for granted to name that lock's owner, as `LockOwner.assumes`."""


@dataclass(frozen=True)
class LockFact:
    """The lock behind a futex wait. Source: the futex arguments, process_vm_readv and /proc/PID/maps."""

    address: int
    kind: str
    """"pthread-mutex", "robust-mutex", "pi-mutex", "rwlock", "condition", "semaphore",
    "shared-semaphore", "join", "gil", and of CPython "lock", "rlock", "pymutex"; of multiprocessing and billiard
    "process-lock", "process-rlock" and "process-semaphore"; else "unknown"."""
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
    part_of: str = ""
    """What the lock is inside of, by its type's full name: "threading.Condition", "queue.Queue"; "" when nothing."""
    note: str = ""
    beyond: tuple[OwnerElsewhere, ...] = ()
    """Of a lock shared between processes: its owner, the owner of what that one waits for, and so on. It ends with one
    that was there before, or with the waiter itself, where they wait in a circle."""


@dataclass(frozen=True)
class FileLockStep:
    """A process that holds a file lock, and the one that its only thread waits for."""

    pid: int
    command: str
    path: str = ""
    """Of the file whose lock it waits for; "" when it does something else."""


@dataclass(frozen=True)
class FileLockFact:
    """A flock, fcntl or lease wait. Source: /proc/locks."""

    waiter_tid: int
    kind: str
    path: str
    holders: tuple[int, ...]
    holder_commands: tuple[str, ...] = ()
    beyond: tuple[FileLockStep, ...] = ()
    """Where it has one holder: that one, if its only thread waits for another file lock, and whoever holds that. It
    ends with the process that is waited in, where they wait in a circle."""
