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
from collections.abc import Callable
from typing import TypeVar

from stucktrace.collectors import netlink, netns, sock_diag
from stucktrace.collectors.addresses import parse_endpoint
from stucktrace.collectors.socket_options import SYS_PIDFD_GETFD
from stucktrace.errors import CannotInspect
from stucktrace.facts import SocketFact

SOCK_DESTROY = 21
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOSYS})
GONE = frozenset({errno.ENOENT, errno.ESTALE})
NOBODY = b"\xfe" * 8
"""A cookie that no socket has."""
COOKIE_AT = 4 + 4 + 32 + 4
"""In struct inet_diag_msg: after four bytes, the ports, the addresses and the interface."""
T = TypeVar("T")


class Gone(CannotInspect):
    """The connection is not there any more, or is another one."""


def can_destroy(pid: int, connection: SocketFact) -> bool:
    """Whether the kernel has SOCK_DESTROY: it is told to destroy a socket that is not there. CannotInspect: may not."""
    try:
        _inside(pid, lambda diag: _destroy(diag, connection, NOBODY))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        if error.errno not in GONE:
            raise _refused(error) from None
    return True


def destroy(pid: int, connection: SocketFact) -> None:
    """Raises Gone where the tuple belongs to another socket by now, CannotInspect where it may not be done."""

    def work(diag: socket.socket) -> None:
        inode, cookie = _cookie(diag, connection)
        if inode != connection.inode:
            raise OSError(errno.ENOENT, "another socket")
        _destroy(diag, connection, cookie)

    try:
        _inside(pid, work)
    except OSError as error:
        if error.errno in GONE:
            raise _gone(connection) from None
        raise _refused(error) from None


def shut_down(pid: int, fd: int, connection: SocketFact) -> None:
    """The same through a duplicate of the fd. Raises as `destroy` does."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _refused(error) from None
    try:
        duplicate = libc.syscall(ctypes.c_long(SYS_PIDFD_GETFD), pidfd, fd, 0)
        if duplicate < 0:
            raise _refused(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
        try:
            if os.fstat(duplicate).st_ino != connection.inode:
                raise _gone(connection)
            if libc.shutdown(duplicate, socket.SHUT_RDWR):
                raise _refused(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
        finally:
            os.close(duplicate)
    finally:
        os.close(pidfd)


def _inside(pid: int, work: Callable[[socket.socket], T]) -> T:
    with netns.inside(pid, sock_diag.open_socket) as diag:
        return work(diag)


def _request(connection: SocketFact, cookie: bytes) -> bytes:
    local, remote = parse_endpoint(connection.local), parse_endpoint(connection.remote)
    if local is None or remote is None:
        raise OSError(errno.EINVAL, "not the tuple of a TCP connection")
    family = socket.AF_INET if len(local[0]) == 4 else socket.AF_INET6
    return sock_diag.INET_REQUEST.pack(
        family,
        socket.IPPROTO_TCP,
        0,
        0xFFF,
        local[1].to_bytes(2, "big"),
        remote[1].to_bytes(2, "big"),
        local[0],
        remote[0],
        0,
        cookie,
    )


def _cookie(diag: socket.socket, connection: SocketFact) -> tuple[int, bytes]:
    """(inode, cookie) of the socket that has this tuple."""
    request = _request(connection, sock_diag.NO_COOKIE)
    for body in netlink.ask(diag, sock_diag.SOCK_DIAG_BY_FAMILY, request, dump=False, within_s=sock_diag.REPLY_S):
        fields = sock_diag.INET_MESSAGE.unpack_from(body)
        return fields[15], body[COOKIE_AT : COOKIE_AT + 8]
    raise OSError(errno.ENOENT, "no such connection")


def _destroy(diag: socket.socket, connection: SocketFact, cookie: bytes) -> None:
    netlink.tell(diag, SOCK_DESTROY, _request(connection, cookie), within_s=sock_diag.REPLY_S)


def _gone(connection: SocketFact) -> Gone:
    return Gone(f"the connection to {connection.remote} ended by itself in the meantime", "look again")


def _refused(error: OSError) -> CannotInspect:
    return CannotInspect(
        f"the connection could not be ended: {error.strerror or error}",
        "CAP_NET_ADMIN and CAP_SYS_ADMIN end a connection in the network namespace of another process",
    )
