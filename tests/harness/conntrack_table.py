"""Fills the conntrack table of the network namespace it runs in with entries that belong to nobody: `... COUNT`.

They are TCP, established and assured, so that the kernel makes no room by itself (early drop).
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path

NEW, CREATE = 0, 0x600
STATUS, TIMEOUT, PROTOINFO = 3, 7, 4
SEEN_REPLY_ASSURED_CONFIRMED = 1 << 1 | 1 << 2 | 1 << 3
IN_ONE_MESSAGE = 500


def fill(netns: str, count: int) -> None:
    """`count` entries in that namespace."""
    # As a program: it must run in there.
    command = ["ip", "netns", "exec", netns, sys.executable, str(Path(__file__)), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def entry(number: int) -> bytes:
    """One request to make an entry."""
    source, target = struct.pack("!I", (10 << 24) + (number >> 14)), bytes([192, 0, 2, 1])
    port = struct.pack("!H", 1024 + (number & 0x3FFF))

    def one_way(kind: int, one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> bytes:
        ip = attribute(0x8001, attribute(1, one[0]) + attribute(2, other[0]))
        tcp = attribute(0x8002, attribute(1, b"\6") + attribute(2, one[1]) + attribute(3, other[1]))
        return attribute(0x8000 | kind, ip + tcp)

    here, there = (source, port), (target, struct.pack("!H", 80))
    state = attribute(0x8000 | PROTOINFO, attribute(0x8001, attribute(1, b"\3")))
    body = one_way(1, here, there) + one_way(2, there, here) + state
    body += attribute(STATUS, struct.pack("!I", SEEN_REPLY_ASSURED_CONFIRMED)) + attribute(
        TIMEOUT, struct.pack("!I", 3600)
    )
    return struct.pack("=IHHII", 20 + len(body), 1 << 8 | NEW, 1 | CREATE, 0, 0) + struct.pack("!BBH", 2, 0, 0) + body


def main() -> None:
    count = int(sys.argv[1])
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netfilter:
        for first in range(0, count, IN_ONE_MESSAGE):
            netfilter.send(b"".join(map(entry, range(first, min(first + IN_ONE_MESSAGE, count)))))


if __name__ == "__main__":
    main()
