"""Whether what one network namespace sends to some host goes through the IP stack of another, by a veth pair between.

Source: rtnetlink in both (routes, links, namespace ids, qdiscs) and BPF_PROG_QUERY. True is certain. A BPF program on
the way (XDP, tc, tcx) can take packets past the stack, as some cluster networks do, and so can a bridge: then it is
False, as for every other kind of link.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from stucktrace.collectors import netlink, netns
from stucktrace.collectors.netlink import attribute, attributes

NETLINK_ROUTE = 0
GETLINK, GETROUTE, GETQDISC, GETNSID = 18, 26, 38, 90
"""RTM_*."""
LINK, ROUTE, QDISC = struct.Struct("=BxHiII"), struct.Struct("=BBBBBBBBI"), struct.Struct("=BxxxiIII")
"""struct ifinfomsg, rtmsg, tcmsg."""
IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO, IFLA_LINK_NETNSID, IFLA_XDP = 5, 10, 18, 37, 43
INFO_KIND, XDP_ATTACHED = 1, 2
RTA_TARGET, RTA_OUT, RTA_GATEWAY, LOCAL = 1, 4, 5, 2
"""RTA_DST, RTA_OIF, RTA_GATEWAY, RTN_LOCAL."""
NETNSA_NSID, NETNSA_FD = 1, 3
TCA_KIND = 1
PROG_QUERY, TCX_INGRESS = 16, 46
BPF = {"x86_64": 321, "aarch64": 280}
"""The number of the system call."""
REPLY_S = 1.0
Attributes = Mapping[int, bytes]


@dataclass(frozen=True)
class Way:
    """How packets leave a namespace."""

    link: int
    """Interface index there."""
    peer: int
    """Interface index at the other end, in another namespace."""
    gateway: bytes
    """b"" without one."""


def leads_through(home: str, middle: str, target: bytes) -> bool:
    """From the namespace `home` (a path) to this address through `middle`. False where it cannot be told."""
    try:
        way = netns.enter(home, partial(_leave, target))
        return way is not None and netns.enter(middle, partial(_enters, home, way, target))
    except OSError:
        return False


def _leave(target: bytes) -> Way | None:
    with netlink.open_socket(NETLINK_ROUTE, REPLY_S) as asking:
        _, route = _route(asking, target)
        link = _number(route, RTA_OUT)
        about = _link(asking, link) if link else {}
        if _kind(about) != "veth" or IFLA_LINK_NETNSID not in about:
            return None
        return Way(link, _number(about, IFLA_LINK), route.get(RTA_GATEWAY, b""))


def _enters(home: str, way: Way, target: bytes) -> bool:
    """Called in the namespace in the middle."""
    with netlink.open_socket(NETLINK_ROUTE, REPLY_S) as asking, open(home) as file:
        about = _link(asking, way.peer)
        same = _kind(about) == "veth" and _number(about, IFLA_LINK) == way.link
        question = struct.pack("=Bxxx", 0) + attribute(NETNSA_FD, struct.pack("=I", file.fileno()))
        theirs = dict(_attributes(asking, GETNSID, question, 4))
        if not same or theirs.get(NETNSA_NSID, b"-") != about.get(IFLA_LINK_NETNSID, b""):
            return False
        if _has_program(asking, way.peer, about):
            return False
        master = _number(about, IFLA_MASTER)
        if not master:
            return True
        # On a bridge only what is sent to this namespace's own address, to be routed elsewhere, meets its IP stack.
        if not way.gateway or _has_program(asking, master, _link(asking, master)):
            return False
        kind, _ = _route(asking, way.gateway)
        _, onwards = _route(asking, target)
        return kind == LOCAL and _number(onwards, RTA_OUT) not in (0, master)


def _has_program(asking: socket.socket, link: int, about: Attributes) -> bool:
    """A BPF program may handle what arrives there; also where that cannot be told."""
    if any(dict(attributes(about.get(IFLA_XDP, b""))).get(XDP_ATTACHED, b"")):
        return True
    question = QDISC.pack(0, link, 0, 0, 0)
    for body in netlink.ask(asking, GETQDISC, question, dump=True, within_s=REPLY_S):
        kind = dict(attributes(body, QDISC.size)).get(TCA_KIND, b"").rstrip(b"\0")
        if len(body) >= QDISC.size and QDISC.unpack_from(body)[1] == link and kind in (b"clsact", b"ingress"):
            return True
    return _has_tcx(link)


def _has_tcx(link: int) -> bool:
    """Programs of the newer kind (Linux 6.6) hang on no qdisc."""
    if platform.machine() not in BPF:
        return True
    query = ctypes.create_string_buffer(struct.pack("=IIIIQI", link, TCX_INGRESS, 0, 0, 0, 0), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(BPF[platform.machine()]), PROG_QUERY, query, len(query)) == 0:
        return bool(struct.unpack_from("=I", query, 24)[0])
    # ENOSYS: no BPF at all. EINVAL: a kernel without tcx.
    return ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS)


def _route(asking: socket.socket, target: bytes) -> tuple[int, Attributes]:
    """(type, attributes) of the route to an address, as the kernel would take it."""
    family = socket.AF_INET if len(target) == 4 else socket.AF_INET6
    question = ROUTE.pack(family, 8 * len(target), 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_TARGET, target)
    for body in netlink.ask(asking, GETROUTE, question, dump=False, within_s=REPLY_S):
        if len(body) >= ROUTE.size:
            return ROUTE.unpack_from(body)[7], dict(attributes(body, ROUTE.size))
    return 0, {}


def _link(asking: socket.socket, index: int) -> Attributes:
    return dict(_attributes(asking, GETLINK, LINK.pack(0, 0, index, 0, 0), LINK.size))


def _attributes(asking: socket.socket, kind: int, question: bytes, header: int) -> list[tuple[int, bytes]]:
    return [
        found
        for body in netlink.ask(asking, kind, question, dump=False, within_s=REPLY_S)
        for found in attributes(body, header)
    ]


def _kind(about: Attributes) -> str:
    name = dict(attributes(about.get(IFLA_LINKINFO, b""))).get(INFO_KIND, b"")
    return name.rstrip(b"\0").decode(errors="replace")


def _number(about: Attributes, kind: int) -> int:
    return int.from_bytes(about.get(kind, b""), sys.byteorder)
