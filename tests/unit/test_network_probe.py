"""What the answer to a probe does to a verdict, and which segment is an answer at all."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from stucktrace.collectors import tcp_probe
from stucktrace.collectors.events import SocketRecord
from stucktrace.collectors.tcp_probe import _Asked, _heard, _segment
from stucktrace.collectors.tcp_probe_child import ACK, RST, SYN, Connection
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Finding
from stucktrace.diagnosis.network_probe import words
from stucktrace.errors import CollectorError
from stucktrace.facts import AmqpFact, ProbeFact, Snapshot

from tests.unit import known_stacks as k
from tests.unit.snapshots import black_hole, snapshot, tcp, thread

PUSH = 8
ALIVE = ProbeFact("alive", 1, 0.002, 0.0004)
RESET = ProbeFact("reset", 1, 0.002, 0.0004)
SILENT = ProbeFact("unreachable", 3, 2.7)


def verdict(snap: Snapshot) -> Finding:
    return diagnose(snap, Budgets()).verdict


def publisher(**of_socket):  # type: ignore[no-untyped-def]
    return snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=35.0), stacks={100: k.CONFIRM}, sockets=[black_hole(**of_socket)]
    )


def quiet_publisher(blocked_s: float = 35.0, **of_socket):  # type: ignore[no-untyped-def]
    """Everything it sent is acknowledged."""
    return snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=blocked_s), stacks={100: k.CONFIRM}, sockets=[tcp(7, **of_socket)]
    )


def test_a_peer_that_answers_while_data_passes_in_neither_way() -> None:
    """As through a tunnel whose MTU nobody was told of; and what a short cut leaves is not called that."""
    assert verdict(publisher()).confidence == PROVEN
    for snap in (publisher(probe=ALIVE), publisher(probe=ALIVE, last_ack_s=0.1)):
        finding = verdict(snap)
        assert (finding.code, finding.confidence) == ("half-open", LIKELY)
        assert "only small segments pass, or the path came back" in finding.summary, finding.summary
    young = verdict(publisher(rto_s=0.8, backoff=2, retransmits=2, last_send_s=0.1, probe=ALIVE))
    assert young.code != "half-open"
    assert [line for line in young.evidence if line.what == "probe" and "the path is there again" in line.text]
    for missing, why in ((3000, "3000 bytes that did not come in for 1.8 s: only small"), (1, "seems to have closed")):
        finding = verdict(quiet_publisher(probe=replace(ALIVE, tries=3, seconds=1.8, unreceived_bytes=missing)))
        assert (finding.code, finding.confidence) == ("half-open", LIKELY)
        assert why in finding.summary, finding.summary


def test_a_silent_application_behind_a_tcp_that_answers() -> None:
    finding = verdict(quiet_publisher(probe=ALIVE))
    assert finding.code == "peer-silent"
    assert "its TCP answered a probe just now, within 0.4 ms, and no answer comes" in finding.summary


def test_a_reset_proves_it_and_has_ended_it() -> None:
    for snap in (quiet_publisher(probe=RESET), publisher(probe=RESET), quiet_publisher(1.0, probe=RESET)):
        finding = verdict(snap)
        assert (finding.code, finding.confidence, finding.fd) == ("half-open", PROVEN, 7)
        assert "ECONNRESET" in finding.summary
        assert [step.do for step in finding.now] == ["stucktrace pid 100"]


def test_silence_is_likely_until_the_outage_is_long() -> None:
    finding = verdict(quiet_publisher(probe=SILENT))
    assert (finding.code, finding.confidence) == ("half-open", LIKELY)
    assert "3 probes within 2.7 s had no answer" in finding.summary and "may heal" in finding.summary
    young = {"rto_s": 0.8, "backoff": 2, "retransmits": 2, "last_send_s": 0.1, "last_ack_s": 1.0}
    assert verdict(publisher(**young)).code != "half-open"
    finding = verdict(publisher(**young, probe=SILENT))
    assert (finding.code, finding.confidence) == ("half-open", LIKELY)
    assert "nothing it sent has been acknowledged for 3.4 s" in finding.summary
    assert verdict(publisher(probe=SILENT)).confidence == PROVEN


def test_only_a_proven_one_is_to_be_unstuck() -> None:
    assert verdict(publisher()).now[0].do == "stucktrace unstick 100"
    assert "unstick" not in str(verdict(publisher(shared_with=(200,))).now)
    assert "unstick" not in str(verdict(quiet_publisher(probe=SILENT)).now)


def said(*segments: tuple[int, int, int]) -> str:
    """The answer that these segments (flags, sequence number, acknowledged number) are to one that continues at 1001 and
    acknowledges 5000. PUSH: with data."""
    connection = Connection.__new__(Connection)
    connection.finished = False
    heard = [(flags, seq, ack, bool(flags & PUSH)) for flags, seq, ack in segments]
    connection.heard = lambda: heard  # type: ignore[method-assign]
    return str(connection.answer({"seq": 1000, "ack": 5000})["answer"])


def test_which_segment_is_an_answer() -> None:
    assert said() == ""
    assert said((ACK, 5000, 1001)) == "alive"
    assert said((ACK | PUSH, 5000, 2001)) == "sends", "a sign of life, but not that our segments arrive"
    assert said((ACK | PUSH, 5000, 1001), (ACK, 5008, 1001), (ACK | PUSH, 5008, 1001)) == "alive"
    assert said((RST, 5000, 0)) == said((RST | ACK, 5000, 1001)) == "reset"
    assert said((RST, 5001, 0)) == said((RST | ACK, 4999, 1001)) == "", "forged, or old"
    assert said((RST, 4999, 0), (ACK, 5000, 1001)) == "alive"
    assert said((SYN, 7, 0)) == said((SYN | ACK, 7, 1001)) == "", "of another connection"
    assert said((ACK, 5000, 1000)) == "", "older than what is acknowledged"


def heard(answer: str, *, seq: int, ack: int, came_in: int = 0, window_bytes: int = 65_536) -> _Asked:
    """What the probe knows after this answer, where the target has sent up to 1100 and received up to 5000."""
    before, now = SocketRecord(), SocketRecord()
    now.snd_nxt, now.rcv_nxt, before.rcv_nxt = 1100, 5000, 5000 - came_in
    now.receive_window_bytes = window_bytes
    return _heard(_Asked(0.0), {"answer": answer, "seq": seq, "ack": ack, "after_s": 0.001}, before, now)


def test_what_the_numbers_of_an_answer_tell() -> None:
    assert heard("alive", seq=5000, ack=1001) == _Asked(0.0, alive=True, after_s=0.001)
    assert heard("alive", seq=4000, ack=1100).unreceived_bytes == 0
    assert heard("alive", seq=8000, ack=1001).unreceived_bytes == 3000
    assert heard("alive", seq=8000, ack=1001, came_in=1).unreceived_bytes == 0, "a busy connection: it is on its way"
    assert heard("alive", seq=5001, ack=1001, window_bytes=0).unreceived_bytes == 0, "tries a closed window"
    assert heard("sends", seq=5000, ack=1001) == _Asked(0.0, alive=True)
    assert heard("alive", seq=5000, ack=1101) == _Asked(0.0), "acknowledges what was never sent: another connection's"
    assert "acknowledged none of 3 probes" in words(ProbeFact("alive", 3, 2.7), "10.0.0.2:5672")


class Answers:
    """In the child's place: the same answer to every try, for the connection of each segment."""

    def __init__(self, **answer):  # type: ignore[no-untyped-def]
        self._answer = {"answer": "", "after_s": None, "error": "", "finished": False, **answer}

    def say(self, message, within_s):  # type: ignore[no-untyped-def]
        return [{"index": segment["index"], **self._answer} for segment in message["segments"]]


def test_what_never_left_this_host_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_probe, "_records", lambda *_: {7: SocketRecord()})
    monkeypatch.setattr(tcp_probe, "TRY_S", 0.0)

    def asked(**answer):  # type: ignore[no-untyped-def]
        return tcp_probe._ask(Answers(**answer), None, 1, (7,))[7]  # type: ignore[arg-type]

    assert (asked().answer, asked().tries) == ("unreachable", 3)
    assert asked(error="No route to host").answer == "unreachable", "nor does the process have one"
    with pytest.raises(CollectorError, match="packet filter"):
        asked(error="Operation not permitted")


def test_a_segment_is_shaped_like_the_kernels_own() -> None:
    record = SocketRecord()
    record.snd_una, record.rcv_nxt, record.now_ns = 0, 77, 5_000_000_000
    record.receive_window_bytes, record.receive_window_scale = 65_536, 10
    assert _segment(0, record) == {"index": 0, "seq": 0xFFFFFFFF, "ack": 77, "window": 64, "stamps": None}
    record.timestamps, record.timestamp_offset, record.timestamp_recent = 1, 0xFFFFFFFF, 9
    assert _segment(0, record)["stamps"] == [4999, 9]
    record.timestamps = 2
    assert _segment(0, record)["stamps"] == [4_999_999, 9]


def test_the_segment_on_the_wire() -> None:
    from scapy.layers.inet import IP, TCP

    connection = Connection.__new__(Connection)
    connection.family, connection.local, connection.remote = socket.AF_INET, "192.0.2.1", "192.0.2.2"
    connection.local_port, connection.remote_port = 40_000, 5672
    numbers = {"seq": 1000, "ack": 5000, "window": 64, "stamps": [4999, 9]}
    packet = IP(connection.segment(numbers))
    tcp = packet[TCP]
    assert (packet.src, packet.dst, tcp.sport, tcp.dport) == ("192.0.2.1", "192.0.2.2", 40_000, 5672)
    assert (tcp.seq, tcp.ack, tcp.window, str(tcp.flags), len(tcp.payload)) == (1000, 5000, 64, "A", 0)
    assert ("Timestamp", (4999, 9)) in tcp.options


def test_heartbeats_that_do_not_come_from_a_peer_whose_tcp_answers() -> None:
    fact = AmqpFact("10.0.0.1:40000", "10.0.0.2:5672", "wire", fd=7, heartbeat_s=10.0, last_frame_in_s=100.0)
    ages = {"last_receive_s": 100.0, "last_ack_s": 100.0, "last_send_s": 100.0}

    def of(**more):  # type: ignore[no-untyped-def]
        snap = quiet_publisher(100.0, **ages, **more)
        own = snap.sockets[0]
        snap = replace(snap, amqp=(replace(fact, local=own.local, remote=own.remote),))
        return {finding.code for finding in diagnose(snap, Budgets()).findings}

    assert "half-open" in of()
    assert "peer-silent" in of(probe=ALIVE) and "half-open" not in of(probe=ALIVE)
