"""Small parsers of /proc/PID files. Source: proc(5). Nothing here is cached; every read is of this instant.

Errors: `NoSuchProcess` when the process is gone, `NotPermitted` with the capability that would help.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stucktrace.errors import CannotInspect, NoSuchProcess, NotPermitted

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LONGEST_ARGV_BYTES = 64 << 10

_FEW_THREADS = 64

NODES_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the node's own PID namespace (include/linux/proc_ns.h)."""

PF_EXITING = 0x4
PF_KTHREAD = 0x00200000

UNHIDDEN = "run as root with CAP_SYS_PTRACE, as the target's user, or in the gid= group of hidepid=invisible"


@dataclass(frozen=True)
class Stat:
    """/proc/PID/stat."""

    pid: int
    command: str
    state: str
    ppid: int
    flags: int
    start_time: int
    """Clock ticks after boot."""
    rss_bytes: int
    arg_start: int = 0
    """Where its arguments lie in its memory; 0 when we may not know."""

    @property
    def kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)

    @property
    def ending(self) -> bool:
        return self.state in "ZX" or bool(self.flags & PF_EXITING)

    @property
    def age_s(self) -> float:
        return age_s(self.start_time)


def age_s(start_time: int) -> float:
    """Of a process that started so many clock ticks after boot."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start_time / TICKS_PER_SECOND)


def read(pid: int, name: str, limit: int = 1 << 20) -> bytes:
    """A file of /proc/PID, at most `limit` bytes."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            chunks = []
            while limit > 0 and (chunk := file.read(min(limit, 1 << 16))):
                chunks.append(chunk)
                limit -= len(chunk)
            return b"".join(chunks)
    except OSError as error:
        raise explained(pid, error) from None


def explained(pid: int, error: OSError) -> CannotInspect:
    """What a failure to read /proc/PID means to the user."""
    if isinstance(error, PermissionError):
        from stucktrace.collectors import permission

        return NotPermitted(f"process {pid}: not permitted to look at it", permission.to_read(pid))
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        if hides_processes():
            return NoSuchProcess(
                f"no process {pid} can be seen: /proc is mounted with hidepid",
                UNHIDDEN,
            )
        remedy = "`stucktrace pid` without a pid lists what could be looked at"
        if own_pids():
            remedy += "; pids here are those of this container's PID namespace, not the node's"
        return NoSuchProcess(f"no process {pid}", remedy)
    return CannotInspect(f"process {pid}: {error.strerror or error}", "look again")


def hides_processes() -> bool:
    """/proc is mounted so that other users' processes are invisible, and we are not exempt: root without CAP_SYS_PTRACE
    is not, but for being in the group that hidepid=invisible excepts."""
    from stucktrace.collectors import permission

    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return False
    options: list[str] = []
    for line in mounts.splitlines():
        words = line.split()
        # Of several mounts on /proc the last lies on top.
        if len(words) > 3 and words[1] == "/proc":
            options = words[3].split(",")
    value = next((option.partition("=")[2] for option in options if option.startswith("hidepid=")), "")
    if value not in ("2", "invisible", "4", "ptraceable") or not permission.lacking("SYS_PTRACE"):
        return False
    group = next((int(option[4:]) for option in options if option.startswith("gid=")), 0)
    return value in ("4", "ptraceable") or group not in (os.getegid(), *os.getgroups())


def own_pids() -> bool:
    """We are in a PID namespace that is not the node's."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino != NODES_PID_NAMESPACE
    except OSError:
        return False


def parse_stat(text: str) -> Stat:
    """The name may hold spaces and parentheses: it ends at the last ")"."""
    head, _, tail = text.rpartition(")")
    pid, _, command = head.partition("(")
    fields = tail.split()
    return Stat(
        pid=int(pid),
        command=command,
        state=fields[0],
        ppid=int(fields[1]),
        flags=int(fields[6]),
        start_time=int(fields[19]),
        rss_bytes=int(fields[21]) * PAGE_BYTES,
        arg_start=int(fields[45]) if len(fields) > 45 else 0,
    )


def read_stat(pid: int) -> Stat:
    text = read(pid, "stat").decode(errors="surrogateescape")
    try:
        return parse_stat(text)
    except (ValueError, IndexError):
        raise CannotInspect(f"process {pid}: its stat cannot be understood: {text[:80]!r}", "look again") from None


def forked(pid: int, parent: int) -> bool | None:
    """`pid` is a fork of `parent` that has not run another program since; None when that cannot be known.

    The kernel places the arguments of each program that is started at an address of its own; a fork keeps it.
    """
    try:
        mine, theirs = read_stat(pid).arg_start, read_stat(parent).arg_start
    except CannotInspect:
        return None
    return mine == theirs if mine and theirs else None


def parse_status(text: str) -> dict[str, str]:
    """Field name -> value of /proc/PID/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def read_status(pid: int) -> dict[str, str]:
    return parse_status(read(pid, "status").decode(errors="surrogateescape"))


def first_number(text: str, default: int = 0, base: int = 10) -> int:
    """The first word of a field as a number."""
    try:
        return int(text.split(maxsplit=1)[0], base)
    except (ValueError, IndexError):
        return default


def last_number(text: str, default: int) -> int:
    """The last word of a field as a number: an id in the innermost namespace."""
    return first_number(" ".join(text.split()[-1:]), default)


def read_argv(pid: int) -> tuple[str, ...]:
    """The command line as the process shows it now (setproctitle changes it); () for kernel threads and zombies."""
    text = read(pid, "cmdline", LONGEST_ARGV_BYTES).decode(errors="surrogateescape")
    return split_argv(text)


def split_argv(text: str) -> tuple[str, ...]:
    """Trailing NULs are what is left of a longer title."""
    text = text.rstrip("\0")
    return tuple(text.split("\0")) if text else ()


def read_environ(pid: int) -> dict[str, str] | None:
    """For finding things only: no value of it may leave this process. As it was when the program was started.

    None when it cannot be read, or a process title was written over it.
    """
    try:
        text = read(pid, "environ").decode(errors="surrogateescape")
    except CannotInspect:
        return None
    return parse_environ(text) if text.strip("\0") or not text else None


def parse_environ(text: str) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in reversed(text.split("\0")) if "=" in entry)


def read_link(pid: int, name: str) -> str:
    """What a link of /proc/PID points to; "" when it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def thread_ids(pid: int) -> list[int]:
    try:
        return [int(entry) for entry in os.listdir(f"/proc/{pid}/task") if entry.isdecimal()]
    except OSError as error:
        raise explained(pid, error) from None


def children(pid: int) -> list[int]:
    """The children of all its threads; [] when it is gone.

    Source: task/TID/children; else the parent of every process, which is quicker for a process of thousands of threads,
    and all there is where the kernel does not list children (CONFIG_PROC_CHILDREN).
    """
    try:
        tids = thread_ids(pid)
        everybody = all_pids() if len(tids) > _FEW_THREADS else []
        if 0 < len(everybody) < len(tids):
            return _children_by_parent(pid, everybody)
        found = list(map(int, read(pid, f"task/{pid}/children").split()))
    except (CannotInspect, ValueError):
        return _children_by_parent(pid, all_pids()) if Path(f"/proc/{pid}/stat").exists() else []
    for tid in tids:
        if tid != pid:
            # A thread that has ended meanwhile has left its children to another.
            with suppress(CannotInspect, ValueError):
                found += map(int, read(pid, f"task/{tid}/children").split())
    return sorted(found)


def _children_by_parent(pid: int, everybody: Iterable[int]) -> list[int]:
    found = []
    for other in everybody:
        with suppress(CannotInspect):
            if read_stat(other).ppid == pid:
                found.append(other)
    return sorted(found)


def descendants(pid: int, most: int = 4096) -> Iterator[int]:
    """Children first, breadth first."""
    queue, seen = [pid], {pid}
    while queue and len(seen) < most:
        for child in children(queue.pop(0)):
            if child not in seen:
                seen.add(child)
                queue.append(child)
                yield child


def same_monotonic_clock(pid: int) -> bool:
    """CLOCK_MONOTONIC is the same there and here: it is not in a time namespace of its own."""
    try:
        return os.readlink(f"/proc/{pid}/ns/time") == os.readlink("/proc/self/ns/time")
    except FileNotFoundError:
        # A kernel without time namespaces.
        return True
    except OSError:
        return False
