"""The options of one socket of another process: keepalive settings, TCP_USER_TIMEOUT, TCP_SYNCNT, TCP_INFO.

Source: pidfd_getfd and getsockopt on the duplicate. While a duplicate is held the target's close sends no FIN and its
epoll set keeps the entry, so it is held for microseconds: one at a time, by a child process that does nothing else,
with signals blocked, everything warmed up and bound before, nothing written between getting and closing.
For suspects only; never for a listening socket. SO_ERROR is never asked: reading it clears it.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from stucktrace.errors import CollectorError

SYS_PIDFD_GETFD = 438
"""The same number on every architecture."""
TCP_INFO_BYTES = 256
DEADLINE_S = 2.0

OPTIONS = (
    ("keepalive", socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    ("idle_s", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    ("interval_s", socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    ("count", socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    ("user_timeout_ms", socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    ("syn_retries", socket.IPPROTO_TCP, socket.TCP_SYNCNT),
)
Answer = tuple[int, int, int, tuple[int, ...], bytes]
"""fd, errno of the duplication, inode, values of OPTIONS, struct tcp_info."""
ANSWER = struct.Struct(f"=iIQ{len(OPTIONS)}iI{TCP_INFO_BYTES}s")


@dataclass(frozen=True)
class Options:
    keepalive: bool
    idle_s: int
    interval_s: int
    count: int
    user_timeout_s: float
    syn_retries: int
    tcp_info: bytes


def read(sockets: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], Options]:
    """(pid, fd) -> its options, for TCP sockets given as (pid, fd) -> expected inode.

    One that is gone or was replaced meanwhile is left out. CollectorError when no fd may be duplicated at all.
    """
    pidfds = _open_processes({pid for pid, _ in sockets})
    asked = [(pid, fd) for pid, fd in sockets if pid in pidfds]
    try:
        answers = _ask_child([(pidfds[pid], fd) for pid, fd in asked]) if asked else []
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    found: dict[tuple[int, int], Options] = {}
    refusal = 0
    for key, (_, failure, inode, values, info) in zip(asked, answers, strict=False):
        if failure:
            refusal = failure
        elif inode == sockets[key]:
            keepalive, idle_s, interval_s, count, user_timeout_ms, syn_retries = values
            found[key] = Options(bool(keepalive), idle_s, interval_s, count, user_timeout_ms / 1000, syn_retries, info)
    if not found and refusal in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
        raise _refused(OSError(refusal, os.strerror(refusal)))
    return found


def _open_processes(pids: Collection[int]) -> dict[int, int]:
    """pid -> pidfd; one that is gone is left out."""
    found: dict[int, int] = {}
    for pid in pids:
        try:
            found[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        except OSError as error:
            raise _refused(error) from None
    return found


def _ask_child(fds: Sequence[tuple[int, int]]) -> list[Answer]:
    """The answers for (pidfd, fd), in this order; fewer when the helper did not come to its end in time."""
    receiver, sender = os.pipe()
    try:
        try:
            child = os.fork()
            if child == 0:
                os.close(receiver)
                _child(fds, sender)
        finally:
            os.close(sender)
        try:
            return _answers(_read_answers(receiver, len(fds) * ANSWER.size))
        finally:
            _reap(child)
    finally:
        os.close(receiver)


def _refused(error: OSError) -> CollectorError:
    from stucktrace.collectors import permission

    remedy = "Linux 5.6 or newer" if error.errno == errno.ENOSYS else permission.remedy("SYS_PTRACE")
    return CollectorError("socket options", f"pidfd_getfd: {(error.strerror or str(error)).lower()}", remedy)


def _read_answers(receiver: int, length: int) -> bytes:
    """What the child wrote until it ended or the deadline passed."""
    deadline = time.monotonic() + DEADLINE_S
    data = b""
    while len(data) < length:
        ready, _, _ = select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(receiver, 65536) if ready else b""
        if not part:
            break
        data += part
    return data


def _reap(child: int) -> None:
    """The child ends by itself at once; past the deadline it is killed, which closes what it holds."""
    deadline = time.monotonic() + DEADLINE_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)


def _answers(data: bytes) -> list[Answer]:
    found = []
    for start in range(0, len(data) - ANSWER.size + 1, ANSWER.size):
        fd, error, inode, *rest = ANSWER.unpack_from(data, start)
        values, info_bytes, info = tuple(rest[:-2]), rest[-2], rest[-1]
        found.append((fd, error, inode, values, info[:info_bytes]))
    return found


def _child(fds: Sequence[tuple[int, int]], sender: int) -> NoReturn:
    """Runs in the child and never returns."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Out of the terminal's reach: Ctrl-Z stops the parent only.
        os.setsid()
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        gc.disable()
        look = _prepare()
        # Once on a socket of our own: every page touched and every function resolved before the first real one.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
            look(os.pidfd_open(os.getpid()), own.fileno())
        for pidfd, fd in fds:
            os.write(sender, look(pidfd, fd))
    except BaseException:
        os._exit(1)
    os._exit(0)


def _prepare() -> Callable[[int, int], bytes]:
    """The function that looks at one fd, with everything it needs bound and allocated."""
    libc = ctypes.CDLL(None, use_errno=True)
    syscall, getsockopt, close, fstat = libc.syscall, libc.getsockopt, os.close, os.fstat
    number, no_flags = ctypes.c_long(SYS_PIDFD_GETFD), ctypes.c_uint(0)
    values = [ctypes.c_int(-1) for _ in OPTIONS]
    length, info_length = ctypes.c_uint(4), ctypes.c_uint(TCP_INFO_BYTES)
    info = ctypes.create_string_buffer(TCP_INFO_BYTES)
    asked = [
        (ctypes.c_int(level), ctypes.c_int(name), ctypes.byref(value), ctypes.byref(length))
        for (_, level, name), value in zip(OPTIONS, values, strict=True)
    ]
    asked_info = (ctypes.c_int(socket.IPPROTO_TCP), ctypes.c_int(socket.TCP_INFO), info, ctypes.byref(info_length))

    def look(pidfd: int, fd: int) -> bytes:
        inode = 0
        info_length.value = TCP_INFO_BYTES
        duplicate = syscall(number, pidfd, fd, no_flags)
        if duplicate < 0:
            return ANSWER.pack(fd, ctypes.get_errno(), 0, *([0] * len(OPTIONS)), 0, b"")
        try:
            for arguments in asked:
                getsockopt(duplicate, *arguments)
            getsockopt(duplicate, *asked_info)
            inode = fstat(duplicate).st_ino
        finally:
            close(duplicate)
        return ANSWER.pack(fd, 0, inode, *(value.value for value in values), info_length.value, info.raw)

    return look
