"""A network namespace's conntrack table as /proc shows it: for those who may not ask netfilter there, or not go there.

Source: /proc/PID/net/nf_conntrack (CONFIG_NF_CONNTRACK_PROCFS; root, or DAC_READ_SEARCH) and
/proc/PID/net/stat/nf_conntrack (anybody), of a process that lives in the namespace. Neither needs NET_ADMIN or
SYS_ADMIN. The price: the table is read as a whole, so a large one is not; rules and events are not seen.
When it is wrong: most kernels find each next page of it by the number of entries before (slowly, too), so one that goes
meanwhile can hide one that stays. What is not in it once may be in it all the same.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stucktrace.collectors.ctnetlink import ASSURED, HARDWARE_OFFLOAD, OFFLOAD, SEEN_REPLY, TCP_STATES, Entry, Tuple
from stucktrace.facts import ConntrackFact

MOST_ENTRIES = 50_000
"""About 0.1 s where the kernel remembers where a page ended."""
READ_S = 0.5
"""Where it does not, the time grows with the square of the entries."""
MAXIMUM = Path("/proc/sys/net/netfilter/nf_conntrack_max")
COUNTERS = ("found", "invalid", "insert_failed", "drop", "early_drop", "search_restart")
_ENDS = re.compile(rb"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+) ")
_TCP = re.compile(rb"ipv[46] +\d+ tcp +6 (?:(\d+) )?([A-Z_0-9]+ )?src=")
_ZONE = re.compile(rb" zone=(\d+) ")
_FLAGS = {b"[ASSURED]": ASSURED, b"[OFFLOAD]": OFFLOAD, b"[HW_OFFLOAD]": HARDWARE_OFFLOAD}


def from_address(pid: int, address: bytes) -> tuple[Entry, ...]:
    """TCP entries of every zone in which `address` opened the flow or answers it, in the namespace of `pid`.

    OSError where the table may not be read, is not shown (FileNotFoundError), is too large or takes too long.
    """
    count = counters(pid).get("entries", 0)
    if not count:
        return ()
    if count > MOST_ENTRIES:
        raise OSError(f"it has {count} entries, too many to read them all")
    found = []
    # As the kernel writes it: IPv6 without any abbreviation.
    sought = b"src=" + (socket.inet_ntoa(address) if len(address) == 4 else address.hex(":", 2)).encode()
    end = time.monotonic() + READ_S
    with open(f"/proc/{pid}/net/nf_conntrack", "rb") as table:
        for line in table:
            if time.monotonic() > end:
                raise OSError(f"its {count} entries take more than {READ_S:g} s to read")
            if sought in line and (entry := parse_entry(line)) and address in (entry.orig.source, entry.reply.source):
                found.append(entry)
    return tuple(found)


def parse_entry(line: bytes) -> Entry | None:
    """None for what is not a whole TCP entry."""
    kind, ends = _TCP.match(line), list(_ENDS.finditer(line))
    if kind is None or len(ends) != 2:
        return None
    orig, reply = (_tuple(*each.groups()) for each in ends)
    if orig is None or reply is None:
        return None
    status = 0 if b"[UNREPLIED]" in line else SEEN_REPLY
    for flag, bit in _FLAGS.items():
        status |= bit if flag in line else 0
    zone, state = _ZONE.search(line), (kind[2] or b"").decode().strip()
    return Entry(
        orig,
        reply,
        status,
        int(zone[1]) if zone else 0,
        int(kind[1]) if kind[1] else None,
        state if state in TCP_STATES else "",
    )


def _tuple(source: bytes, target: bytes, source_port: bytes, target_port: bytes) -> Tuple | None:
    ends = []
    for address in (source.decode("ascii", "replace"), target.decode("ascii", "replace")):
        with suppress(OSError, ValueError):
            ends.append(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))
    return Tuple(ends[0], int(source_port), ends[1], int(target_port)) if len(ends) == 2 else None


def counters(pid: int) -> dict[str, int]:
    """Column of /proc/PID/net/stat/nf_conntrack -> its sum over the CPUs; "entries" is the same for all. OSError."""
    with open(f"/proc/{pid}/net/stat/nf_conntrack") as file:
        names, *rows = (line.split() for line in file)
    return dict(_sums(names, rows))


def _sums(names: list[str], rows: list[list[str]]) -> Iterator[tuple[str, int]]:
    for name, *values in zip(names, *rows, strict=False):
        with suppress(ValueError):
            numbers = [int(value, 16) for value in values]
            yield name, max(numbers, default=0) if name == "entries" else sum(numbers)


def fact(pid: int, inode: int, where: str) -> ConntrackFact | None:
    """How full the table of that namespace is, and what it dropped; None where that is not shown."""
    try:
        seen = counters(pid)
    except (OSError, ValueError):
        return None
    maximum = None
    with suppress(OSError, ValueError):
        maximum = int(MAXIMUM.read_text())
    chains = seen.get("chaintoolong", 0)
    figures = {name: seen.get(name, 0) for name in COUNTERS}
    return ConntrackFact(inode, seen.get("entries", 0), maximum, where=where, chain_too_long=chains, **figures)
