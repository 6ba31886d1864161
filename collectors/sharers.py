"""Which processes share a piece of memory.

Source: the device and inode in /proc/PID/maps, which shared anonymous memory has too.

What is unlinked or anonymous comes by inheritance alone: from the process that made it to those that it forked.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect


@dataclass(frozen=True)
class Shared:
    """A mapping shared between processes, as one of them has it."""

    file: tuple[str, int]
    """(device, inode): the same in every process."""
    start: int


def of(pid: int, address: int) -> Shared | None:
    """The shared mapping around an address."""
    for line in procfs.read(pid, "maps", limit=16 << 20).splitlines():
        with suppress(ValueError, IndexError):
            start, end = (int(edge, 16) for edge in line.split(b" ", 1)[0].split(b"-"))
            if start <= address < end:
                _, permissions, _, device, inode, *_ = line.split(None, 5)
                shared = permissions[3:4] == b"s" and int(inode)
                return Shared((device.decode(), int(inode)), start) if shared else None
    return None


def mapped_at(pid: int, shared: Shared) -> int | None:
    """Where a process maps the same; None: it does not."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        text = file.read()
    device, inode = shared.file
    place = text.find(f" {device} {inode} ".encode())
    if place < 0:
        return None
    return int(text[text.rfind(b"\n", 0, place) + 1 :].partition(b"-")[0], 16)


def everyone() -> tuple[list[int], list[int]]:
    """Every process whose mappings may be read, and every other one."""
    readable, hidden = [], []
    for pid in procfs.all_pids():
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                file.read(1)
            readable.append(pid)
        except PermissionError:
            hidden.append(pid)
        except OSError:
            continue
    return readable, hidden


def may_share(hidden: int, sharing: Collection[int]) -> bool:
    """A process that may not be read can be a parent, child or sibling of those that share it, or an orphan of
    one of them."""
    try:
        stat = procfs.read_stat(hidden)
        family = [procfs.read_stat(pid) for pid in sharing]
    except CannotInspect:
        return True
    parents = {each.ppid for each in family}
    return (
        hidden in parents
        or stat.ppid in parents | set(sharing)
        or stat.start_time >= min((each.start_time for each in family), default=0)
    )


def all_of(shared: Shared) -> tuple[list[int], bool]:
    """Every process that maps it, and whether there may be more that cannot be read."""
    readable, hidden = everyone()
    found = []
    for pid in readable:
        try:
            if mapped_at(pid, shared) is not None:
                found.append(pid)
        except OSError:
            continue
    return found, any(may_share(pid, found) for pid in hidden)
