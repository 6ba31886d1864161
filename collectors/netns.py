"""Network namespaces: which one a process lives in, and how to do one thing inside another one.

Source: /proc/PID/ns/net. A namespace is entered by a short-lived thread of this process (setns changes the calling
thread alone), so nothing else here ever leaves its own namespace. Needs SYS_ADMIN, and ptrace access to the target.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

CLONE_NEWNET = 0x40000000
NAMED = Path("/proc/1/root/run/netns"), Path("/run/netns")
SYSCTL = Path("/proc/sys/net/ipv4")
T = TypeVar("T")


def inode_of(pid: int | str) -> int | None:
    """The namespace's inode: its identity on this node. None: gone, or not permitted."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def path_of(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


def own() -> int | None:
    return inode_of("self")


def inside(pid: int, work: Callable[[], T]) -> T:
    """`work` done by a thread in the namespace of `pid`. OSError where it may not be entered, or from `work`."""
    return enter(path_of(pid), work)


def enter(path: str, work: Callable[[], T]) -> T:
    """As `inside`, for the namespace that this file stands for."""
    if os.stat(path).st_ino == own():
        return work()
    outcome: list[T] = []
    failure: list[BaseException] = []
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def work_there() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    try:
        thread = threading.Thread(target=work_there, name="netns")
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    if failure:
        raise failure[0]
    return outcome[0]


def representatives() -> Iterator[tuple[int, int]]:
    """(namespace inode, one pid that lives in it) for every namespace that /proc shows, the own one first."""
    seen = {own()}
    if None not in seen:
        yield next(inode for inode in seen if inode), os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            inode = inode_of(entry)
            if inode and inode not in seen:
                seen.add(inode)
                yield inode, int(entry)


def named() -> Iterator[tuple[int, str]]:
    """(inode, path) of the namespaces that `ip netns` or a container's runtime named, here and where pid 1 lives.

    Routers in between often hold no process.
    """
    for folder in NAMED:
        with suppress(OSError):
            for path in folder.iterdir():
                with suppress(OSError):
                    yield path.stat().st_ino, str(path)


@dataclass(frozen=True)
class Defaults:
    """TCP sysctls of one network namespace that apply where a socket sets nothing itself."""

    keepalive_idle_s: float | None = None
    keepalive_interval_s: float | None = None
    keepalive_count: int | None = None
    retries2: int | None = None
    syn_retries: int | None = None


def read_defaults() -> Defaults:
    """The sysctls of the calling thread's namespace (/proc/sys/net shows that one)."""

    def number(name: str) -> int | None:
        try:
            return int((SYSCTL / name).read_text())
        except (OSError, ValueError):
            return None

    return Defaults(
        keepalive_idle_s=number("tcp_keepalive_time"),
        keepalive_interval_s=number("tcp_keepalive_intvl"),
        keepalive_count=number("tcp_keepalive_probes"),
        retries2=number("tcp_retries2"),
        syn_retries=number("tcp_syn_retries"),
    )
