"""What each epoll set watches, and registrations whose fd is gone. Source: /proc/PID/fdinfo/EPFD against the fd table.

A registration outlives its fd when another process (a forked child, say) still holds the open file.
"""

from __future__ import annotations

import os
import re
import select
from dataclasses import replace

from stucktrace.collectors import file_holders, procfs
from stucktrace.collectors.openfiles import OpenFiles
from stucktrace.errors import CannotInspect
from stucktrace.facts import EpollFact, EpollWatch, ProcessFact

_MOST_BYTES = 16 << 20
_LINE = re.compile(r"^tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*[0-9a-f]+(?:.*\bino:([0-9a-f]+))?", re.MULTILINE)


def parse(text: str) -> list[tuple[int, int, int]]:
    """(fd, events, inode) of each registration; the inode is 0 before Linux 4.13."""
    return [(int(fd), int(events, 16), int(inode or "0", 16)) for fd, events, inode in _LINE.findall(text)]


def collect(process: ProcessFact, files: OpenFiles) -> tuple[EpollFact, ...]:
    facts = []
    for epoll in files.epolls():
        registered = _registered(process.pid, epoll)
        watches = tuple(_watch(process.pid, files, *registration) for registration in registered)
        if any(not watch.present for watch in watches):
            # Closed or opened since the first read: only what is still registered after its fd was gone is stale.
            still = set(_registered(process.pid, epoll))
            watches = tuple(
                watch for watch in watches if watch.present or (watch.fd, watch.events, watch.inode) in still
            )
        facts.append(EpollFact(epoll, _with_holders(watches)))
    return tuple(facts)


def _registered(pid: int, epoll: int) -> list[tuple[int, int, int]]:
    try:
        return parse(procfs.read(pid, f"fdinfo/{epoll}", _MOST_BYTES).decode(errors="replace"))
    except CannotInspect:
        return []


def _watch(pid: int, files: OpenFiles, fd: int, events: int, inode: int) -> EpollWatch:
    link = files.links.get(fd, "")
    present = bool(link) and _same(pid, fd, link, inode)
    if not present and (now := procfs.read_link(pid, f"fd/{fd}")):
        present = _same(pid, fd, now, inode)
    return EpollWatch(fd, events, inode, present)


def _same(pid: int, fd: int, link: str, inode: int) -> bool:
    """The fd is open on the registered file; anonymous inodes are all one, and 0 is not known."""
    if not inode or link.startswith("anon_inode:"):
        return True
    if link.startswith(("socket:[", "pipe:[")):
        return link.partition("[")[2][:-1] == str(inode)
    try:
        return os.stat(f"/proc/{pid}/fd/{fd}").st_ino == inode
    except OSError:
        # Closed since the table was read: a look that races is no evidence.
        return True


def _with_holders(watches: tuple[EpollWatch, ...]) -> tuple[EpollWatch, ...]:
    stale = {watch.inode for watch in watches if not watch.present and watch.inode}
    if not stale:
        return watches
    held, _ = file_holders.find([f"{kind}:[{inode}]" for inode in stale for kind in ("socket", "pipe")])
    holders: dict[int, list[file_holders.Held]] = {}
    for holder in held:
        holders.setdefault(int(holder.link.partition("[")[2][:-1]), []).append(holder)
    return tuple(
        watch
        if watch.present
        else replace(
            watch,
            held_by=tuple(
                dict.fromkeys(holder.pid for holder in holders.get(watch.inode, ()) if _same_end(holder, watch.events))
            ),
        )
        for watch in watches
    )


def _same_end(holder: file_holders.Held, events: int) -> bool:
    """Both ends of a pipe have its inode; who waits to read it has registered the read end."""
    if not holder.link.startswith("pipe:"):
        return True
    other = os.O_WRONLY if events & select.EPOLLIN else os.O_RDONLY if events & select.EPOLLOUT else None
    return other is None or holder.mode != other
