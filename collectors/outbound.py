"""The TCP connections that a process opened itself, and how their packets are addressed.

Source: /proc/PID/fd for the inodes, sock_diag in its network namespace for the tuples, conntrack for those that are
translated in that namespace (a sidecar's REDIRECT, a service's address): the wire shows the translated addresses. It is
asked every second, so no table is read while the process has no new socket.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field

from stucktrace.collectors import ctnetlink, netns, permission, procfs, sock_diag
from stucktrace.collectors.addresses import parse_endpoint
from stucktrace.collectors.packet_filter import Flow
from stucktrace.errors import CannotInspect, NoSuchProcess, NotPermitted

_CONNECTED = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8
"""ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT."""
_LOOKS = 3
"""A socket that was not connected in so many looks is none to connect, or not soon."""


@dataclass(frozen=True)
class Connection:
    inode: int
    fd: int
    local: str
    """"address:port", as the process knows it."""
    remote: str
    flows: tuple[Flow, ...]
    """As its packets bear it: as the process knows it and, where addresses are translated in its namespace, as they are
    then. A packet is seen as it is at the device, which of the two may differ from one direction to the other."""


@dataclass
class Outbound:
    """Made by `of`; `look` is called again and again."""

    pid: int
    start_time: int
    _diag: socket.socket
    _netfilter: socket.socket | None
    _found: dict[int, Connection] = field(default_factory=dict)
    """By socket inode."""
    _looks: dict[int, int] = field(default_factory=dict)
    """How often the other inodes were asked about."""

    def look(self, *, again: bool = False) -> tuple[Connection, ...]:
        """Those that are there now, by inode; with `again` every socket is asked about once more. NoSuchProcess when
        the process has ended."""
        try:
            fds = sockets(self.pid)
            stat = procfs.read_stat(self.pid)
        except NoSuchProcess:
            stat = None
        if stat is None or stat.start_time != self.start_time or stat.ending:
            raise NoSuchProcess(f"process {self.pid} has ended")
        self._found = {inode: found for inode, found in self._found.items() if inode in fds}
        self._looks = {} if again else {inode: looks for inode, looks in self._looks.items() if inode in fds}
        unknown = {inode for inode in fds if inode not in self._found and self._looks.get(inode, 0) < _LOOKS}
        if unknown:
            self._ask(unknown, fds)
        return tuple(found for _, found in sorted(self._found.items()))

    def _ask(self, unknown: set[int], fds: dict[int, int]) -> None:
        for inode in unknown:
            self._looks[inode] = self._looks.get(inode, 0) + 1
        served = {port for _, port in sock_diag.listeners(self._diag).values()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for inode, draft in sock_diag.inet_sockets(self._diag, family, socket.IPPROTO_TCP, unknown, _CONNECTED):
                local, remote = parse_endpoint(draft["local"]), parse_endpoint(draft["remote"])
                if local is None or remote is None or local[1] in served:
                    continue
                flows = self._on_wire(Flow(*local, *remote))
                self._found[inode] = Connection(inode, fds[inode], draft["local"], draft["remote"], flows)

    def _on_wire(self, flow: Flow) -> tuple[Flow, ...]:
        if self._netfilter is None:
            return (flow,)
        asked = ctnetlink.Tuple(flow.local, flow.local_port, flow.remote, flow.remote_port)
        try:
            entry = ctnetlink.find(self._netfilter, asked)
        except OSError:
            return (flow,)
        sent = entry.reply.reversed() if entry is not None and entry.orig == asked else asked
        if sent == asked:
            return (flow,)
        return flow, Flow(sent.source, sent.source_port, sent.target, sent.target_port)


def of(pid: int) -> Outbound:
    """CannotInspect where the process is not there, or may not be looked at."""
    stat = procfs.read_stat(pid)
    if stat.ending:
        raise NoSuchProcess(f"process {pid} has ended")
    sockets(pid)
    try:
        diag, netfilter = netns.inside(pid, _open)
    except PermissionError:
        # Its packets are wanted next.
        remedy = permission.to_enter(pid, "NET_RAW")
        raise NotPermitted(f"process {pid}: not permitted to enter its network namespace", remedy) from None
    except FileNotFoundError as error:
        raise procfs.explained(pid, error) from None
    except OSError as error:
        raise CannotInspect(f"process {pid}: its sockets cannot be seen: {error.strerror}", "look again") from None
    return Outbound(pid, stat.start_time, diag, netfilter)


def _open() -> tuple[socket.socket, socket.socket | None]:
    diag = sock_diag.open_socket()
    netfilter = None
    if ctnetlink.is_there():
        with suppress(OSError):
            netfilter = ctnetlink.open_socket()
    return diag, netfilter


def sockets(pid: int) -> dict[int, int]:
    """Inode -> first fd of every socket of the process. CannotInspect where its fd table cannot be read."""
    found: dict[int, int] = {}
    try:
        # Looked up from the opened directory: with 20,000 fds a third of the time.
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise procfs.explained(pid, error) from None
    try:
        for number in sorted(map(int, os.listdir(directory))):
            with suppress(OSError):
                link = os.readlink(str(number), dir_fd=directory)
                if link.startswith("socket:["):
                    found.setdefault(int(link[8:-1]), number)
    except OSError as error:
        raise procfs.explained(pid, error) from None
    finally:
        os.close(directory)
    return found
