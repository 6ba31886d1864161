"""The connections to an AMQP broker that the target's threads have in hand, as the client libraries' own objects say.

Which library it is, the frames tell; what its objects mean, the files `amqp_client_*.py` know, one library each. All is
read twice and has to agree, and a thread that has run meanwhile tells nothing of what it waits for. librabbitmq is C:
its state cannot be read, and the fact says so. Source: process_vm_readv; nothing is stopped. Credentials and message
bodies are never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType

from stucktrace.collectors import (
    amqp_client_aiormq,
    amqp_client_amqpstorm,
    amqp_client_pika,
    amqp_client_pyamqp,
    interpreter,
    memory,
    procfs,
    python_stacks,
    regions,
    usage,
)
from stucktrace.collectors.amqp_client_objects import Things
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.pool_stacks import Stacks
from stucktrace.facts import AmqpFact, Frame, GreenletFact, ProcessFact, PythonFact, SocketFact, ThreadFact

WHAT = "AMQP connections"
CLIENTS = (amqp_client_pyamqp, amqp_client_pika, amqp_client_amqpstorm)
FILES = tuple(part for client in (*CLIENTS, amqp_client_aiormq) for part in client.FILES)
C_CLIENT = ("/kombu/transport/librabbitmq.py", "/librabbitmq/__init__.py")
IN_C = "librabbitmq keeps its state in C, which is not read: `stucktrace amqp` shows its frames from now on"
TASK = "asyncio-task"
_TRIES = 3
_MOST_CONNECTIONS = 64


def has(frames: Iterable[Frame]) -> bool:
    """By its file, one of these frames is a client library's."""
    return any(part in frame.file for frame in frames for part in FILES)


def collect(
    process: ProcessFact,
    threads: Sequence[ThreadFact],
    python: PythonFact,
    sockets: Sequence[SocketFact],
    tasks: Sequence[GreenletFact] = (),
) -> tuple[AmqpFact, ...]:
    """`tasks`: the suspended tasks of its event loops. Raises CollectorError when the memory may not be read."""
    tasks = [task for task in tasks if task.kind == TASK and has(task.frames)]
    try:
        with memory.reading(WHAT):
            target = _Target(process, threads, python, tasks)
            first = target.read()
            second = target.read() if first else {}
    except memory.MemoryChanged:
        return ()
    # One that sleeps for a moment at a time runs always; what two readings agree on holds for it as well.
    endless = [thread for thread in threads if thread.syscall is not None and thread.syscall.endless is not False]
    woke = {thread.tid for thread in endless if usage.has_run(process.pid, thread)}
    by_fd = {fd: socket for socket in sockets for fd in socket.fds}
    found = []
    for address, (fd, fact) in second.items():
        before = first.get(address)
        if before is None or before[0] != fd or _settled(before[1]) != _settled(fact):
            continue
        if (before[1].waiting_s or 0.0) > (fact.waiting_s or 0.0):
            continue
        socket = by_fd.get(fd) if fd is not None else None
        if fact.waiting_tid in woke:
            fact = replace(fact, waits_for="", waiting_channel=None, waiting_s=None)
            fact = replace(fact, blocked=None, blocked_assumes="", last_in=None) if fact.blocked_assumes else fact
        found.append(_placed(fact, fd, socket))
    return (*found, *_in_c(threads, python, by_fd))


def _in_c(threads: Sequence[ThreadFact], python: PythonFact, by_fd: Mapping[int, SocketFact]) -> Iterator[AmqpFact]:
    """Waits inside librabbitmq: all that is known of them is that nothing is."""
    calls = {thread.tid: thread.syscall for thread in threads}
    for thread in python.threads:
        call = calls.get(thread.tid)
        if call is not None and any(frame.file.endswith(C_CLIENT) for frame in thread.frames):
            fact = AmqpFact("", "", "memory", client="librabbitmq", waiting_tid=thread.tid, unknown=(IN_C,))
            yield _placed(fact, call.fd, by_fd.get(call.fd) if call.fd is not None else None)


def _settled(fact: AmqpFact) -> AmqpFact:
    """Without what grows from one reading to the next."""
    return replace(fact, waiting_s=None, last_heartbeat_in_s=None, last_heartbeat_out_s=None, last_frame_in_s=None)


def _placed(fact: AmqpFact, fd: int | None, socket: SocketFact | None) -> AmqpFact:
    if socket is None:
        return replace(fact, fd=fd)
    return replace(fact, fd=fd, inode=socket.inode, local=socket.local, remote=socket.remote)


class _Target:
    """What one reading after the other is made of."""

    def __init__(
        self,
        process: ProcessFact,
        threads: Sequence[ThreadFact],
        python: PythonFact,
        tasks: Sequence[GreenletFact],
    ) -> None:
        self._tasks = tasks
        mapped = regions.read(process.pid)
        self._found = interpreter.find(process.pid, mapped)
        self._reader = Reader(process.pid, mapped, Layout())
        self._threads, self._python = threads, python
        self._same_clock = procfs.same_monotonic_clock(process.pid)
        numbers = {thread.tid: thread.ns_tid for thread in threads}
        self._idents = {
            thread.ident: numbers[thread.tid] for thread in python.threads if thread.ident and thread.tid in numbers
        }

    def read(self) -> dict[int, tuple[int | None, AmqpFact]]:
        """Address of a connection -> its socket's descriptor, and what is known of it."""
        for _ in range(_TRIES):
            read = python_stacks.read(self._reader, self._found, self._idents, lambda _: lambda *_: [])
            if read is None or read.complete:
                break
        if read is None:
            return {}
        things = Things(Stacks(read, self._threads, self._python), self._same_clock, self._found)
        found: dict[int, tuple[int | None, AmqpFact]] = {}
        for client, connection, tid in self._connections(things):
            if len(found) < _MOST_CONNECTIONS and (connection not in found or not found[connection][1].waits_for):
                found[connection] = client.read(things, connection, tid)
        return {**found, **amqp_client_aiormq.read(things, self._tasks)} if self._tasks else found

    def _connections(self, things: Things) -> Iterator[tuple[ModuleType, int, int]]:
        for thread in self._python.threads:
            if not has(thread.frames):
                continue
            for client in CLIENTS:
                for connection in dict.fromkeys(client.connections(things, thread.tid)):
                    yield client, connection, thread.tid
