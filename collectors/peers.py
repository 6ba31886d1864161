"""The TCP socket at the other end of a connection when it lives on this node, in any network namespace.

Without BPF: the reverse tuple looked up by sock_diag in the socket's own namespace, then in every other one that may
be entered. It answers for loopback, veth and own addresses; a connection behind NAT has another tuple, so no answer.
A tuple of loopback addresses means something else in every namespace: it is looked up in the socket's own one only.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from stucktrace.collectors import netns, sock_diag
from stucktrace.collectors.addresses import bare, is_any, is_loopback

CONNECTED = "CONNECTED"
"""State of the other end of a UNIX socket."""
NOT_ACCEPTED = {"ESTABLISHED", "CLOSE_WAIT", "SYN_RECV"}
"""A socket in these states that no process holds waits in an accept queue; in the others its holder closed it."""


@dataclass(frozen=True)
class Tuple4:
    """A TCP connection as one end sees it; addresses of 4 or 16 bytes, v4-mapped ones as 4."""

    local: bytes
    local_port: int
    remote: bytes
    remote_port: int

    @property
    def confined(self) -> bool:
        """True where the other end can only be in the same network namespace."""
        return is_loopback(self.local) or is_loopback(self.remote)


@dataclass(frozen=True)
class OtherEnd:
    """The socket that a connection leads to."""

    inode: int
    """0 when no process holds it."""
    state: str
    unread_bytes: int | None
    in_accept_queue: bool = False
    listeners: tuple[int, ...] = ()
    """Inodes of the listening sockets that may accept it."""
    name: str = ""
    """Its own address, for a UNIX socket."""


def find(pid: int, wanted: Mapping[int, Tuple4], *, elsewhere: bool = True) -> dict[int, OtherEnd]:
    """inode of one of the target's sockets -> its peer, for those whose peer was found. Never raises."""
    left = dict(wanted)
    found: dict[int, OtherEnd] = {}
    own = netns.inode_of(pid)
    if left:
        _look(pid, left, found)
    left = {inode: tuple_ for inode, tuple_ in left.items() if not tuple_.confined}
    if elsewhere and left:
        for inode, inhabitant in netns.representatives():
            if inode != own and left:
                _look(inhabitant, left, found)
    return found


def _look(pid: int, left: dict[int, Tuple4], found: dict[int, OtherEnd]) -> None:
    """Moves what is found in the namespace of `pid` from `left` to `found`."""
    try:
        peers = netns.inside(pid, lambda: _look_up(left))
    except OSError:
        return
    for inode, peer in peers.items():
        found[inode] = peer
        del left[inode]


def _look_up(wanted: Mapping[int, Tuple4]) -> dict[int, OtherEnd]:
    """Runs in the namespace that is searched."""
    found = {}
    with sock_diag.open_socket() as diag:
        for inode, end in wanted.items():
            try:
                draft = sock_diag.find_tcp(diag, end.remote, end.remote_port, end.local, end.local_port)
            except OSError:
                continue
            if draft is None or draft["inode"] == inode:
                continue
            waits = draft["inode"] == 0 and draft["state"] in NOT_ACCEPTED
            listeners = _listeners(diag, end.remote, end.remote_port) if waits else ()
            found[inode] = OtherEnd(draft["inode"], draft["state"], draft["receive_bytes"], waits, listeners)
    return found


def _listeners(diag: socket.socket, address: bytes, port: int) -> tuple[int, ...]:
    """Inodes of the sockets that listen on this address and port."""
    return tuple(
        inode
        for inode, (local, local_port) in sock_diag.listeners(diag).items()
        if local_port == port and (is_any(local) or bare(local) == address)
    )
