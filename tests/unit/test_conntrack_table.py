"""What a conntrack table and its entries mean: literal facts, and what must not raise an alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace.collectors import conntrack_rules, ctnetlink
from stucktrace.collectors.netlink import attribute
from stucktrace.diagnosis.conntrack_table import checks
from stucktrace.facts import Check, ConntrackFact, Keepalive, SocketFact
from stucktrace.facts.conntrack import ABSENT, TRACKED, ConntrackSettings, Flow, FlowEntry, NamespaceTable

SETTINGS = ConntrackSettings(432_000, 300, 300, 3, 120, 120, 60, loose=1, be_liberal=0)
CALM = ConntrackFact(7, 100, 1000, where="here")


def table(
    after: ConntrackFact = CALM, before: ConntrackFact = CALM, settings: ConntrackSettings = SETTINGS, **changes: bool
) -> NamespaceTable:
    made = NamespaceTable(7, "here", (), before, after, 1.0, settings, hooked=True, translates=False, exempts=False)
    return replace(made, **changes)


def flow(
    keepalive: Keepalive | None = None, entry: FlowEntry | None = None, silent_s: float | None = None, unacked: int = 0
) -> Flow:
    socket = SocketFact(
        (5,), 1, "inet", "tcp", "ESTABLISHED", "10.0.0.5:40000", "10.0.0.9:5672", keepalive=keepalive, unacked=unacked,
        last_send_s=silent_s, last_receive_s=silent_s, last_ack_s=silent_s,
    )  # fmt: skip
    return Flow(42, socket, (entry or FlowEntry(7, "here", TRACKED, True, "ESTABLISHED", 300),))


def codes(*found: Check) -> list[tuple[str, str]]:
    return [(check.code, check.status) for check in found]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {}, []),
        ({}, {"count": 850}, [("table-filling", "warn")]),
        ({}, {"count": 1000}, [("table-full", "error")]),
        ({"drop": 3}, {"count": 1000, "drop": 9}, [("table-full", "error")]),
        ({"drop": 3}, {"count": 900, "drop": 9}, [("drops-now", "error")]),
        ({"drop": 3}, {"count": 10, "drop": 9}, [("drops-now", "warn")]),
        ({"drop": 3}, {"drop": 3}, [("drops-in-the-past", "warn")]),
        ({"early_drop": 3}, {"early_drop": 3}, [("drops-in-the-past", "warn")]),
        ({"early_drop": 3}, {"early_drop": 4}, [("early-drops-now", "warn")]),
        ({"insert_failed": 3}, {"insert_failed": 3}, []),
        ({"insert_failed": 3}, {"insert_failed": 4}, [("insert-failures-now", "warn")]),
        ({"invalid": 3, "search_restart": 1}, {"invalid": 400, "search_restart": 2}, []),
        ({"chain_too_long": 1}, {"chain_too_long": 1}, [("hash-too-small", "warn")]),
        ({"maximum": None}, {"maximum": None, "count": 10**6}, []),
    ],
)
def test_room_and_drops(before: dict[str, int], after: dict[str, int], said: list[tuple[str, str]]) -> None:
    facts = replace(CALM, **after), replace(CALM, **before)  # type: ignore[arg-type]
    assert codes(*checks([table(*facts)], [])) == said


@pytest.mark.parametrize(
    ("idle_s", "timeout_s", "warned"), [(7200, 3600, True), (600, 600, True), (599, 600, False), (7200, 86_400, False)]
)
def test_the_first_keepalive_has_to_come_before_the_timeout(idle_s: float, timeout_s: int, warned: bool) -> None:
    tables = [table(settings=replace(SETTINGS, established_s=timeout_s))]
    found = checks(tables, [flow(Keepalive(True, idle_s, 30, 3)), flow(Keepalive(True, 30, 30, 3))])
    assert codes(*found) == ([("timeout-below-keepalive", "warn")] if warned else [])


@pytest.mark.parametrize(
    ("silent_s", "unacked", "warned"), [(400.0, 0, True), (200.0, 0, False), (400.0, 1, False), (None, 0, False)]
)
def test_without_keepalive_only_a_long_silence_is_one(silent_s: float | None, unacked: int, warned: bool) -> None:
    """A heartbeat of the application's would have kept it going; and one that is being cut has sent something."""
    tables = [table(settings=replace(SETTINGS, established_s=600))]
    found = checks(tables, [flow(Keepalive(False, None, None, None), silent_s=silent_s, unacked=unacked)])
    assert codes(*found) == ([("silent-without-keepalive", "warn")] if warned else [])


@pytest.mark.parametrize(
    ("loose", "translates", "drops", "status", "words"),
    [
        (0, False, True, "error", "a rule there drops it"),
        (0, False, False, "warn", "INVALID"),
        (0, True, False, "warn", "INVALID"),
        (1, True, True, "warn", "it goes on, unless its addresses were translated"),
        (1, False, True, "warn", "it goes on"),
    ],
)
def test_what_the_next_packet_meets(loose: int, translates: bool, drops: bool, status: str, words: str) -> None:
    """NAT rules may be for others (Docker's, on a machine whose connections are older): another connection like this one
    tells whether they are for it."""
    entry = FlowEntry(7, "here", ABSENT, True, drops_invalid=drops)
    tables = [table(settings=replace(SETTINGS, loose=loose), translates=translates)]
    (found,) = checks(tables, [flow(entry=entry)])
    assert codes(found) == [("entry-lost", status)] and words in found.text
    assert "older than the tracking" in found.text
    (found,) = checks(tables, [flow(entry=replace(entry, alike=True))])
    assert "was evicted" in found.text and found.status == ("warn" if loose else "error")
    (found,) = checks(tables, [flow(entry=replace(entry, alike=True, translated=True))])
    assert found.status == "error" and ("another host" in found.text) == bool(loose)


def test_the_hint_for_aws() -> None:
    those = [flow(Keepalive(True, 7200, 75, 9))]
    assert codes(*checks([table()], those)) == []
    assert codes(*checks([table()], those, on_aws=True)) == [("aws-idle-timeout", "ok")]


def test_the_names_of_a_rules_expressions() -> None:
    def expression(name: str, data: bytes = b"") -> bytes:
        return attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, data))

    xt = expression("target", attribute(1, b"MASQUERADE\0"))
    assert list(conntrack_rules.names(expression("ct") + xt + expression("immediate"))) == [
        "ct",
        "MASQUERADE",
        "immediate",
    ]
    assert list(conntrack_rules.names(b"\x05")) == []


def test_the_state_and_the_timeout_of_an_entry() -> None:
    flow = ctnetlink.Tuple(bytes([10, 0, 0, 2]), 40000, bytes([10, 0, 0, 3]), 5672)
    tcp = attribute(ctnetlink.PROTOINFO_TCP, attribute(ctnetlink.TCP_STATE, b"\x03"))
    body = ctnetlink.encode_tuple(ctnetlink.TUPLE_ORIG, flow) + ctnetlink.encode_tuple(
        ctnetlink.TUPLE_REPLY, flow.reversed()
    )
    entry = ctnetlink.decode_entry(
        body + attribute(ctnetlink.TIMEOUT, (431_999).to_bytes(4, "big")) + attribute(ctnetlink.PROTOINFO, tcp)
    )
    assert entry is not None and (entry.timeout_s, entry.tcp_state) == (431_999, "ESTABLISHED")
    strange = attribute(ctnetlink.PROTOINFO_TCP, attribute(ctnetlink.TCP_STATE, b"\xee"))
    entry = ctnetlink.decode_entry(body + attribute(ctnetlink.PROTOINFO, strange))
    assert entry is not None and (entry.timeout_s, entry.tcp_state) == (None, "")
