"""What a system call means: its name, the fds it waits for, in which direction, and the timeout it was given.

Decoded from the six raw arguments, and from the target's memory where those point into it (poll and select sets,
timespecs), read without stopping it. What cannot be read stays None or empty: never a guess.
"""

from __future__ import annotations

import platform
import struct
import time
from dataclasses import replace

from stucktrace.collectors import memory, syscall_names
from stucktrace.facts import Syscall

NAMES = syscall_names.BY_MACHINE.get(platform.machine(), {})
"""number -> name on this machine."""
NUMBERS = {name: number for number, name in NAMES.items()}

# Calls whose first argument is the fd they wait on, and what they wait to do with it.
_FD_FIRST = {
    **dict.fromkeys(("read", "readv", "pread64", "preadv", "preadv2", "getdents64"), "read"),
    **dict.fromkeys(("recvfrom", "recvmsg", "recvmmsg", "accept", "accept4", "mq_timedreceive"), "read"),
    **dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile"), "write"),
    **dict.fromkeys(("sendto", "sendmsg", "sendmmsg", "mq_timedsend"), "write"),
    "connect": "connect",
    **dict.fromkeys(("epoll_wait", "epoll_pwait", "epoll_pwait2", "io_uring_enter", "splice", "shutdown"), ""),
    **dict.fromkeys(("flock", "fcntl", "ioctl", "fsync", "fdatasync", "fallocate", "ftruncate", "close"), ""),
    **dict.fromkeys(("fstat", "lseek", "getsockopt", "setsockopt"), ""),
}
# Timeout as an int of milliseconds, negative for none: which argument.
_MILLISECONDS = {"poll": 2, "epoll_wait": 3, "epoll_pwait": 3}
# Timeout as a pointer to a relative timespec, NULL for none: which argument.
_TIMESPEC = {"epoll_pwait2": 3, "ppoll": 2, "pselect6": 4, "rt_sigtimedwait": 2, "recvmmsg": 4, "semtimedop": 3}

_POLL_IN = 0x0001 | 0x0002 | 0x0040 | 0x0080 | 0x2000  # POLLIN PRI RDNORM RDBAND RDHUP
_POLL_OUT = 0x0004 | 0x0100 | 0x0200  # POLLOUT WRNORM WRBAND
_MOST_FDS = 65536

_FUTEX_CLOCK_REALTIME = 256
# FUTEX_WAIT takes a relative timeout; LOCK_PI (CLOCK_REALTIME), WAIT_BITSET, WAIT_REQUEUE_PI and LOCK_PI2 a deadline.
_FUTEX_WAIT, _FUTEX_LOCK_PI = 0, 6
_FUTEX_ABSOLUTE = {6, 9, 11, 13}
_TIMER_ABSTIME = 1
# A sleep that goes on has no function of its own on the stack (the scheduler's are left out, the rest are tail calls).
_SYSCALL_ENTRY = {"do_syscall_64", "__x64_sys_restart_syscall", "invoke_syscall", "__arm64_sys_restart_syscall"}


def decode(pid: int, number: int, args: tuple[int, ...], since_ns: int | None = None, wchan: str = "") -> Syscall:
    """The call `number` of a thread of `pid`, blocked since then (CLOCK_MONOTONIC) in the kernel function `wchan`."""
    name = NAMES.get(number, f"syscall_{number}")
    if name == "restart_syscall":
        name = _restarted(args, wchan)
        number = NUMBERS.get(name, number)
    call = Syscall(number, name, args)
    if name in _FD_FIRST:
        fd = _int(args[0])
        call = replace(call, fd=fd, fds=(fd,), waits_to=_FD_FIRST[name]) if fd >= 0 else call
    elif name in ("poll", "ppoll"):
        reading, writing, events = _poll_set(pid, args[0], args[1])
        call = replace(_with_fds(call, reading, writing), poll_events=events)
    elif name in ("select", "pselect6"):
        call = _with_fds(call, *_select_sets(pid, _int(args[0]), args[1:4]))
    endless, timeout_s = _timeout(pid, name, args, since_ns)
    return replace(call, endless=endless, timeout_s=timeout_s) if endless is not None else call


def _restarted(args: tuple[int, ...], wchan: str) -> str:
    """After SIGCONT some calls go on as restart_syscall, with the registers of the original call left as they were."""
    if "futex" in wchan:
        return "futex"
    if "poll" in wchan:
        return "poll"
    if "nanosleep" in wchan or wchan in _SYSCALL_ENTRY:
        # clock_nanosleep's first argument is a clock's number, nanosleep's is an address.
        return "clock_nanosleep" if args[0] < 4096 else "nanosleep"
    return "restart_syscall"


def _int(argument: int) -> int:
    """A C int from a 64-bit register."""
    value = argument & 0xFFFFFFFF
    return value - (1 << 32) if value & 1 << 31 else value


def _with_fds(call: Syscall, reading: tuple[int, ...], writing: tuple[int, ...]) -> Syscall:
    fds = tuple(dict.fromkeys((*reading, *writing)))
    waits_to = "read" if reading and not writing else "write" if writing and not reading else ""
    return replace(call, fds=fds, fd=fds[0] if len(fds) == 1 else None, waits_to=waits_to)


def _poll_set(pid: int, address: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """(fds waited on to read, to write, the events of the only one).

    An fd with no events asked for counts as reading: it waits for errors.
    """
    count &= 0xFFFFFFFF
    data = _read(pid, address, 8 * count) if 0 < count <= _MOST_FDS else None
    reading, writing, asked = [], [], []
    for fd, events, _ in struct.iter_unpack("=ihh", data or b""):
        if fd < 0:
            continue
        asked.append(events)
        if events & _POLL_OUT:
            writing.append(fd)
        if events & _POLL_IN or not events & _POLL_OUT:
            reading.append(fd)
    return tuple(reading), tuple(writing), asked[0] if len(asked) == 1 else None


def _select_sets(pid: int, count: int, addresses: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(fds of the read and exception sets, of the write set). The kernel works on copies: the user's stay as asked."""
    sets = []
    for address in addresses:
        length = (count + 63) // 64 * 8
        data = _read(pid, address, length) if address and 0 < count <= _MOST_FDS else None
        bits = int.from_bytes(data or b"", "little")
        sets.append([fd for fd in range(count if bits else 0) if bits >> fd & 1])
    reading, writing, exceptional = sets
    return tuple(dict.fromkeys((*reading, *exceptional))), tuple(writing)


def _timeout(pid: int, name: str, args: tuple[int, ...], since_ns: int | None) -> tuple[bool | None, float | None]:
    """(endless, the relative timeout in seconds): (None, None) when the call takes none or it cannot be told."""
    if name in _MILLISECONDS:
        milliseconds = _int(args[_MILLISECONDS[name]])
        return (True, None) if milliseconds < 0 else (False, milliseconds / 1000)
    if name in _TIMESPEC:
        address = args[_TIMESPEC[name]]
        return (False, _time(pid, address, 1e-9)) if address else (True, None)
    if name == "select":
        return (False, _time(pid, args[4], 1e-6)) if args[4] else (True, None)
    if name == "nanosleep":
        return False, _time(pid, args[0], 1e-9)
    if name == "clock_nanosleep":
        if args[1] & _TIMER_ABSTIME:
            return False, _from_deadline(_time(pid, args[2], 1e-9), _int(args[0]), since_ns)
        return False, _time(pid, args[2], 1e-9)
    if name == "futex":
        return _futex_timeout(pid, args, since_ns)
    if name == "pause":
        return True, None
    return None, None


def _futex_timeout(pid: int, args: tuple[int, ...], since_ns: int | None) -> tuple[bool | None, float | None]:
    operation = args[1] & 0x7F
    if operation != _FUTEX_WAIT and operation not in _FUTEX_ABSOLUTE:
        return None, None
    if not args[3]:
        return True, None
    timeout_s = _time(pid, args[3], 1e-9)
    if operation == _FUTEX_WAIT:
        return False, timeout_s
    realtime = args[1] & _FUTEX_CLOCK_REALTIME or operation == _FUTEX_LOCK_PI
    clock = time.CLOCK_REALTIME if realtime else time.CLOCK_MONOTONIC
    return False, _from_deadline(timeout_s, clock, since_ns)


def _from_deadline(deadline_s: float | None, clock: int, since_ns: int | None) -> float | None:
    """The relative timeout that a deadline on this clock stood for when the call began."""
    if deadline_s is None or since_ns is None:
        return None
    try:
        ahead_s = time.clock_gettime(clock) - time.monotonic()
    except OSError:
        return None
    return max(0.0, deadline_s - ahead_s - since_ns / 1e9)


def _time(pid: int, address: int, unit_s: float) -> float | None:
    """Seconds from a timespec (unit 1e-9) or timeval (1e-6) in the target's memory."""
    data = _read(pid, address, 16)
    if data is None:
        return None
    seconds, parts = struct.unpack("=qq", data)
    return float(seconds + parts * unit_s)


def _read(pid: int, address: int, length: int) -> bytes | None:
    try:
        return memory.read(pid, address, length)
    except (OSError, ValueError):
        return None
