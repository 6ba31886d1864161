"""Sockets of one network namespace as sock_diag tells: tuples, timers, queues and TCP_INFO, without touching them.

Source: NETLINK_SOCK_DIAG (inet_diag, unix_diag), opened in the namespace in question. It sees no socket that is neither
bound nor connected, and of SO_KEEPALIVE only what the armed timer shows: idle and no timer means off.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stucktrace.collectors import netlink
from stucktrace.collectors.addresses import bare, endpoint, remote_endpoint, tcp_state, unix_name
from stucktrace.collectors.netlink import attributes
from stucktrace.facts import Keepalive

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_INFO = 2
UNIX_DIAG_NAME, UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_RQLEN = 0, 2, 3, 4
UNIX_SHOW = 0x01 | 0x04 | 0x08 | 0x10
"""UDIAG_SHOW_NAME, _PEER, _ICONS, _RQLEN."""

ESTABLISHED, SYN_SENT, LISTEN = 1, 2, 10
STATES_WITH_INODE = 0xFFF & ~(1 << 3) & ~(1 << 6)
"""All but SYN_RECV and TIME_WAIT: those belong to nobody's fd."""
TIMERS = ("", "retransmit", "keepalive", "time-wait", "persist")
UNIX_TYPES = {1: "unix-stream", 2: "unix-dgram", 5: "unix-seqpacket"}

REPLY_S = 5.0

INET_REQUEST = struct.Struct("=BBBxI2s2s16s16sI8s")
INET_MESSAGE = struct.Struct("=BBBBHH16s16sIIIIIIII")
UNIX_REQUEST = struct.Struct("=BBHIII8s")
UNIX_MESSAGE = struct.Struct("=BBBxIII")
NO_COOKIE = b"\xff" * 8

Draft = dict[str, Any]
"""The fields of a SocketFact in the making, without `fds` and `inode`."""


def open_socket() -> socket.socket:
    """A sock_diag socket in the calling thread's network namespace; it stays there. OSError where there is none."""
    return netlink.open_socket(NETLINK_SOCK_DIAG, REPLY_S)


def _ask(diag: socket.socket, body: bytes, *, dump: bool) -> Iterator[bytes]:
    return netlink.ask(diag, SOCK_DIAG_BY_FAMILY, body, dump=dump, within_s=REPLY_S)


def _inet_request(
    family: int, protocol: int, states: int, tuple_: tuple[bytes, int, bytes, int] | None, *, info: bool = True
) -> bytes:
    source, source_port, target, target_port = tuple_ or (b"", 0, b"", 0)
    extensions = 1 << (INET_DIAG_INFO - 1) if protocol == socket.IPPROTO_TCP and info else 0
    return INET_REQUEST.pack(
        family,
        protocol,
        extensions,
        states,
        source_port.to_bytes(2, "big"),
        target_port.to_bytes(2, "big"),
        source,
        target,
        0,
        NO_COOKIE,
    )


def inet_sockets(
    diag: socket.socket, family: int, protocol: int, inodes: Container[int], states: int = STATES_WITH_INODE
) -> Iterator[tuple[int, Draft]]:
    """(inode, fields) of the TCP or UDP sockets in `inodes`. The others are skipped before anything is parsed."""
    for body in _ask(diag, _inet_request(family, protocol, states, None), dump=True):
        if len(body) >= INET_MESSAGE.size and _inode(body) in inodes:
            yield _parse_inet(body, protocol)


def _inode(body: bytes) -> int:
    """The last field of the message."""
    return int.from_bytes(body[INET_MESSAGE.size - 4 : INET_MESSAGE.size], sys.byteorder)


def connections(diag: socket.socket) -> Iterator[tuple[int, tuple[bytes, int, bytes, int]]]:
    """(inode, tuple) of every established TCP connection of the namespace, and no more: it is asked often."""
    for family in (socket.AF_INET, socket.AF_INET6):
        size = 4 if family == socket.AF_INET else 16
        request = _inet_request(family, socket.IPPROTO_TCP, 1 << ESTABLISHED, None, info=False)
        for body in _ask(diag, request, dump=True):
            if len(body) < INET_MESSAGE.size:
                continue
            fields = INET_MESSAGE.unpack_from(body)
            source, target = bare(fields[6][:size]), bare(fields[7][:size])
            yield fields[15], (source, socket.ntohs(fields[4]), target, socket.ntohs(fields[5]))


def find_tcp(diag: socket.socket, local: bytes, local_port: int, remote: bytes, remote_port: int) -> Draft | None:
    """The connected TCP socket with this very tuple; its "inode" is 0 while it waits to be accepted.

    A dual-stack socket that talks IPv4 is found under its IPv4 tuple, so give `bare` addresses.
    """
    family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
    request = _inet_request(family, socket.IPPROTO_TCP, 0xFFF, (local, local_port, remote, remote_port))
    for body in _ask(diag, request, dump=False):
        if len(body) < INET_MESSAGE.size:
            continue
        inode, draft = _parse_inet(body, socket.IPPROTO_TCP)
        # The kernel falls back to the listener of that port, and knows finished connections too.
        if draft["state"] not in {"LISTEN", "TIME_WAIT", "CLOSE"}:
            return {**draft, "inode": inode}
    return None


def _parse_inet(body: bytes, protocol: int) -> tuple[int, Draft]:
    (family, state, timer, retransmits, source_port, target_port, source, target) = INET_MESSAGE.unpack_from(body)[:8]
    (_, _, _, expires_ms, receive_bytes, send_bytes, _, inode) = INET_MESSAGE.unpack_from(body)[8:]
    size = 4 if family == socket.AF_INET else 16
    # Ports are the only fields in network order.
    source_port, target_port = socket.ntohs(source_port), socket.ntohs(target_port)
    tcp = protocol == socket.IPPROTO_TCP
    draft: Draft = {
        "family": "inet" if family == socket.AF_INET else "inet6",
        "protocol": "tcp" if tcp else "udp",
        "state": tcp_state(state) if tcp else "",
        "local": endpoint(source[:size], source_port),
        "remote": remote_endpoint(target[:size], target_port),
        "receive_bytes": receive_bytes,
    }
    if not tcp:
        draft["send_bytes"] = send_bytes
    elif state == LISTEN:
        draft["backlog"] = send_bytes
    else:
        draft["send_bytes"] = send_bytes
        draft["timer"] = TIMERS[timer] if timer < len(TIMERS) else ""
        if timer:
            draft["timer_expires_s"] = expires_ms / 1000
        info = dict(attributes(body, INET_MESSAGE.size)).get(INET_DIAG_INFO, b"")
        if len(info) < TCP_INFO.size:
            # Without TCP_INFO: what the message itself tells.
            if draft["timer"] == "retransmit":
                draft["retransmits"] = retransmits
            draft["keepalive"] = keepalive_by_timer(draft["timer"], draft["state"], retransmits if timer == 2 else 0)
        else:
            draft.update(parse_tcp_info(info))
            draft["keepalive"] = keepalive_by_timer(draft["timer"], draft["state"], info[3])
    return inode, draft


def keepalive_by_timer(timer: str, state: str, probes: int) -> Keepalive | None:
    """What the armed timer tells of SO_KEEPALIVE: the timer of an idle established connection is its keepalive's."""
    if timer == "keepalive":
        return Keepalive(True, None, None, None, probes)
    if timer == "" and state in {"ESTABLISHED", "CLOSE_WAIT"}:
        return Keepalive(False, None, None, None, 0)
    return None


TCP_INFO = struct.Struct("=BBBBBBBx IIII IIIII IIII")


def parse_tcp_info(info: bytes) -> Draft:
    """Fields of a SocketFact out of struct tcp_info, as far as this kernel's goes."""
    values = TCP_INFO.unpack_from(info)
    state, retransmits, backoff = values[0], values[2], values[4]
    rto_us, unacked = values[7], values[11]
    last_send_ms, _, last_receive_ms, last_ack_ms = values[16:20]
    draft: Draft = {"unacked": unacked, "retransmits": retransmits, "backoff": backoff, "rto_s": rto_us / 1_000_000}
    if state != SYN_SENT:
        # Before the handshake is done the kernel's time stamps are still zero.
        draft["last_send_s"] = last_send_ms / 1000
        draft["last_receive_s"] = last_receive_ms / 1000
        draft["last_ack_s"] = last_ack_ms / 1000
    if len(info) >= 136:
        draft["bytes_acked"], draft["bytes_received"] = struct.unpack_from("=QQ", info, 120)
    if len(info) >= 208:
        (draft["bytes_sent"],) = struct.unpack_from("=Q", info, 200)
    if len(info) >= 232:
        (draft["send_window_bytes"],) = struct.unpack_from("=I", info, 228)
    return draft


def listeners(diag: socket.socket) -> Mapping[int, tuple[bytes, int]]:
    """inode -> (address, port) of every listening TCP socket of the namespace."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _inet_request(family, socket.IPPROTO_TCP, 1 << LISTEN, None)
        for body in _ask(diag, request, dump=True):
            if len(body) < INET_MESSAGE.size:
                continue
            fields = INET_MESSAGE.unpack_from(body)
            found[fields[15]] = (bare(fields[6][: 4 if fields[0] == socket.AF_INET else 16]), socket.ntohs(fields[4]))
    return found


@dataclass(frozen=True)
class UnixSocket:
    inode: int
    peer: int
    """Inode of the other end; 0: nobody is there, or nobody accepted it yet."""
    waiting: tuple[int, ...]
    """Of a listening socket: inodes of the clients that wait to be accepted."""
    draft: Draft


def unix_sockets(diag: socket.socket) -> dict[int, UnixSocket]:
    """inode -> every UNIX socket of the namespace."""
    request = UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, UNIX_SHOW, NO_COOKIE)
    found = {}
    for body in _ask(diag, request, dump=True):
        if len(body) < UNIX_MESSAGE.size:
            continue
        _, kind, state, inode, _, _ = UNIX_MESSAGE.unpack_from(body)
        known = dict(attributes(body, UNIX_MESSAGE.size))
        peer = int.from_bytes(known.get(UNIX_DIAG_PEER, b""), sys.byteorder)
        waiting = known.get(UNIX_DIAG_ICONS, b"")
        draft: Draft = {
            "family": "unix",
            "protocol": UNIX_TYPES.get(kind, "other"),
            "state": unix_state(state, bool(peer)),
            "local": unix_name(known.get(UNIX_DIAG_NAME, b"")),
        }
        if len(known.get(UNIX_DIAG_RQLEN, b"")) >= 8:
            draft["receive_bytes"], other = struct.unpack_from("=II", known[UNIX_DIAG_RQLEN])
            draft["backlog" if state == LISTEN else "send_bytes"] = other
        found[inode] = UnixSocket(inode, peer, struct.unpack_from(f"={len(waiting) // 4}I", waiting), draft)
    return found


def unix_state(state: int, has_peer: bool) -> str:
    """The kernel keeps TCP's numbers for UNIX sockets; a connected datagram socket stays in CLOSE but has a peer."""
    if state == LISTEN:
        return "LISTEN"
    return "ESTABLISHED" if state == ESTABLISHED or has_peer else ""
