"""Who holds which end of the target's pipes. Source: pipe inodes over /proc/*/fd, access modes from the links."""

from __future__ import annotations

import os
import stat

from stucktrace.collectors import file_holders, pipe_ends
from stucktrace.collectors.openfiles import OpenFiles
from stucktrace.facts import PipeFact, ProcessFact


def links(process: ProcessFact, files: OpenFiles) -> dict[str, tuple[int, ...]]:
    """What the fds of pipes and FIFOs link to -> those fds."""
    return {f"pipe:[{inode}]": fds for inode, fds in files.pipes().items()} | _fifos(process.pid, files)


def collect(
    process: ProcessFact, files: OpenFiles, found: tuple[tuple[file_holders.Held, ...], bool] | None = None
) -> tuple[PipeFact, ...]:
    """One fact a pipe or FIFO. The whole node is searched only when the target has one.

    `found`: what `file_holders.find` said of the links of several processes, so that the node is searched once.
    """
    mine_by_link = links(process, files)
    if not mine_by_link:
        return ()
    held, complete = found or file_holders.find(mine_by_link)
    held_by_link: dict[str, list[file_holders.Held]] = {}
    for holder in held:
        held_by_link.setdefault(holder.link, []).append(holder)
    facts = []
    for link, fds in mine_by_link.items():
        readers: dict[int, None] = {}
        writers: dict[int, None] = {}
        mine: set[int] = set()
        others: set[tuple[int, int]] = set()
        reading: set[tuple[int, int]] = set()
        for holder in _same_file(process.pid, fds[0], link, held_by_link.get(link, [])):
            mode = holder.mode
            if mode in (os.O_RDONLY, os.O_RDWR, None):
                readers[holder.pid] = None
                reading.add((holder.pid, holder.fd))
            if mode in (os.O_WRONLY, os.O_RDWR, None):
                writers[holder.pid] = None
                others.add((holder.pid, holder.fd))
            if holder.pid == process.pid and mode is not None:
                mine.add(mode)
        others = {(pid, fd) for pid, fd in others if pid != process.pid}
        reading = {(pid, fd) for pid, fd in reading if pid != process.pid}
        end = _end(mine)
        facts.append(
            PipeFact(
                fds=fds,
                inode=_inode(process.pid, fds[0], link),
                end=end,
                readers=tuple(sorted(readers)),
                writers=tuple(sorted(writers)),
                complete=complete,
                path="" if link.startswith("pipe:") else link,
                blocked_writers=(
                    pipe_ends.blocked_writers(others)
                    if process.pid in readers and set(readers) - {process.pid} <= {pid for pid, _ in others}
                    else ()
                ),
                blocked_readers=pipe_ends.blocked_readers(reading) if set(writers) == {process.pid} else (),
                own_write_nonblocking=end == "both" and _write_nonblocking(process.pid, fds),
                waiting_readers=pipe_ends.waiting_for_children(readers) if end == "write" else (),
            )
        )
    return tuple(facts)


def _same_file(pid: int, fd: int, link: str, held: list[file_holders.Held]) -> list[file_holders.Held]:
    """A path can mean another FIFO in another mount namespace: then only what is the very same file."""
    if link.startswith("pipe:["):
        return held
    wanted = _identity(pid, fd)
    return [holder for holder in held if holder.pid == pid or _identity(holder.pid, holder.fd) == wanted]


def _identity(pid: int, fd: int) -> tuple[int, int] | None:
    try:
        found = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _write_nonblocking(pid: int, fds: tuple[int, ...]) -> bool:
    writes = (fd for fd in fds if file_holders.access_mode(pid, fd) in (os.O_WRONLY, os.O_RDWR))
    return any((file_holders.flags(pid, fd) or 0) & os.O_NONBLOCK for fd in writes)


def _end(modes: set[int]) -> str:
    if modes == {os.O_RDONLY}:
        return "read"
    return "write" if modes == {os.O_WRONLY} else "both"


def _fifos(pid: int, files: OpenFiles) -> dict[str, tuple[int, ...]]:
    """Path of each named FIFO -> its fds."""
    found: dict[str, tuple[int, ...]] = {}
    for fd, link in files.links.items():
        if link.startswith("/") and not link.startswith(("/dev/", "/proc/", "/sys/")):
            try:
                if stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/{fd}").st_mode):
                    found[link] = (*found.get(link, ()), fd)
            except OSError:
                continue
    return found


def _inode(pid: int, fd: int, link: str) -> int:
    if link.startswith("pipe:["):
        return int(link[6:-1])
    found = _identity(pid, fd)
    return found[1] if found else 0
