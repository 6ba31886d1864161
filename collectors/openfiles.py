"""The fd table of a process, read once a look. Source: the links of /proc/PID/fd."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from stucktrace.collectors import permission
from stucktrace.errors import CollectorError
from stucktrace.facts import Missing

_SOCKET, _PIPE, _EPOLL = "socket:[", "pipe:[", "anon_inode:[eventpoll]"


@dataclass(frozen=True)
class OpenFiles:
    """fd -> what it is open on: "socket:[inode]", "pipe:[inode]", "anon_inode:[eventpoll]", or a path."""

    links: Mapping[int, str]
    complete: bool = True

    def sockets(self) -> dict[int, tuple[int, ...]]:
        """Socket inode -> its fds."""
        return self._by_inode[_SOCKET]

    def pipes(self) -> dict[int, tuple[int, ...]]:
        """Inode of an unnamed pipe -> its fds."""
        return self._by_inode[_PIPE]

    def epolls(self) -> tuple[int, ...]:
        return tuple(fd for fd, link in self.links.items() if link == _EPOLL)

    @cached_property
    def _by_inode(self) -> dict[str, dict[int, tuple[int, ...]]]:
        found: dict[str, dict[int, list[int]]] = {_SOCKET: {}, _PIPE: {}}
        for fd, link in self.links.items():
            kind = _SOCKET if link.startswith(_SOCKET) else _PIPE
            inode = link[len(kind) : -1]
            if link.startswith(kind) and inode.isdecimal():
                found[kind].setdefault(int(inode), []).append(fd)
        return {kind: {inode: tuple(fds) for inode, fds in inodes.items()} for kind, inodes in found.items()}


def read_fds(pid: int) -> OpenFiles:
    """The whole table. Raises CollectorError when it may not be read or the process is gone."""
    links: dict[int, str] = {}
    complete = True
    try:
        # Looked up from the opened directory: with 20,000 fds a third of the time.
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(map(int, os.listdir(directory))):
                try:
                    links[name] = os.readlink(str(name), dir_fd=directory)
                except PermissionError:
                    complete = False
                except OSError:
                    continue
        finally:
            os.close(directory)
    except PermissionError:
        raise CollectorError(
            "open files",
            f"the fd table of process {pid} may not be read",
            permission.to_read(pid),
        ) from None
    except OSError as error:
        raise CollectorError("open files", f"process {pid}: {error.strerror}", "look again") from None
    return OpenFiles(links, complete)


def unreadable_links(pid: int) -> Missing:
    """For a table that is not complete."""
    because = f"what the fds of process {pid} are open on may not be read"
    return Missing("open files", because, permission.to_read(pid))
