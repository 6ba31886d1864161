"""A full conntrack table as the reason why a SYN gets no answer. Established connections go on: they have entries.

Proof: the connection has no entry, the table on its way has no room, and it dropped first packets between two reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.diagnosis.model import Evidence, Now
from stucktrace.diagnosis.words import count
from stucktrace.facts import ConntrackFact, Snapshot, SocketFact


def full_table(snapshot: Snapshot, socket: SocketFact) -> ConntrackFact | None:
    """The table that drops this connection's SYN. Not one that is full and drops nothing, nor one that let it in."""
    if socket.conntrack != "absent":
        return None
    return next((one for one in snapshot.conntrack if one.where == socket.conntrack_where and one.window_drop), None)


def why(full: ConntrackFact | None) -> str:
    return f": the conntrack table of {full.where} is full and drops new connections" if full else ""


def full_lines(full: ConntrackFact, socket: SocketFact) -> Iterator[Evidence]:
    text = f"conntrack has {full.count} of {full.maximum} entries in {full.where}, and none for {socket.local} -> "
    text += socket.remote
    if socket.conntrack_assumes:
        text += f"; that this stops it assumes that {socket.conntrack_assumes}"
    yield Evidence("ctnetlink", "count", full.count, text, "entries")
    drops = f"it dropped {count(full.window_drop or 0, 'new connection')} for want of room between two reads"
    yield Evidence("ctnetlink", "drop", full.drop, f"{drops}, {full.drop} in all", "packets")


def make_room(full: ConntrackFact) -> tuple[Now, ...]:
    return (
        Now(
            "conntrack -L -o extended | awk '{print $3, $6}' | sort | uniq -c | sort -rn | head",
            "none: it shows which protocol and state fill the table (run it in that namespace)",
            "nothing",
        ),
        Now(
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * (full.maximum or full.count)}",
            "every further entry takes some 320 bytes of the kernel's memory (on the node itself: it holds for all)",
            "nothing",
        ),
    )
