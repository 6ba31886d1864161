"""`half-open`: what proves it, what makes it likely, and the healthy connections that look like it."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, Budgets, Finding
from stucktrace.diagnosis.network_outage import half_open
from stucktrace.facts import Keepalive, Snapshot, WorkerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import black_hole, call, epoll, peer, snapshot, tcp, thread, watch

BUDGETS = Budgets()


def found(snap: Snapshot) -> list[Finding]:
    return list(half_open(snap, BUDGETS))


def only(snap: Snapshot) -> Finding:
    (finding,) = found(snap)
    return finding


def publisher(**socket):  # type: ignore[no-untyped-def]
    hole = black_hole(**socket)
    age_s = socket.get("age_s", 35.0)
    return snapshot(thread(100, "recvfrom", fd=7, blocked_s=age_s), stacks={100: k.CONFIRM}, sockets=[hole])


def cut_for_10_s(**more):  # type: ignore[no-untyped-def]
    return publisher(
        age_s=10.0, rto_s=6.5, backoff=5, retransmits=5, last_send_s=3.7, timer_expires_s=2.8, last_ack_s=10.0, **more
    )


def test_a_publisher_cut_for_35_s() -> None:
    finding = only(publisher())
    assert (finding.code, finding.confidence, finding.tid, finding.fd) == ("half-open", PROVEN, 100, 7)
    for word in ("MainThread", "35 s", "basic_publish_confirm", "10.0.0.2:5672"):
        assert word in finding.summary
    evidence = {line.what: line.value for line in finding.evidence}
    assert evidence["unacked"] == 1
    assert evidence["backoff"] == 7
    assert evidence["last_ack_s"] == 35.0
    assert evidence["user_timeout_s"] == 0.0
    assert "TCP_USER_TIMEOUT" in finding.later[0].do
    assert "is 0 on this socket" in finding.later[0].why
    assert "15 min" in finding.later[0].why
    assert finding.now and finding.now[0].loses
    assert diagnose(publisher(), BUDGETS).verdict.code == "half-open"


def test_below_30_s_it_may_heal() -> None:
    finding = only(cut_for_10_s())
    assert finding.confidence == LIKELY
    assert "may heal" in finding.summary
    assert "gives up in about 15 min" in finding.summary


def test_a_connection_that_guards_itself_never_gets_that_far() -> None:
    """py-amqp's default of 1000 ms: at most a second of outage is ever seen."""
    young = publisher(age_s=0.9, rto_s=0.4, backoff=1, retransmits=1, last_send_s=0.3, user_timeout_s=1.0)
    assert found(young) == []


def test_an_evicted_flow_is_proof_at_once() -> None:
    finding = only(cut_for_10_s(conntrack="absent"))
    assert finding.confidence == PROVEN
    assert "conntrack" in finding.summary


RETRANSMITTED_TWICE = {"rto_s": 0.8, "backoff": 2, "retransmits": 2, "last_send_s": 0.1, "last_ack_s": 1.0}


def test_an_eviction_that_rests_on_an_assumption_proves_nothing_and_says_so() -> None:
    finding = only(cut_for_10_s(conntrack="absent", conntrack_assumes="a firewall rule drops it"))
    assert finding.confidence == LIKELY
    assert "assumes that a firewall rule drops it" in next(
        line.text for line in finding.evidence if line.source == "conntrack"
    )
    young = publisher(age_s=1.0, **RETRANSMITTED_TWICE, conntrack="absent", conntrack_assumes="a rule")
    assert found(young) == []


def test_a_certain_eviction_shows_with_the_second_retransmission() -> None:
    young = publisher(
        age_s=1.0, **RETRANSMITTED_TWICE, conntrack="absent", conntrack_where="the target's network namespace"
    )
    finding = only(young)
    assert finding.confidence == PROVEN
    line = next(line.text for line in finding.evidence if line.source == "conntrack")
    assert "10." in line and " -> " in line and "the target's network namespace" in line


@pytest.mark.parametrize(("seen_s", "count"), [(12.0, 1), (None, 0)])
def test_with_the_first_one_where_the_entry_was_seen_before(seen_s: float | None, count: int) -> None:
    once = RETRANSMITTED_TWICE | {"retransmits": 1, "backoff": 1}
    assert len(found(publisher(age_s=1.0, **once, conntrack="absent", conntrack_seen_s=seen_s))) == count


def test_an_entry_that_is_there_is_said_and_weighs_nothing() -> None:
    finding = only(cut_for_10_s(conntrack="present"))
    assert finding.confidence == LIKELY
    assert any(line.value == "present" for line in finding.evidence)
    assert "conntrack" not in finding.summary


def test_an_evicted_flow_while_a_reply_is_awaited() -> None:
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=60), stacks={100: k.REQUESTS}, sockets=[tcp(conntrack="absent")]
    )
    finding = only(snap)
    assert finding.confidence == LIKELY
    assert "conntrack" in finding.summary


def test_a_reply_that_makes_its_entry_anew_is_not_lost() -> None:
    socket = tcp(conntrack="absent", conntrack_assumes="a firewall rule lets nothing through that is unknown")
    snap = snapshot(thread(100, "recvfrom", fd=7, blocked_s=20), stacks={100: k.REQUESTS}, sockets=[socket])
    assert found(snap) == []


@pytest.mark.parametrize("stack", ["BLPOP", "KOMBU_CONSUMER", "PSYCOPG3_LISTEN"])
def test_no_entry_for_an_idle_subscription_is_no_verdict(stack: str) -> None:
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=600), stacks={100: getattr(k, stack)}, sockets=[tcp(conntrack="absent")]
    )
    assert found(snap) == []


def test_a_consumer_on_a_dead_connection_is_stuck_too() -> None:
    """Its purpose is to wait, but what it sent last (an ack) is not acknowledged: it waits for nobody."""
    snap = snapshot(thread(100, "recvfrom", fd=7, blocked_s=35), stacks={100: k.KOMBU_CONSUMER}, sockets=[black_hole()])
    assert only(snap).confidence == PROVEN


def test_keepalive_probes_without_an_answer() -> None:
    def probed(count: int):  # type: ignore[no-untyped-def]
        socket = tcp(
            timer="keepalive", timer_expires_s=4.0, keepalive=Keepalive(True, 60.0, 10.0, 9, count), last_ack_s=500.0
        )
        return snapshot(thread(100, "recvfrom", fd=7, blocked_s=500), stacks={100: k.BLPOP}, sockets=[socket])

    assert found(probed(0)) == []
    assert found(probed(1)) == []
    assert only(probed(2)).confidence == LIKELY
    assert only(probed(5)).confidence == PROVEN
    assert "keepalive" in only(probed(5)).summary


def test_acks_for_other_data_are_a_path_that_lives() -> None:
    """A path that loses large packets only: the peer is there."""
    finding = only(publisher(last_ack_s=2.0))
    assert finding.confidence == LIKELY
    assert "large segments" in finding.summary


def test_an_unused_connection_of_a_pool_is_not_stuck() -> None:
    snap = snapshot(thread(100), stacks={100: k.POOL_IDLE}, sockets=[black_hole()])
    finding = only(snap)
    assert finding.confidence == POSSIBLE
    assert finding.tid is None
    assert diagnose(snap, BUDGETS).verdict.verdict_class == "healthy"


def test_an_event_loop_does_not_hang_at_once_on_one_of_its_connections() -> None:
    snap = snapshot(
        thread(100, call("epoll_wait", 4, endless=False, timeout_s=1.0), blocked_s=0.2),
        stacks={100: k.ASYNCIO_IDLE},
        sockets=[black_hole(7, age_s=12.0, rto_s=6.4, backoff=5, retransmits=5, last_send_s=6.0)],
        epolls=[epoll(4, watch(7))],
    )
    assert only(snap).confidence == POSSIBLE
    assert diagnose(snap, BUDGETS).verdict.verdict_class == "healthy"


def test_celery_main_on_a_silent_redis() -> None:
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=45),
        stacks={100: k.CELERY_REDIS_READ},
        sockets=[black_hole(remote="10.0.0.3:6379", age_s=45.0)],
        worker=WorkerFact("celery-main", pool="prefork"),
    )
    diagnosis = diagnose(snap, BUDGETS)
    assert diagnosis.verdict.code == "half-open"
    assert "blocked-loop" in [finding.code for finding in diagnosis.findings]
    assert "socket_keepalive" in " ".join(later.do for later in diagnosis.verdict.later)


def test_two_threads_on_one_connection_are_one_finding() -> None:
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=35),
        thread(101, "recvfrom", fd=7, blocked_s=35),
        stacks={100: k.CONFIRM, 101: k.CONFIRM},
        sockets=[black_hole()],
    )
    finding = only(snap)
    assert (finding.tid, finding.explains) == (100, (101,))


def test_a_blocked_send_on_a_dead_path() -> None:
    snap = snapshot(
        thread(100, "sendto", fd=7, blocked_s=20), stacks={100: k.MAIN}, sockets=[black_hole(send_bytes=2_600_000)]
    )
    finding = only(snap)
    assert finding.code == "half-open"
    assert "35 s" in finding.summary, "the outage is older than the moment at which the buffer was full"


@pytest.mark.parametrize(
    ("what", "socket"),
    [
        ("an idle connection with an old ACK", tcp(last_ack_s=86400.0, last_send_s=86400.0, last_receive_s=86400.0)),
        ("idle for days, keepalive answered", tcp(keepalive=Keepalive(True, 60.0, 10.0, 6, 0), timer="keepalive")),
        ("data just sent", tcp(unacked=1, timer="retransmit", last_send_s=0.01)),
        ("one loss that is being repaired", tcp(unacked=3, timer="retransmit", retransmits=1, backoff=1, rto_s=0.4, last_send_s=0.2)),
        ("a closed window", tcp(timer="persist", backoff=6, send_bytes=100_000, unacked=0)),
        ("counters of an outage that healed", tcp(unacked=0, retransmits=0, backoff=0, rto_s=6.5)),
        ("nothing readable", tcp(unacked=None, retransmits=None, backoff=None, rto_s=None, keepalive=None, last_send_s=None)),
        ("udp", tcp(protocol="udp", unacked=None)),
        ("a listener", tcp(state="LISTEN")),
        ("a connect", black_hole(state="SYN_SENT")),
    ],
)  # fmt: skip
def test_look_alikes(what: str, socket) -> None:  # type: ignore[no-untyped-def]
    snap = snapshot(thread(100, "recvfrom", fd=7, blocked_s=3), stacks={100: k.BLPOP}, sockets=[socket])
    assert found(snap) == [], what


def test_unknown_libraries_get_the_socket_options() -> None:
    snap = snapshot(thread(100, "recvfrom", fd=7, blocked_s=35), stacks={100: k.MAIN}, sockets=[black_hole()])
    finding = only(snap)
    assert "TCP_USER_TIMEOUT" in finding.later[0].do
    assert "broker_transport_options" not in finding.later[0].do


def test_a_set_option_is_not_named_as_missing() -> None:
    finding = only(publisher(user_timeout_s=120.0, keepalive=Keepalive(True, 60.0, 10.0, 6, 0)))
    text = " ".join(f"{later.do} {later.why}" for later in finding.later)
    assert "is 0 on this socket" not in text
    assert "2 min" in text


def test_no_python_stack() -> None:
    finding = only(snapshot(thread(100, "recvfrom", fd=7, blocked_s=35), sockets=[black_hole()]))
    assert finding.confidence == PROVEN
    assert finding.frame is None


def test_peer_on_this_node_is_named() -> None:
    finding = only(publisher(peer=peer(812, command="beam.smp")))
    assert "beam.smp" in finding.summary
