"""Netlink's wire: one question, the messages that answer it, their attributes. Knows no subsystem.

Source: NETLINK_* sockets (`struct nlmsghdr`, `struct nlattr`, host order). An answer is read until the kernel says that
it is done, within a deadline; what is cut off or says a length that cannot be ends the message that it stands in.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
NLA_TYPE = 0x3FFF

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
CODE = struct.Struct("=i")
RECEIVE_BYTES = 1 << 18
"""More than the kernel puts into one datagram."""


def open_socket(protocol: int, timeout_s: float) -> socket.socket:
    """In the calling thread's network namespace, where it stays. OSError where the kernel has no such protocol."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    netlink.settimeout(timeout_s)
    return netlink


def ask(netlink: socket.socket, kind: int, body: bytes, *, dump: bool, within_s: float) -> Iterator[bytes]:
    """The body of each answer. OSError as the kernel says it, ENOENT (no such thing) as an empty answer."""
    flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
    netlink.send(HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body)
    until = time.monotonic() + within_s
    while True:
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, "the kernel sends more than could be read in time")
        for answer, content in messages(netlink.recv(RECEIVE_BYTES)):
            if answer in (NLMSG_DONE, NLMSG_ERROR):
                _raise(content)
                return
            yield content
        if not dump:
            return


def tell(netlink: socket.socket, kind: int, body: bytes, *, within_s: float) -> None:
    """A command that is answered with its success alone. OSError as the kernel says it."""
    netlink.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body)
    netlink.settimeout(within_s)
    for answer, content in messages(netlink.recv(RECEIVE_BYTES)):
        if answer == NLMSG_ERROR and len(content) >= CODE.size:
            code = -CODE.unpack_from(content)[0]
            if code:
                raise OSError(code, os.strerror(code))
            return
    raise OSError(errno.EPROTO, "the kernel did not say whether it was done")


def _raise(content: bytes) -> None:
    """What ends an answer carries 0, or a negative errno."""
    code = -CODE.unpack_from(content)[0] if len(content) >= CODE.size else 0
    if code > 0 and code != errno.ENOENT:
        raise OSError(code, os.strerror(code))


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message of a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            return
        yield kind, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute from `offset` on, nested ones as they are."""
    while offset + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, offset)
        if length < ATTRIBUTE.size or offset + length > len(body):
            return
        yield kind & NLA_TYPE, body[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
