"""The sockets of one process out of its network namespace's tables, without BPF and without touching the sockets.

sock_diag in the process's namespace (entered where that is allowed), else /proc/PID/net. What no table lists (a socket
that is neither bound nor connected, netlink, packet) is told by the name that sockfs gives it, an xattr of
/proc/PID/fd/N.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stucktrace.collectors import netns, proc_net, sock_diag
from stucktrace.collectors.sock_diag import Draft, UnixSocket
from stucktrace.errors import CollectorError
from stucktrace.facts import Missing

PROTOCOL_NAMES: Mapping[str, tuple[str, str, str]] = {
    "TCP": ("inet", "tcp", "CLOSE"),
    "TCPV6": ("inet6", "tcp", "CLOSE"),
    "UDP": ("inet", "udp", ""),
    "UDPV6": ("inet6", "udp", ""),
    "RAW": ("inet", "raw", ""),
    "RAWV6": ("inet6", "raw", ""),
    "UNIX": ("unix", "unix-dgram", ""),
    "UNIX-STREAM": ("unix", "unix-stream", ""),
    "NETLINK": ("other", "netlink", ""),
}
"""Name of the struct proto -> (family, protocol, state). A TCP socket that no table lists is not even bound."""
INET_TABLES = (
    (socket.AF_INET, socket.IPPROTO_TCP),
    (socket.AF_INET6, socket.IPPROTO_TCP),
    (socket.AF_INET, socket.IPPROTO_UDP),
    (socket.AF_INET6, socket.IPPROTO_UDP),
)


@dataclass(frozen=True)
class Table:
    source: str
    """ "sock_diag" or "/proc/net"."""
    drafts: dict[int, Draft]
    unix: Mapping[int, UnixSocket] = field(default_factory=dict)
    """Every UNIX socket of the namespace, by inode."""
    listeners: Mapping[int, tuple[bytes, int]] = field(default_factory=dict)
    """Every listening TCP socket of the namespace: inode -> (address, port)."""
    defaults: netns.Defaults = field(default_factory=netns.Defaults)
    missing: tuple[Missing, ...] = ()


def read(pid: int, sockets: Mapping[int, Collection[int]]) -> Table:
    """The sockets given as inode -> fds. CollectorError when neither source can be read."""
    if not sockets:
        return Table("sock_diag", {})
    try:
        table = netns.inside(pid, lambda: _read_by_diag(sockets))
    except OSError as error:
        table = _read_by_proc(pid, sockets, error)
    for inode, fds in sockets.items():
        if inode not in table.drafts:
            table.drafts[inode] = name_socket(pid, fds)
    return table


def _read_by_diag(sockets: Collection[int]) -> Table:
    """Runs in the target's namespace."""
    with sock_diag.open_socket() as diag:
        unix = sock_diag.unix_sockets(diag)
        drafts = {inode: dict(unix[inode].draft) for inode in sockets if inode in unix}
        for family, protocol in INET_TABLES:
            # Each dump walks a table of the whole node: stop when every socket is found.
            if len(drafts) == len(sockets):
                break
            drafts.update(sock_diag.inet_sockets(diag, family, protocol, sockets))
        return Table("sock_diag", drafts, unix, sock_diag.listeners(diag), netns.read_defaults())


def _read_by_proc(pid: int, sockets: Collection[int], why: OSError) -> Table:
    drafts: dict[int, Draft] = {}
    try:
        for name in ("tcp", "tcp6", "udp", "udp6"):
            try:
                drafts.update(proc_net.read_inet(pid, name, sockets))
            except FileNotFoundError:
                # No IPv6 in this kernel, unless the process itself is gone.
                if not Path(f"/proc/{pid}/net/dev").exists():
                    raise
        drafts.update(proc_net.read_unix(pid, sockets))
    except OSError as error:
        raise CollectorError(
            "sockets", f"neither sock_diag nor /proc/{pid}/net can be read ({error.strerror or error})", "run as root"
        ) from None
    because = f"sock_diag in its network namespace: {(why.strerror or str(why)).lower()}"
    remedy = "CAP_SYS_ADMIN, or the BPF engine with CAP_BPF and CAP_PERFMON"
    return Table("/proc/net", drafts, missing=(Missing("unacknowledged data and ages of sockets", because, remedy),))


def name_socket(pid: int, fds: Iterable[int]) -> Draft:
    """What sockfs itself calls the socket; "other" when even that cannot be read."""
    name = ""
    for fd in fds:
        try:
            name = os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0").decode(errors="replace")
            break
        except OSError:
            continue
    family, protocol, state = PROTOCOL_NAMES.get(name.upper(), ("other", "other", ""))
    return {"family": family, "protocol": protocol, "state": state}
