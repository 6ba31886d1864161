"""Ends one TCP connection of another process, and nothing else: its call fails and its library may connect anew.

Source: NETLINK_SOCK_DIAG's SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY, since 4.5) in the target's network namespace, by the
connection's tuple and the kernel's cookie of this very socket: what is queued is thrown away, and the call ends with
ECONNABORTED. Where the kernel has not got it, shutdown(2) on a duplicate of the fd (pidfd_getfd), closed at once: the
call ends with an end of file, but what is queued may still be delivered if the path comes back. Needs CAP_NET_ADMIN, or
for the duplicate ptrace access.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from stucktrace.collectors import netlink, netns, permission, sock_diag
from stucktrace.collectors.addresses import both_ends, parse_endpoint
from stucktrace.collectors.socket_options import SYS_PIDFD_GETFD
from stucktrace.errors import CannotInspect
from stucktrace.facts import SocketFact

SOCK_DESTROY = 21
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOSYS})
GONE = frozenset({errno.ENOENT, errno.ESTALE})
NOBODY = b"\xfe" * 8
"""A cookie that no socket has."""
HEAD = struct.Struct("=BBBxI")
"""struct inet_diag_req_v2 up to its id."""
ID_AT, ID_BYTES = 4, 48
"""Where struct inet_diag_sockid is in struct inet_diag_msg: ports, addresses, interface, cookie."""
T = TypeVar("T")


class Gone(CannotInspect):
    """The connection is not there any more, or is another one."""


def can_destroy(pid: int, connection: SocketFact) -> bool:
    """Whether the kernel has SOCK_DESTROY: it is told to destroy a socket that is not there. CannotInspect: may not."""
    try:
        request = sock_diag.INET_REQUEST.pack(*_wanted(connection), NOBODY)
        _inside(pid, lambda diag: netlink.tell(diag, SOCK_DESTROY, request, within_s=sock_diag.REPLY_S))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        if error.errno not in GONE:
            raise _refused(error, pid) from None
    if permission.lacking("NET_ADMIN"):
        # The kernel asks for it only once it has found the socket.
        raise _refused(PermissionError(errno.EPERM, os.strerror(errno.EPERM)), pid)
    return True


def destroy(pid: int, connection: SocketFact) -> None:
    """Raises Gone where the tuple belongs to another socket by now, CannotInspect where it may not be done."""

    def work(diag: socket.socket) -> None:
        netlink.tell(diag, SOCK_DESTROY, _found(diag, connection), within_s=sock_diag.REPLY_S)

    try:
        _inside(pid, work)
    except OSError as error:
        if error.errno in GONE:
            raise _gone(connection) from None
        raise _refused(error, pid) from None


def shut_down(pid: int, fd: int, connection: SocketFact) -> None:
    """The same through a duplicate of the fd. Raises as `destroy` does."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _refused(error, pid, "SYS_PTRACE") from None
    try:
        duplicate = libc.syscall(ctypes.c_long(SYS_PIDFD_GETFD), pidfd, fd, 0)
        if duplicate < 0:
            raise _refused(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())), pid, "SYS_PTRACE")
        try:
            if os.fstat(duplicate).st_ino != connection.inode:
                raise _gone(connection)
            if libc.shutdown(duplicate, socket.SHUT_RDWR):
                raise _refused(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())), pid, "SYS_PTRACE")
        finally:
            os.close(duplicate)
    finally:
        os.close(pidfd)


def _inside(pid: int, work: Callable[[socket.socket], T]) -> T:
    with netns.inside(pid, sock_diag.open_socket) as diag:
        return work(diag)


def _wanted(connection: SocketFact) -> tuple[Any, ...]:
    """The fields of a request for this tuple, up to the cookie."""
    local, remote = parse_endpoint(connection.local), parse_endpoint(connection.remote)
    if local is None or remote is None:
        raise OSError(errno.EINVAL, "not the tuple of a TCP connection")
    family = socket.AF_INET if len(local[0]) == 4 else socket.AF_INET6
    ports = (port.to_bytes(2, "big") for _, port in (local, remote))
    return family, socket.IPPROTO_TCP, 0, 0xFFF, *ports, local[0], remote[0], 0


def _found(diag: socket.socket, connection: SocketFact) -> bytes:
    """A request for the socket with this inode, by the kernel's own word: with its cookie, and with the interface that
    it is bound to, without which it would not be found again."""
    family, *rest = _wanted(connection)
    # A dual-stack socket that talks IPv4 is listed with the IPv6 ones.
    for listed in dict.fromkeys((family, socket.AF_INET6)):
        request = sock_diag.INET_REQUEST.pack(listed, *rest[:-3], b"", b"", 0, sock_diag.NO_COOKIE)
        asked = netlink.ask(diag, sock_diag.SOCK_DIAG_BY_FAMILY, request, dump=True, within_s=sock_diag.REPLY_S)
        # All of it: what is left unread would be taken for the answer to the next request.
        for body in tuple(asked):
            fields = sock_diag.INET_MESSAGE.unpack_from(body)
            local_port, remote_port = map(socket.ntohs, fields[4:6])
            ends = both_ends(fields[0], fields[6], local_port, fields[7], remote_port)
            if fields[15] == connection.inode and ends == (connection.local, connection.remote):
                return HEAD.pack(fields[0], socket.IPPROTO_TCP, 0, 0xFFF) + body[ID_AT : ID_AT + ID_BYTES]
    raise OSError(errno.ENOENT, "no such connection")


def _gone(connection: SocketFact) -> Gone:
    return Gone(
        f"the connection to {connection.remote} is not in the process's network namespace: it ended by itself "
        "meanwhile, or was made in another one",
        "nothing was done; look again",
    )


def _refused(error: OSError, pid: int, capability: str = "NET_ADMIN") -> CannotInspect:
    remedy = permission.to_enter(pid, capability) if isinstance(error, PermissionError) else "look again"
    return CannotInspect(f"the connection cannot be ended: {(error.strerror or str(error)).lower()}", remedy)
