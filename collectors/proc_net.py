"""Sockets of a process's network namespace as /proc/PID/net tells: tuples, states, queues, the armed timer.

The last resort where sock_diag cannot be opened in that namespace: any process may read it, also across namespaces, but
it knows neither unacknowledged segments nor ages, and reading it walks the whole node's table (10-70 ms a file).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Iterator
from contextlib import suppress

from stucktrace.collectors.addresses import endpoint, remote_endpoint, tcp_state
from stucktrace.collectors.sock_diag import LISTEN, TIMERS, UNIX_TYPES, Draft, keepalive_by_timer, unix_state

TICKS = os.sysconf("SC_CLK_TCK")
UNIX_LISTENS = 0x10000
"""__SO_ACCEPTCON in the Flags column."""


def read_inet(pid: int, name: str, inodes: Container[int]) -> Iterator[tuple[int, Draft]]:
    """`name` is "tcp", "tcp6", "udp" or "udp6". OSError when the file cannot be read."""
    with open(f"/proc/{pid}/net/{name}") as file:
        next(file, None)
        yield from parse_inet(file, name, inodes)


def parse_inet(lines: Iterator[str], name: str, inodes: Container[int]) -> Iterator[tuple[int, Draft]]:
    """A line that makes no sense is left out."""
    for line in lines:
        words = line.split()
        with suppress(ValueError, IndexError, struct.error):
            if (inode := int(words[9])) in inodes:
                yield inode, _inet(words, name)


def _inet(words: list[str], name: str) -> Draft:
    """Raises ValueError, IndexError and struct.error."""
    tcp = name.startswith("tcp")
    state = int(words[3], 16)
    sent, received = (int(part, 16) for part in words[4].split(":"))
    draft: Draft = {
        "family": "inet6" if name.endswith("6") else "inet",
        "protocol": "tcp" if tcp else "udp",
        "state": tcp_state(state) if tcp else "",
        "local": endpoint(*parse_endpoint(words[1])),
        "remote": remote_endpoint(*parse_endpoint(words[2])),
        "receive_bytes": received,
    }
    if not tcp or state != LISTEN:
        draft["send_bytes"] = sent
    if tcp and state != LISTEN:
        timer, _, expires = words[5].partition(":")
        number = int(timer, 16)
        draft["timer"] = TIMERS[number] if number < len(TIMERS) else ""
        if number:
            draft["timer_expires_s"] = int(expires, 16) / TICKS
        draft["retransmits"] = int(words[6], 16)
        draft["keepalive"] = keepalive_by_timer(draft["timer"], draft["state"], int(words[8]))
        if len(words) > 12:
            draft["rto_s"] = int(words[12]) / TICKS
    return draft


def parse_endpoint(text: str) -> tuple[bytes, int]:
    """ "0100007F:1F90" -> (address in network order, port): each 32-bit group is printed in host order.

    Raises ValueError and struct.error.
    """
    address, _, port = text.partition(":")
    groups = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    return struct.pack(f"={len(groups)}I", *groups), int(port, 16)


def read_unix(pid: int, inodes: Container[int]) -> Iterator[tuple[int, Draft]]:
    """Without peers and queues: this file has neither."""
    with open(f"/proc/{pid}/net/unix", errors="replace") as file:
        next(file, None)
        yield from parse_unix(file, inodes)


def parse_unix(lines: Iterator[str], inodes: Container[int]) -> Iterator[tuple[int, Draft]]:
    """A line that makes no sense is left out."""
    for line in lines:
        words = line.rstrip("\n").split(None, 7)
        with suppress(ValueError, IndexError):
            if (inode := int(words[6])) in inodes:
                yield inode, _unix(words)


def _unix(words: list[str]) -> Draft:
    # St is enum socket_state here: 3 is SS_CONNECTED.
    listens = int(words[3], 16) & UNIX_LISTENS
    state = LISTEN if listens else 1 if int(words[5], 16) == 3 else 7
    return {
        "family": "unix",
        "protocol": UNIX_TYPES.get(int(words[4], 16), "other"),
        "state": unix_state(state, False),
        "local": words[7] if len(words) > 7 else "",
    }
