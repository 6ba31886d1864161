"""The other end of a UNIX socket: its name, its unread bytes, and whether anybody accepted it.

Source: unix_diag (UNIX_DIAG_PEER, _NAME, _RQLEN, _ICONS) in the socket's network namespace. UNIX sockets reach across
namespaces through the file system: then the peer's inode is known, its name and queue are looked up where it lives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stucktrace.collectors import netns, sock_diag
from stucktrace.collectors.peers import CONNECTED, OtherEnd
from stucktrace.collectors.sock_diag import UnixSocket


def _waiting(listener: UnixSocket) -> OtherEnd:
    return OtherEnd(0, CONNECTED, None, in_accept_queue=True, listeners=(listener.inode,), name=listener.draft["local"])


def _accepted(peer: UnixSocket) -> OtherEnd:
    return OtherEnd(peer.inode, CONNECTED, peer.draft.get("receive_bytes"), name=peer.draft["local"])


def find(inodes: Collection[int], table: Mapping[int, UnixSocket]) -> dict[int, OtherEnd]:
    """inode -> its other end, as far as this table of a whole namespace tells."""
    found: dict[int, OtherEnd] = {}
    queued = _waiting_clients(table)
    for inode in inodes:
        socket = table.get(inode)
        if socket is None:
            continue
        if inode in queued:
            found[inode] = _waiting(queued[inode])
        elif socket.peer in table:
            found[inode] = _accepted(table[socket.peer])
        elif socket.peer or socket.draft["state"] == "ESTABLISHED":
            found[inode] = OtherEnd(socket.peer, CONNECTED, None)
    return found


def find_elsewhere(ends: Mapping[int, OtherEnd]) -> dict[int, OtherEnd]:
    """Those of these ends that were made in another network namespace than the target's: with name and queue."""
    left = {inode: end for inode, end in ends.items() if end.unread_bytes is None and not end.in_accept_queue}
    found: dict[int, OtherEnd] = {}
    for _, pid in netns.representatives() if left else ():
        try:
            table = netns.inside(pid, _dump)
        except OSError:
            continue
        queued = _waiting_clients(table)
        for inode, end in left.items():
            if end.inode in table:
                found[inode] = _accepted(table[end.inode])
            elif inode in queued:
                found[inode] = _waiting(queued[inode])
        if len(found) == len(left):
            break
    return found


def _waiting_clients(table: Mapping[int, UnixSocket]) -> dict[int, UnixSocket]:
    """Inode of a client that waits to be accepted -> the listener."""
    return {client: socket for socket in table.values() for client in socket.waiting if client}


def _dump() -> dict[int, UnixSocket]:
    with sock_diag.open_socket() as diag:
        return sock_diag.unix_sockets(diag)
