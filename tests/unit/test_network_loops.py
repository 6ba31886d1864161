"""Connections that only an event loop watches, from literal snapshots: dead ones, and loops that have nothing wrong."""

import pytest

from tests.unit.snapshots import black_hole, call, codes, epoll, peer, snapshot, tcp, thread, verdict, watch

ASYNCIO = [
    "EpollSelector.select /usr/lib/python3.11/selectors.py:468",
    "BaseEventLoop._run_once /usr/lib/python3.11/asyncio/base_events.py:1884",
    "BaseEventLoop.run_forever /usr/lib/python3.11/asyncio/base_events.py:607",
    "<module> /srv/app/main.py:3",
]


def resting(*sockets, events=1, stack=ASYNCIO, timeout_s=None, **more):
    syscall = call("epoll_wait", 3, endless=timeout_s is None, timeout_s=timeout_s)
    watches = [watch(socket.fds[0], events=events) for socket in sockets]
    wakeup = tcp(6, family="unix", protocol="unix-stream", local="", remote="")
    return snapshot(
        thread(syscall=syscall, **more),
        stacks={100: stack},
        sockets=[*sockets, wakeup],
        epolls=[epoll(3, *watches, watch(6))],
    )


def test_a_dead_connection_of_a_task():
    found = verdict(resting(black_hole(7, age_s=42.0, rto_s=30.0), tcp(8)))
    assert (found.code, found.confidence, found.fd) == ("half-open", "likely", 7)
    assert "10.0.0.2:5672" in found.summary and "event loop" in found.summary
    assert any(line.what == "unacked" for line in found.evidence)


def test_a_young_outage_is_told_and_is_no_verdict():
    facts = resting(black_hole(7, age_s=8.0, retransmits=5, backoff=5, rto_s=6.4, last_send_s=1.0), tcp(8))
    assert codes(facts)[0][0] == "idle"


def test_an_evicted_entry_shows_at_once():
    """A Celery main's connection to its broker: the main thread never waits on it alone."""
    young = {"age_s": 0.7, "retransmits": 1, "backoff": 1, "rto_s": 0.4, "last_send_s": 0.1, "conntrack": "absent"}
    where = {"conntrack_where": "the network namespace router", "conntrack_seen_s": 12.0}
    lost = black_hole(7, **young, **where)
    found = verdict(resting(lost, tcp(8)))
    assert (found.code, found.confidence, found.fd) == ("half-open", "proven", 7)
    assert (
        f"conntrack in the network namespace router has lost the entry of {lost.local} -> {lost.remote}"
        in found.summary
    )
    assert any("it was there 12 s ago" in line.text for line in found.evidence)
    once = black_hole(7, **young, **where, conntrack_assumes="a rule drops it")
    assert codes(resting(once, tcp(8)))[0][0] == "idle"
    twice = black_hole(7, **{**young, "retransmits": 2}, **where, conntrack_assumes="a rule drops it")
    assert codes(resting(twice, tcp(8)))[0] == ("half-open", "likely")
    inferred = black_hole(7, **{**young, "retransmits": 2}, conntrack_assumes="a rule drops it")
    assert codes(resting(inferred, tcp(8)))[0][0] == "idle"


def test_a_client_that_went_away_is_its_own_business():
    assert verdict(resting(black_hole(7, direction="in"), tcp(8))).verdict_class == "healthy"


def test_kept_alive_connections_at_rest():
    assert verdict(resting(tcp(7, last_ack_s=86400.0), tcp(8, last_send_s=900.0, last_receive_s=900.0))).code == "idle"


def test_a_connect_that_is_not_answered():
    syn = tcp(7, state="SYN_SENT", retransmits=5, backoff=5, rto_s=32.0, timer="retransmit", timer_expires_s=20.0)
    found = verdict(resting(syn, tcp(8)))
    assert (found.code, found.confidence) == ("connect-failing", "likely")


@pytest.mark.parametrize(("events", "code"), [(5, "peer-not-reading"), (1, "idle")])
def test_a_closed_window(events, code):
    full = tcp(7, timer="persist", send_bytes=600_000, backoff=8, rto_s=0.2, timer_expires_s=10.0)
    assert verdict(resting(full, tcp(8), events=events)).code == code


@pytest.mark.parametrize(("unread", "code"), [(300, "peer-silent"), (0, "idle")])
def test_a_stopped_peer_on_this_node(unread, code):
    asked = tcp(7, peer=peer(812, unread_bytes=unread, holder_state="T"))
    assert verdict(resting(asked, tcp(8))).code == code


def test_a_wakeup_pair_on_loopback_hides_no_connection():
    """pika polls its connection beside a pair of TCP sockets with itself, 5 s at a time."""
    pair = [
        tcp(4, local="127.0.0.1:5001", remote="127.0.0.1:5002", peer=peer(100)),
        tcp(5, local="127.0.0.1:5002", remote="127.0.0.1:5001", peer=peer(100)),
    ]
    dead = black_hole(7, age_s=42.0, rto_s=30.0)
    facts = snapshot(
        thread(syscall=call("epoll_wait", 3, endless=False, timeout_s=5.0), blocked_s=2.0),
        stacks={
            100: [
                "PollPoller.poll /v/lib/python3.11/site-packages/pika/adapters/select_connection.py:1240",
                "BlockingConnection._flush_output "
                "/v/lib/python3.11/site-packages/pika/adapters/blocking_connection.py:520",
                "BlockingChannel.basic_publish "
                "/v/lib/python3.11/site-packages/pika/adapters/blocking_connection.py:2267",
            ]
        },
        sockets=[*pair, dead],
        epolls=[epoll(3, watch(4), watch(7))],
    )
    found = verdict(facts)
    assert (found.code, found.confidence, found.fd) == ("half-open", "proven", 7)
