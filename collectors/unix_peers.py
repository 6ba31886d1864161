"""The other end of a UNIX socket: its name, its unread bytes, and whether anybody accepted it.

Source: unix_diag (UNIX_DIAG_PEER, _NAME, _RQLEN, _ICONS) in the socket's network namespace. UNIX sockets reach across
namespaces through the file system: then the peer's inode is known, its name and queue are looked up where it lives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stucktrace.collectors import netns, sock_diag
from stucktrace.collectors.peers import OtherEnd
from stucktrace.collectors.sock_diag import UnixSocket

CONNECTED = "CONNECTED"


def _waiting(listener: UnixSocket) -> OtherEnd:
    return OtherEnd(0, CONNECTED, None, in_accept_queue=True, listeners=(listener.inode,), name=listener.draft["local"])


def _accepted(peer: UnixSocket) -> OtherEnd:
    return OtherEnd(peer.inode, CONNECTED, peer.draft.get("receive_bytes"), name=peer.draft["local"])


def find(inodes: Collection[int], table: Mapping[int, UnixSocket], *, elsewhere: bool) -> dict[int, OtherEnd]:
    """inode -> its peer. With `elsewhere`, a peer in another network namespace is looked up there."""
    found: dict[int, OtherEnd] = {}
    if not any(inode in table for inode in inodes):
        return found
    queued = {client: socket for socket in table.values() for client in socket.waiting if client}
    abroad: list[int] = []
    for inode in inodes:
        socket = table.get(inode)
        if socket is None or not (socket.peer or inode in queued):
            if socket is not None and socket.draft["state"] == "ESTABLISHED":
                abroad.append(inode)
            continue
        listener = queued.get(inode)
        peer = table.get(socket.peer)
        if listener is not None:
            found[inode] = _waiting(listener)
        elif peer is not None:
            found[inode] = _accepted(peer)
        else:
            found[inode] = OtherEnd(socket.peer, CONNECTED, None)
            abroad.append(inode)
    if elsewhere and abroad:
        found.update(_find_abroad(abroad, table))
    return found


def _find_abroad(inodes: Collection[int], table: Mapping[int, UnixSocket]) -> dict[int, OtherEnd]:
    """A peer whose socket was made in another network namespace than the target's."""
    found: dict[int, OtherEnd] = {}
    for _, pid in netns.representatives():
        try:
            other = netns.inside(pid, _dump)
        except OSError:
            continue
        queued = {client: socket for socket in other.values() for client in socket.waiting if client}
        for inode in inodes:
            peer, listener = other.get(table[inode].peer), queued.get(inode)
            if peer is not None:
                found[inode] = _accepted(peer)
            elif listener is not None:
                found[inode] = _waiting(listener)
        if len(found) == len(inodes):
            break
    return found


def _dump() -> dict[int, UnixSocket]:
    with sock_diag.open_socket() as diag:
        return sock_diag.unix_sockets(diag)
