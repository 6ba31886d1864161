"""What /proc/PID/net, sock_diag and the iterator's records become, from literal input."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest
from stucktrace.collectors import netlink, proc_net, sock_diag, sockets_bpf
from stucktrace.collectors.events import SocketRecord, UnixSocketRecord
from stucktrace.facts import Keepalive

TCP = """\
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 0A00000A:B3C2 0B00000A:1628 01 00000233:00000000 01:0000028A 00000006     0        0 222 4 0000000000000000 650 0 0 1 7
   2: 0A00000A:B3C4 0B00000A:1628 01 00000000:00000010 02:00001388 00000000     0        2 333 2 0000000000000000 20 4 30 10 -1
   3: 0A00000A:B3C6 0B00000A:1628 06 00000000:00000000 03:00001388 00000000     0        0 0 3 0000000000000000
""".splitlines()


def test_tcp_lines():
    found = dict(proc_net.parse_inet(iter(TCP), "tcp", {111, 222, 333, 0}))
    assert found[111] == {
        "family": "inet", "protocol": "tcp", "state": "LISTEN", "local": "127.0.0.1:8080", "remote": "", "receive_bytes": 3,
    }  # fmt: skip
    sending = found[222]
    assert (sending["local"], sending["remote"]) == ("10.0.0.10:46018", "10.0.0.11:5672")
    assert (sending["send_bytes"], sending["retransmits"], sending["timer"]) == (0x233, 6, "retransmit")
    assert (sending["timer_expires_s"], sending["rto_s"]) == (6.5, 6.5)
    assert sending["keepalive"] is None
    probing = found[333]
    assert probing["keepalive"] == Keepalive(True, None, None, None, 2)
    assert (probing["receive_bytes"], probing["timer_expires_s"]) == (16, 50.0)


def test_only_the_asked_for():
    assert dict(proc_net.parse_inet(iter(TCP), "tcp", {999})) == {}


@pytest.mark.parametrize("line", ["", "garbage", "0: x y z", "a b c d e f g h i j k"])
def test_broken_lines_are_skipped(line):
    assert list(proc_net.parse_inet(iter([line]), "tcp", {1})) == []
    assert list(proc_net.parse_unix(iter([line]), {1})) == []


def test_ipv6_groups_are_in_host_order():
    line = "0: 0000000000000000FFFF00000100007F:0050 B80D0120000000000000000005000000:1234 01 0:0 00:0 0 0 0 7 1 0 20 0 0 1 -1"
    (draft,) = dict(proc_net.parse_inet(iter([line]), "tcp6", {7})).values()
    assert (draft["family"], draft["local"], draft["remote"]) == ("inet6", "127.0.0.1:80", "[2001:db8::5]:4660")


def test_unix_lines():
    lines = [
        "0000000000000000: 00000002 00000000 00010000 0001 01 41 /run/my app.sock",
        "0000000000000000: 00000003 00000000 00000000 0001 03 42",
        "0000000000000000: 00000002 00000000 00000000 0002 01 43 @log",
    ]
    found = dict(proc_net.parse_unix(iter(lines), {41, 42, 43}))
    assert found[41] == {"family": "unix", "protocol": "unix-stream", "state": "LISTEN", "local": "/run/my app.sock"}
    assert found[42] == {"family": "unix", "protocol": "unix-stream", "state": "ESTABLISHED", "local": ""}
    assert found[43] == {"family": "unix", "protocol": "unix-dgram", "state": "", "local": "@log"}


def tcp_info(length: int, state: int = 1) -> bytes:
    info = bytearray(256)
    info[0:5] = bytes([state, 0, 6, 0, 5])
    struct.pack_into("=I", info, 8, 6_500_000)
    struct.pack_into("=I", info, 24, 1)
    struct.pack_into("=IIII", info, 44, 1200, 0, 15000, 14000)
    struct.pack_into("=QQ", info, 120, 100, 200)
    struct.pack_into("=Q", info, 200, 663)
    struct.pack_into("=I", info, 228, 64256)
    return bytes(info[:length])


def test_tcp_info_of_a_new_and_an_old_kernel():
    new = sock_diag.parse_tcp_info(tcp_info(248))
    assert new == {
        "unacked": 1, "retransmits": 6, "backoff": 5, "rto_s": 6.5, "last_send_s": 1.2, "last_receive_s": 15.0, "last_ack_s": 14.0,
        "bytes_acked": 100, "bytes_received": 200, "bytes_sent": 663, "send_window_bytes": 64256,
    }  # fmt: skip
    old = sock_diag.parse_tcp_info(tcp_info(104))
    assert old["unacked"] == 1
    assert "bytes_acked" not in old
    assert "send_window_bytes" not in old


def test_no_ages_before_the_handshake_is_done():
    info = sock_diag.parse_tcp_info(tcp_info(248, state=sock_diag.SYN_SENT))
    assert not {"last_send_s", "last_receive_s", "last_ack_s"} & info.keys()


def test_keepalive_from_the_timer():
    assert sock_diag.keepalive_by_timer("keepalive", "ESTABLISHED", 3) == Keepalive(True, None, None, None, 3)
    assert sock_diag.keepalive_by_timer("", "ESTABLISHED", 0) == Keepalive(False, None, None, None, 0)
    # The retransmission timer hides the other one, and a socket that is being closed arms it for something else.
    assert sock_diag.keepalive_by_timer("retransmit", "ESTABLISHED", 0) is None
    assert sock_diag.keepalive_by_timer("", "FIN_WAIT1", 0) is None


@pytest.mark.parametrize("rate", sockets_bpf.TICK_RATES)
@pytest.mark.parametrize("up_s", [3.0, 280.0, 330.0, 86_400.0, 4e7])
def test_tick_rate_at_any_uptime(rate, up_s):
    # A few ticks are missed while the machine starts.
    ticks = (1 << 32) - 300 * rate + round(up_s * rate) - 3
    assert sockets_bpf.tick_rate(int(up_s * 1e9), ticks) == rate


def test_record_of_a_connection():
    record = SocketRecord(
        family=10, type=1, protocol=6, state=1, local_port=80, remote_port=4000, timer=1, expires_jiffies=50
    )
    record.local[:] = [0] * 10 + [255, 255, 10, 0, 0, 1]
    record.remote[:] = [0] * 10 + [255, 255, 10, 0, 0, 2]
    record.rto_jiffies, record.retransmits, record.backoff, record.packets_out, record.keepalive = 125, 2, 2, 3, 1
    record.netns_keepalive_idle_jiffies, record.keepalive_interval_jiffies, record.netns_keepalive_count = (
        250 * 7200,
        250 * 10,
        9,
    )
    draft = sockets_bpf._inet(record, 250)
    assert (draft["family"], draft["local"], draft["remote"]) == ("inet6", "10.0.0.1:80", "10.0.0.2:4000")
    assert (draft["rto_s"], draft["timer"], draft["timer_expires_s"]) == (0.5, "retransmit", 0.2)
    assert draft["keepalive"] == Keepalive(True, 7200, 10, 9, None)


def test_record_of_an_abstract_name():
    record = UnixSocketRecord(type=1, state=1, has_peer=1, name_bytes=5)
    ctypes.memmove(ctypes.addressof(record) + UnixSocketRecord.name.offset, b"\0a\0bc", 5)
    assert sockets_bpf._unix(record)["local"] == "@a@bc"


def established(family: int, source: bytes, target: bytes, inode: int) -> bytes:
    """A connection as sock_diag tells it, from port 4000 to 5672."""
    ports = socket.htons(4000), socket.htons(5672)
    return sock_diag.INET_MESSAGE.pack(family, 1, 0, 0, *ports, source, target, *[0] * 7, inode)


def test_connections_of_both_families_and_torn_ones():
    mapped, v6 = bytes(10) + b"\xff\xff\n\0\0\1", socket.inet_pton(socket.AF_INET6, "fd00::1")
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with asking, answering:
        bodies = [established(socket.AF_INET, b"\n\0\0\1", b"\n\0\0\2", 1), b"torn"]
        bodies6 = [established(socket.AF_INET6, mapped, mapped, 2), established(socket.AF_INET6, v6, v6, 3)[:-1]]
        for family in (bodies, [*bodies6, established(socket.AF_INET6, v6, v6, 4)]):
            for kind, body in [*((20, body) for body in family), (netlink.NLMSG_DONE, bytes(4))]:
                answering.send(netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 0, 0, 0) + body)
        assert list(sock_diag.connections(asking)) == [
            (1, (b"\n\0\0\1", 4000, b"\n\0\0\2", 5672)),
            (2, (b"\n\0\0\1", 4000, b"\n\0\0\1", 5672)),
            (4, (v6, 4000, v6, 5672)),
        ]
