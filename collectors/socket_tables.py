"""The sockets of one process out of its network namespace's tables, without BPF and without touching the sockets.

sock_diag in the process's namespace (entered where that is allowed), else /proc/PID/net. What no table lists (a socket
that is neither bound nor connected, netlink, packet) is told by the name that sockfs gives it, an xattr of
/proc/PID/fd/N.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from stucktrace.collectors import holders, netns, permission, proc_net, sock_diag, unix_peers
from stucktrace.collectors.addresses import port_of
from stucktrace.collectors.peers import OtherEnd
from stucktrace.collectors.sock_diag import Draft
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
SocketsOf = Callable[[int], Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Table:
    """What one source tells of one process's sockets. Every mapping is by inode."""

    source: str
    """ "iter/task_file", "sock_diag" or "/proc/net"."""
    fds: Mapping[int, tuple[int, ...]]
    drafts: dict[int, Draft]
    unix_ends: Mapping[int, OtherEnd] = field(default_factory=dict)
    """The other ends of connected UNIX sockets, as far as they are known without a further look."""
    served: Collection[int] = ()
    """TCP ports on which the process or a relative of it listens."""
    held: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Relatives that hold the same socket."""
    options_known: bool = False
    """The keepalive settings and timeouts of every socket are among the drafts."""
    missing: tuple[Missing, ...] = ()


def read(pid: int, sockets: Mapping[int, tuple[int, ...]], kin: Mapping[int, Collection[int]]) -> Table:
    """The sockets given as inode -> fds. `kin`: relative -> inodes it holds. CollectorError: no source can be read."""
    if not sockets:
        return Table("sock_diag", {}, {})
    candidates = set(sockets).union(*kin.values())
    try:
        table = netns.inside(pid, lambda: _read_by_diag(sockets, candidates))
    except OSError as error:
        table = _read_by_proc(pid, sockets, candidates, error)
    for inode, fds in sockets.items():
        if inode not in table.drafts:
            table.drafts[inode] = name_socket(pid, fds)
    return replace(table, held=holders.invert(kin, sockets))


def _read_by_diag(sockets: Mapping[int, tuple[int, ...]], candidates: Collection[int]) -> Table:
    """Runs in the target's namespace. `candidates`: sockets that make a port the process's own when they listen."""
    with sock_diag.open_socket() as diag:
        unix = sock_diag.unix_sockets(diag)
        drafts = {inode: dict(unix[inode].draft) for inode in sockets if inode in unix}
        for family, protocol in INET_TABLES:
            # Each dump walks a table of the whole node: stop when every socket is found.
            if len(drafts) == len(sockets):
                break
            drafts.update(sock_diag.inet_sockets(diag, family, protocol, sockets))
        listeners = sock_diag.listeners(diag)
    _add_defaults(drafts, netns.read_defaults())
    served = {port for inode, (_, port) in listeners.items() if inode in candidates}
    return Table("sock_diag", sockets, drafts, unix_peers.find(sockets, unix), served)


def _add_defaults(drafts: Mapping[int, Draft], defaults: netns.Defaults) -> None:
    for draft in drafts.values():
        if draft["protocol"] == "tcp" and draft["state"] not in {"LISTEN", "CLOSE"}:
            draft["retries2"] = defaults.retries2
            draft["syn_retries"] = defaults.syn_retries


def _read_by_proc(pid: int, sockets: Mapping[int, tuple[int, ...]], candidates: Collection[int], why: OSError) -> Table:
    found: dict[int, Draft] = {}
    try:
        for name in ("tcp", "tcp6", "udp", "udp6"):
            try:
                found.update(proc_net.read_inet(pid, name, candidates))
            except FileNotFoundError:
                # No IPv6 in this kernel, unless the process itself is gone.
                if not Path(f"/proc/{pid}/net/dev").exists():
                    raise
        found.update(proc_net.read_unix(pid, sockets))
    except OSError as error:
        raise CollectorError(
            "sockets", f"neither sock_diag nor /proc/{pid}/net can be read ({error.strerror or error})", "run as root"
        ) from None
    because = f"sock_diag in its network namespace: {(why.strerror or str(why)).lower()}"
    remedy = permission.to_enter(pid) if isinstance(why, PermissionError) else "look again"
    if isinstance(why, PermissionError) and (absent := permission.lacking(*permission.FOR_BPF)):
        remedy += f", or {permission.caps(absent)} for the BPF engine"
    served = {port_of(draft["local"]) for draft in found.values() if draft["state"] == "LISTEN"}
    drafts = {inode: draft for inode, draft in found.items() if inode in sockets}
    if netns.inode_of(pid) == netns.own():
        _add_defaults(drafts, netns.read_defaults())
    missing = (Missing("unacknowledged data and ages of sockets", because, remedy),)
    return Table("/proc/net", sockets, drafts, served={port for port in served if port}, missing=missing)


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
