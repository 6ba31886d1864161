"""How socket addresses are written: "10.0.0.1:5672", "[fe80::1]:80", "@abstract". No I/O.

An IPv4 peer of a dual-stack socket (::ffff:10.0.0.1) is written as the IPv4 address that it is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

V4_MAPPED = bytes(10) + b"\xff\xff"
TCP_STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "CLOSE",
)
"""Kernel number -> name. 13 is TCP_BOUND_INACTIVE, which is CLOSE to a program."""


def tcp_state(number: int) -> str:
    return TCP_STATES[number] if number < len(TCP_STATES) else ""


def bare(address: bytes) -> bytes:
    """The 4 or 16 bytes that tell the address: a v4-mapped one becomes its 4."""
    return address[12:] if len(address) == 16 and address[:12] == V4_MAPPED else address


def ip_text(address: bytes) -> str:
    address = bare(address)
    if len(address) == 4:
        return ".".join(map(str, address))
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]"


def endpoint(address: bytes, port: int) -> str:
    """ "address:port"; for an address of 4 or 16 bytes in network order."""
    return f"{ip_text(address)}:{port}"


def remote_endpoint(address: bytes, port: int) -> str:
    """As `endpoint`, but "" where nobody is at the other end (listening, or an unconnected UDP socket)."""
    return endpoint(address, port) if port or any(bare(address)) else ""


def both_ends(
    family: int, local: Iterable[int], local_port: int, remote: Iterable[int], remote_port: int
) -> tuple[str, str]:
    """(local, remote) of a TCP socket as BPF records have it: 16 bytes an address, the first four of them for IPv4."""
    size = 4 if family == socket.AF_INET else 16
    return endpoint(bytes(local)[:size], local_port), remote_endpoint(bytes(remote)[:size], remote_port)


def port_of(text: str) -> int | None:
    """The port of an "address:port", None for a UNIX path or an empty string."""
    port = text.rpartition(":")[2]
    return int(port) if port.isdecimal() else None


def unix_name(raw: bytes) -> str:
    """sun_path as people write it: "@name" for abstract ones."""
    if not raw:
        return ""
    if raw[0] == 0:
        return "@" + raw[1:].decode(errors="replace").replace("\0", "@")
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def parse_endpoint(text: str) -> tuple[bytes, int] | None:
    """(address in network order, port) of an `endpoint`; None for anything else."""
    address, _, port = text.rpartition(":")
    if not port.isdecimal() or len(port) > len("65535"):
        return None
    try:
        if address.startswith("["):
            return bare(socket.inet_pton(socket.AF_INET6, address[1:-1])), int(port)
        return socket.inet_pton(socket.AF_INET, address), int(port)
    except (OSError, ValueError):
        return None


def is_loopback(address: bytes) -> bool:
    return address[:1] == b"\x7f" if len(address) == 4 else address == bytes(15) + b"\x01"


def is_any(address: bytes) -> bool:
    return not any(address)
