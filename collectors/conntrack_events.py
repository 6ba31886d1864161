"""Conntrack entries of live TCP connections that vanish from, or come back into, one network namespace's table.

Source: ctnetlink's groups NEW and DESTROY, bound in that namespace. The kernel drops for us what opens and closes as it
should: only an entry in state ESTABLISHED passes, one evicted while the connection lives (DESTROY) or one made anew in
mid-stream (NEW, nf_conntrack_tcp_loose). Before Linux 5.10 a DESTROY tells no state, so all of TCP's come.

Events only make things faster. With nf_conntrack_events=2 (the default) an entry older than the listener tells of
nothing, and DESTROY comes when the kernel gets to it: whether an entry is there, only asking for it says.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from dataclasses import dataclass

from stucktrace.collectors import ctnetlink, netlink, netns
from stucktrace.collectors.ctnetlink import CTNETLINK, GENERAL, NETLINK_NETFILTER, Entry, Tuple

NEW, DESTROY, REFUSED = "new", "destroy", "refused"
GROUPS = 1 << 0 | 1 << 2
"""NF_NETLINK_CONNTRACK_NEW, _DESTROY."""
CT_NEW, CT_DELETE = 0, 2
BUFFER_BYTES = 4 << 20
MOST_AT_ONCE = 4096
"""Datagrams in one call: what comes faster waits for the next."""
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
PROTOINFO, PROTOINFO_TCP, TCP_STATE, ESTABLISHED = 4, 1, 1, 3
"""CTA_PROTOINFO > CTA_PROTOINFO_TCP > CTA_PROTOINFO_TCP_STATE."""

_FIRST_ATTRIBUTE = netlink.HEADER.size + GENERAL.size
_LOAD, _LOAD_X, _LOAD_BYTE_AT_X, _A_TO_X, _IF_EQUAL, _RETURN = 0x00, 0x01, 0x50, 0x07, 0x15, 0x06
_LOAD_WORD = 0x20
_FIND, _FIND_IN = 0xFFFFF000 + 12, 0xFFFFF000 + 16
"""SKF_AD_NLATTR, SKF_AD_NLATTR_NEST: the offset of attribute X from A on, or in A; 0: there is none."""
_PASS, _DROP = 0xFFFFFFFF, 0


@dataclass(frozen=True)
class FlowEvent:
    """Something happened to the entry of a TCP connection."""

    kind: str
    """NEW or DESTROY; of conntrack_hooks.py also REFUSED: a packet was dropped, for the table has no room."""
    orig: Tuple
    reply: Tuple
    """Not the reverse of `orig` where addresses are translated."""
    time_s: float
    """CLOCK_MONOTONIC, when it was read."""
    netns: int | None = None
    """Inode number of the namespace, of conntrack_hooks.py."""
    reason: str = ""
    """Why an entry went, of conntrack_hooks.py."""


def tuples(event: FlowEvent) -> tuple[Tuple, ...]:
    """What the connection can look like to a socket, as (its own address, its peer's): at either end of it."""
    return event.orig, event.orig.reversed(), event.reply, event.reply.reversed()


class Stream:
    """The events in the network namespace of `pid` (None: the own one). OSError where it may not be listened to."""

    def __init__(self, pid: int | None = None) -> None:
        self._socket = _open() if pid is None else netns.inside(pid, _open)
        self.overruns = 0
        """How often the kernel had to drop events."""
        self.dump_again = False
        """Events were lost: what they would have told has to be asked for. Cleared by whoever has asked."""

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    def events(self) -> list[FlowEvent]:
        """What came since the last call; never waits."""
        found: list[FlowEvent] = []
        for _ in range(MOST_AT_ONCE):
            try:
                data = self._socket.recv(netlink.RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                self.dump_again = True
                continue
            found += decode(data, time.monotonic())
        return found

    def close(self) -> None:
        self._socket.close()


def _open() -> socket.socket:
    stream = netlink.open_socket(NETLINK_NETFILTER, 0)
    try:
        _filter(stream)
        stream.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        stream.bind((0, GROUPS))
    except OSError:
        stream.close()
        raise
    return stream


def decode(data: bytes, now_s: float) -> list[FlowEvent]:
    """The TCP events of one datagram."""
    found = []
    for kind, body in netlink.messages(data):
        subsystem, message = kind >> 8, kind & 0xFF
        if subsystem != CTNETLINK or message not in (CT_NEW, CT_DELETE):
            continue
        entry: Entry | None = ctnetlink.decode_entry(body[GENERAL.size :])
        if entry is not None:
            found.append(FlowEvent(NEW if message == CT_NEW else DESTROY, entry.orig, entry.reply, now_s))
    return found


def program() -> bytes:
    """The kernel's filter in classic BPF: TCP, and in state ESTABLISHED as far as the message tells a state."""
    find = [
        (_LOAD, _FIRST_ATTRIBUTE), (_LOAD_X, ctnetlink.TUPLE_ORIG), (_LOAD_WORD, _FIND), "drop",
        (_LOAD_X, ctnetlink.TUPLE_PROTO), (_LOAD_WORD, _FIND_IN), "drop",
        (_LOAD_X, ctnetlink.PROTO_NUM), (_LOAD_WORD, _FIND_IN), "drop",
        (_A_TO_X, 0), (_LOAD_BYTE_AT_X, netlink.ATTRIBUTE.size), socket.IPPROTO_TCP,
        (_LOAD, _FIRST_ATTRIBUTE), (_LOAD_X, PROTOINFO), (_LOAD_WORD, _FIND), "pass",
        (_LOAD_X, PROTOINFO_TCP), (_LOAD_WORD, _FIND_IN), "pass",
        (_LOAD_X, TCP_STATE), (_LOAD_WORD, _FIND_IN), "pass",
        (_A_TO_X, 0), (_LOAD_BYTE_AT_X, netlink.ATTRIBUTE.size), ESTABLISHED,
    ]  # fmt: skip
    end = len(find)
    code = b""
    for position, step in enumerate(find):
        to_pass, to_drop = end - position - 1, end - position
        if step == "drop":
            code += _instruction(_IF_EQUAL, 0, to_drop, 0)
        elif step == "pass":
            code += _instruction(_IF_EQUAL, 0, to_pass, 0)
        elif isinstance(step, int):
            code += _instruction(_IF_EQUAL, step, 0, to_drop)
        elif isinstance(step, tuple):
            code += _instruction(step[0], step[1], 0, 0)
    return code + _instruction(_RETURN, _PASS, 0, 0) + _instruction(_RETURN, _DROP, 0, 0)


def _instruction(code: int, operand: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _filter(stream: socket.socket) -> None:
    code = ctypes.create_string_buffer(program())
    instructions = len(code) // 8
    stream.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", instructions, ctypes.addressof(code)))
