"""Lines of /proc/net/nf_conntrack, as ct_seq_show of net/netfilter/nf_conntrack_standalone.c writes them."""

from __future__ import annotations

import socket

import pytest
from stucktrace.collectors import conntrack, conntrack_proc, ctnetlink
from stucktrace.collectors.ctnetlink import Tuple

PLAIN = (
    b"ipv4     2 tcp      6 299 ESTABLISHED src=198.19.103.1 dst=198.19.103.2 sport=35960 dport=37291 "
    b"src=198.19.103.2 dst=198.19.103.1 sport=37291 dport=35960 [ASSURED] mark=0 zone=0 use=2\n"
)
COUNTED = (
    b"ipv6     10 tcp      6 119 SYN_SENT src=fd00:0000:0000:0000:0000:0000:0000:0001 "
    b"dst=fd00:0000:0000:0000:0000:0000:0000:0002 sport=4000 dport=5672 zone-orig=7 packets=1 bytes=80 [UNREPLIED] "
    b"src=fd00:0000:0000:0000:0000:0000:0000:0002 dst=fd00:0000:0000:0000:0000:0000:0000:0001 sport=5672 dport=4000 "
    b"packets=0 bytes=0 mark=0 secctx=system_u:object_r:unlabeled_t:s0 zone=3 use=2\n"
)
OFFLOADED = (
    b"ipv4     2 tcp      6 src=10.0.0.1 dst=10.96.0.1 sport=4000 dport=443 "
    b"src=10.0.0.9 dst=10.0.0.1 sport=6443 dport=4000 [OFFLOAD] mark=0 zone=0 use=3\n"
)


def test_an_entry():
    entry = conntrack_proc.parse_entry(PLAIN)
    assert entry is not None
    here, there = socket.inet_aton("198.19.103.1"), socket.inet_aton("198.19.103.2")
    assert entry.orig == Tuple(here, 35960, there, 37291) and entry.reply == entry.orig.reversed()
    assert (entry.zone, entry.timeout_s, entry.tcp_state) == (0, 299, "ESTABLISHED")
    assert entry.status == ctnetlink.SEEN_REPLY | ctnetlink.ASSURED


def test_without_an_answer_in_a_zone_with_accounting():
    entry = conntrack_proc.parse_entry(COUNTED)
    assert entry is not None and not entry.answered
    assert (entry.zone, entry.tcp_state, entry.orig.target_port) == (3, "SYN_SENT", 5672)
    assert entry.orig.source == socket.inet_pton(socket.AF_INET6, "fd00::1")


def test_offloaded_and_translated():
    entry = conntrack_proc.parse_entry(OFFLOADED)
    assert entry is not None and entry.status & ctnetlink.OFFLOAD
    assert (entry.timeout_s, entry.tcp_state) == (None, "")
    assert entry.reply.source == socket.inet_aton("10.0.0.9")


@pytest.mark.parametrize("line", [b"", b"\xff" * 200, PLAIN[:90], PLAIN.replace(b"tcp      6", b"udp      17")])
def test_no_entry(line: bytes):
    assert conntrack_proc.parse_entry(line) is None


@pytest.mark.parametrize(("second", "wanted"), [(True, conntrack.PRESENT), (False, conntrack.ABSENT)])
def test_an_entry_that_one_look_overlooked_is_not_absent(
    monkeypatch: pytest.MonkeyPatch, second: bool, wanted: str
) -> None:
    """The look that misses one that is there stands for a kernel whose table changes while it is read."""
    entry = conntrack_proc.parse_entry(PLAIN)
    other = conntrack_proc.parse_entry(PLAIN.replace(b"35960", b"35962"))
    assert entry is not None and other is not None
    looks = [(other,), (other, entry) if second else (other,)]
    monkeypatch.setattr(conntrack_proc, "from_address", lambda pid, address: looks.pop(0))
    monkeypatch.setattr(ctnetlink, "is_there", lambda: True)
    conntrack._recently.clear()
    place = conntrack.Place(1, "", "here", 1, True, {})
    assert conntrack._look_by_proc({7: entry.orig}, frozenset(), place)[7].state == wanted and not looks
