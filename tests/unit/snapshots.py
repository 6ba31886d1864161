"""Literal snapshots for the tests of the rules: short builders of the facts, with the defaults of an ordinary process.

A stack is written as a person would read it, innermost first, one "function file:line" each; a native frame has "native "
in front:

    snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=35),
        stacks={100: ["read_frame amqp/transport.py:294", "<module> /app/main.py:3"]},
        sockets=[tcp(7, unacked=1, backoff=6)],
    )
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import Budgets, Diagnosis, Finding
from stucktrace.facts import (
    CallActivity,
    EpollFact,
    EpollWatch,
    FileLockFact,
    Frame,
    Keepalive,
    LockFact,
    LockOwner,
    Peer,
    PipeFact,
    ProcessFact,
    PythonFact,
    PythonThread,
    Relative,
    Seen,
    Snapshot,
    SocketFact,
    Syscall,
    ThreadFact,
    WorkerFact,
)

PID = 100
"""The target's pid, and its main thread's tid."""
PARENT = 50
NOW = 1_700_000_000.0

NUMBERS = {
    "read": 0,
    "write": 1,
    "poll": 7,
    "select": 23,
    "sched_yield": 24,
    "connect": 42,
    "accept": 43,
    "sendto": 44,
    "recvfrom": 45,
    "recvmsg": 47,
    "wait4": 61,
    "flock": 73,
    "fcntl": 72,
    "futex": 202,
    "clock_nanosleep": 230,
    "epoll_wait": 232,
    "pselect6": 270,
    "ppoll": 271,
    "accept4": 288,
}
_WRITES = {"write", "sendto", "sendmsg", "writev", "sendfile"}
_READS = {"read", "recvfrom", "recvmsg", "accept", "accept4", "readv"}
SITE = "/usr/lib/python3/dist-packages/"
STDLIB = "/usr/lib/python3.11/"


def frame(text: str) -> Frame:
    """ "function file:line", or "native function library"."""
    native = text.startswith("native ")
    # A Python function's name has no space, a frozen module's file has; in C++ it is the other way round.
    function, _, where = text.removeprefix("native ").rpartition(" ") if native else text.partition(" ")
    file, _, line = where.rpartition(":") if ":" in where else (where, "", "0")
    return Frame(function, file, int(line), native)


def frames(texts: Sequence[str]) -> tuple[Frame, ...]:
    return tuple(map(frame, texts))


def call(name: str, fd: int | None = None, **more: Any) -> Syscall:
    """A system call with no timeout, waiting to read or to write as its name says, unless `more` says otherwise."""
    more.setdefault("args", (fd or 0, 0, 0, 0, 0, 0))
    more.setdefault("fds", () if fd is None else (fd,))
    more.setdefault("endless", True if name in ("futex", "poll", "ppoll", "select", "pselect6", "epoll_wait") else None)
    more.setdefault(
        "waits_to", "write" if name in _WRITES else "read" if name in _READS else "connect" if name == "connect" else ""
    )
    return Syscall(NUMBERS.get(name, 999), name, fd=fd, **more)


def thread(tid: int = PID, syscall: str | Syscall | None = "futex", fd: int | None = None, **more: Any) -> ThreadFact:
    """A thread asleep for a minute in `syscall`; None: running in user space."""
    if isinstance(syscall, str):
        syscall = call(syscall, fd)
    running = syscall is None
    more.setdefault("state", "R" if running else "S")
    more.setdefault("blocked_s", None if running else 60.0)
    more.setdefault("blocked_since_source", "" if running else "iter/task")
    more.setdefault("on_cpu_s", 0.5)
    more.setdefault("ns_tid", tid)
    more.setdefault("name", "python3")
    return ThreadFact(tid, syscall=syscall, **more)


def process(**more: Any) -> ProcessFact:
    """An ordinary Python process."""
    values: dict[str, Any] = {
        "pid": PID,
        "ns_pid": PID,
        "ppid": PARENT,
        "start_time": 1000,
        "command": "python3",
        "argv": ("python3", "main.py"),
        "state": "S",
        "age_s": 3600.0,
        "executable": "/usr/bin/python3.11",
        "is_python": True,
        "python_version": "3.11.2",
        "worker": WorkerFact("python"),
    }
    return ProcessFact(**(values | more))


def python(
    stacks: Mapping[int, Sequence[str]], gil: int | None = None, names: Mapping[int, str] = {}, **more: Any
) -> PythonFact:
    """The Python side: tid -> stack. `gil` is the tid that holds the GIL."""
    threads = tuple(
        PythonThread(
            tid, names.get(tid, "MainThread" if tid == PID else f"Thread-{tid - PID}"), frames(stack), tid == gil
        )
        for tid, stack in stacks.items()
    )
    return PythonFact(more.pop("version", "3.11.2"), threads, **more)


def snapshot(
    *threads: ThreadFact,
    stacks: Mapping[int, Sequence[str]] | None = None,
    gil: int | None = None,
    names: Mapping[int, str] = {},
    worker: str | WorkerFact | None = None,
    **more: Any,
) -> Snapshot:
    """The whole: threads, `stacks` by tid, and any field of `Snapshot`; sockets, pipes and epolls bring their fd links."""
    more.setdefault("process", process())
    if worker is not None:
        fact = WorkerFact(worker) if isinstance(worker, str) else worker
        more["process"] = replace(more["process"], worker=fact)
    if stacks is not None:
        more.setdefault("python", python(stacks, gil, names))
    for field in ("sockets", "pipes", "epolls", "locks", "file_locks", "relatives", "activity", "tcp_events"):
        more[field] = tuple(more.get(field, ()))
    links = {fd: f"socket:[{fact.inode}]" for fact in more["sockets"] for fd in fact.fds}
    links |= {fd: f"pipe:[{fact.inode}]" for fact in more["pipes"] for fd in fact.fds}
    links |= {fact.fd: "anon_inode:[eventpoll]" for fact in more["epolls"]}
    more["fds"] = links | dict(more.get("fds", {}))
    more.setdefault("seen", Seen("core", {"threads": "iter/task"}))
    return Snapshot(more.pop("time", NOW), more.pop("process"), tuple(threads), **more)


def tcp(fd: int = 7, **more: Any) -> SocketFact:
    """An established outbound connection at rest: all acknowledged, keepalive off."""
    values: dict[str, Any] = {
        "fds": (fd,),
        "inode": 7000 + fd,
        "family": "inet",
        "protocol": "tcp",
        "state": "ESTABLISHED",
        "local": f"10.0.0.1:{40000 + fd}",
        "remote": "10.0.0.2:5672",
        "direction": "out",
        "unacked": 0,
        "retransmits": 0,
        "backoff": 0,
        "rto_s": 0.204,
        "timer": "",
        "last_send_s": 60.0,
        "last_receive_s": 60.0,
        "last_ack_s": 60.0,
        "send_window_bytes": 65536,
        "send_bytes": 0,
        "receive_bytes": 0,
        "keepalive": Keepalive(False, 7200.0, 75.0, 9, 0),
        "user_timeout_s": 0.0,
        "syn_retries": 6,
        "retries2": 15,
    }
    return SocketFact(**(values | more))


def black_hole(fd: int = 7, age_s: float = 35.0, **more: Any) -> SocketFact:
    """A connection whose packets vanish since `age_s`: 7 retransmits under a growing timeout."""
    values = {
        "unacked": 1,
        "retransmits": 7,
        "backoff": 7,
        "rto_s": 26.1,
        "timer": "retransmit",
        "timer_expires_s": 17.0,
    }
    ages = {"last_send_s": 9.1, "last_ack_s": age_s, "last_receive_s": age_s, "send_bytes": 563}
    return tcp(fd, **(values | ages | more))


def peer(pid: int = 812, **more: Any) -> Peer:
    """The other end on this node, which has read all."""
    values: dict[str, Any] = {"pids": (pid,), "command": "redis-server", "state": "ESTABLISHED", "unread_bytes": 0}
    return Peer(**(values | more))


def listen(fd: int = 5, port: int = 8000, **more: Any) -> SocketFact:
    return tcp(fd, state="LISTEN", local=f"0.0.0.0:{port}", remote="", direction="", backlog=2048, **more)


def pipe(
    fd: int, end: str = "read", readers: Collection[int] = (), writers: Collection[int] = (), **more: Any
) -> PipeFact:
    """A pipe whose holders are all known. The target itself is among them on its own end."""
    own_read, own_write = end in ("read", "both"), end in ("write", "both")
    readers = sorted({*readers, *([PID] if own_read else [])})
    writers = sorted({*writers, *([PID] if own_write else [])})
    more.setdefault("complete", True)
    return PipeFact(more.pop("fds", (fd,)), more.pop("inode", 9000 + fd), end, tuple(readers), tuple(writers), **more)


def epoll(fd: int = 4, *watches: EpollWatch) -> EpollFact:
    return EpollFact(fd, watches)


def watch(fd: int, present: bool = True, **more: Any) -> EpollWatch:
    return EpollWatch(fd, more.pop("events", 1), more.pop("inode", 7000 + fd), present, more.pop("held_by", ()))


def lock(waiter: int = PID, kind: str = "pthread-mutex", owner: LockOwner | None = None, **more: Any) -> LockFact:
    more.setdefault("address", 0x7F00_0000_1000)
    more.setdefault("mapping", "[heap]")
    return LockFact(kind=kind, waiter_tid=waiter, owner=owner, **more)


def owned_by(tid: int | None, state: str = "alive", **more: Any) -> LockOwner:
    more.setdefault("pid", PID)
    more.setdefault("ns_tid", tid)
    return LockOwner(state, tid, **more)


def file_lock(waiter: int = PID, holders: Sequence[int] = (300,), **more: Any) -> FileLockFact:
    return FileLockFact(waiter, more.pop("kind", "flock"), more.pop("path", "/run/app.lock"), tuple(holders), **more)


def parent(kind: str = "python", pid: int = PARENT, **more: Any) -> Relative:
    more.setdefault("same_program", kind != "other")
    return relative(pid, "parent", kind=kind, **more)


def relative(pid: int, relation: str, **more: Any) -> Relative:
    values: dict[str, Any] = {"command": "python3", "state": "S", "kind": "python", "start_time": 900}
    return Relative(pid, relation, **(values | more))


def activity(
    tid: int = PID, name: str = "epoll_wait", fd: int | None = 4, returns: int = 0, **more: Any
) -> CallActivity:
    values: dict[str, Any] = {"moved_bytes": 0, "empty": 0, "last_error": 0}
    return CallActivity(tid, name, fd, returns, **(values | more))


def diagnosed(facts: Snapshot, **budgets: Any) -> Diagnosis:
    """The diagnosis, with the assertion that no rule failed on these facts."""
    diagnosis = diagnose(facts, Budgets(**budgets))
    failed = [finding.summary for finding in diagnosis.findings if "failed on these facts" in finding.summary]
    assert not failed, failed
    return diagnosis


def verdict(facts: Snapshot, **budgets: Any) -> Finding:
    return diagnosed(facts, **budgets).verdict


def codes(facts: Snapshot, **budgets: Any) -> list[tuple[str, str]]:
    """(code, confidence) of every finding, the verdict first."""
    return [(finding.code, finding.confidence) for finding in diagnosed(facts, **budgets).findings]
