"""Everything about one process at one instant, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from stucktrace.facts.amqp import AmqpFact
from stucktrace.facts.broker import BrokerFact, Subscription
from stucktrace.facts.calls import CallActivity, ThreadFact
from stucktrace.facts.conntrack import Flow
from stucktrace.facts.greenlets import GreenletFact
from stucktrace.facts.locks import FileLockFact, LockFact, PipeFact
from stucktrace.facts.native import NativeStack
from stucktrace.facts.network import ConntrackFact, EpollFact, SocketFact, TcpEvent
from stucktrace.facts.pools import PoolFact
from stucktrace.facts.process import ProcessFact, Relative
from stucktrace.facts.python import Frame, PythonFact, PythonThread, WorkFact
from stucktrace.facts.settings import SettingFact


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
    pools: tuple[PoolFact, ...] = ()
    child_locks: tuple[LockFact, ...] = ()
    """Locks that children wait for and whose holder died; `waiter_tid` is the child's main thread."""
    """Those that a thread waits for."""
    relatives: tuple[Relative, ...] = ()
    work: tuple[WorkFact, ...] = ()
    greenlets: tuple[GreenletFact, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    """What the process means to consume."""
    broker: BrokerFact | None = None
    """The broker's own view, where the user asked for it."""
    broker_before: BrokerFact | None = None
    """The same some seconds earlier, where it was read twice."""
    amqp: tuple[AmqpFact, ...] = ()
    """Connections to an AMQP broker whose state could be read."""
    settings: tuple[SettingFact, ...] = ()
    """What its gunicorn and its Celery are configured to: read only where it hangs on a broker."""
    flow: Flow | None = None
    """What conntrack says of the connection to the broker that it hangs on."""
    native: tuple[NativeStack, ...] = ()
    """Of the threads whose native frames were read: all with --native, else those that a lock verdict is about."""
    native_pause_s: float | None = None
    """How long the target stood still for them, at most; 0: not at all; None: they were not read."""
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

    def native_stack(self, tid: int) -> NativeStack | None:
        return next((stack for stack in self.native if stack.tid == tid), None)

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
