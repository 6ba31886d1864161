"""`connect-failing` and `dns-unanswered`, and the waits that look like them."""

from __future__ import annotations

import errno

import pytest
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, Budgets, Finding
from stucktrace.diagnosis.network_connect import connect_failing, dns_unanswered
from stucktrace.facts import ConntrackFact, Snapshot, TcpEvent

from tests.unit import known_stacks as k
from tests.unit.snapshots import SITE, activity, call, snapshot, tcp, thread

BUDGETS = Budgets()


def failing(snap: Snapshot) -> list[Finding]:
    return list(connect_failing(snap, BUDGETS))


def resolving(snap: Snapshot) -> list[Finding]:
    return list(dns_unanswered(snap, BUDGETS))


def syn(**more):  # type: ignore[no-untyped-def]
    values = {"state": "SYN_SENT", "unacked": 1, "retransmits": 3, "backoff": 3, "rto_s": 8.0, "timer": "retransmit",
              "timer_expires_s": 4.0, "last_send_s": None, "last_receive_s": None, "last_ack_s": None}  # fmt: skip
    return tcp(7, **(values | more))


def test_a_connect_that_nobody_answers() -> None:
    snap = snapshot(thread(100, "connect", fd=7, blocked_s=11.0), stacks={100: k.MAIN}, sockets=[syn()])
    (finding,) = failing(snap)
    assert (finding.code, finding.confidence, finding.fd) == ("connect-failing", LIKELY, 7)
    for word in ("11 s", "10.0.0.2:5672", "SYN", "gives up"):
        assert word in finding.summary
    assert diagnose(snap, BUDGETS).verdict.code == "connect-failing"


def test_a_connect_with_a_timeout_is_as_old_as_its_syns() -> None:
    """A connect with a timeout polls; the SYN's own timers tell since when it goes on."""
    poll = call("poll", 7, endless=False, timeout_s=4.0, waits_to="write")
    (finding,) = failing(snapshot(thread(100, poll, blocked_s=0.5), stacks={100: k.MAIN}, sockets=[syn()]))
    assert "11 s" in finding.summary


HOST = "the network namespace of pid 1"


def refused(drops: int | None = 12, assumes: str = "", conntrack: str = "absent", where: str = HOST) -> Finding:
    """A connect on a node whose conntrack table is full."""
    socket = syn(conntrack=conntrack, conntrack_where=where, conntrack_assumes=assumes)
    table = ConntrackFact(1, 262144, 262144, drop=901, where=HOST, window_drop=drops)
    snap = snapshot(thread(100, "connect", fd=7, blocked_s=11.0), sockets=[socket], conntrack=(table,))
    (finding,) = failing(snap)
    return finding


def test_a_full_conntrack_table_is_why() -> None:
    finding = refused()
    assert finding.confidence == PROVEN and f"the conntrack table of {HOST} is full" in finding.summary
    assert {"count": 262144, "drop": 901}.items() <= {line.what: line.value for line in finding.evidence}.items()
    assert "524288" in finding.now[1].do
    assumed = refused(assumes="the connection goes through there")
    assert assumed.confidence == LIKELY and "is full" in assumed.summary


@pytest.mark.parametrize(
    "changes", [{"drops": 0}, {"drops": None}, {"conntrack": "present"}, {"where": "the target's network namespace"}]
)
def test_a_full_table_that_let_it_through_or_drops_nothing_is_not(changes) -> None:  # type: ignore[no-untyped-def]
    assert "conntrack" not in refused(**changes).summary


def test_long_or_with_an_answer_of_the_network_it_is_proven() -> None:
    old = snapshot(thread(100, "connect", fd=7, blocked_s=40.0), sockets=[syn(retransmits=5, backoff=5, rto_s=32.0)])
    assert failing(old)[0].confidence == PROVEN
    told = snapshot(thread(100, "connect", fd=7, blocked_s=8.0), sockets=[syn(soft_error=errno.EHOSTUNREACH)])
    assert failing(told)[0].confidence == PROVEN
    assert "EHOSTUNREACH" in " ".join(line.text for line in failing(told)[0].evidence)


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("young", snapshot(thread(100, "connect", fd=7, blocked_s=0.5),
                           sockets=[syn(retransmits=0, backoff=0, rto_s=1.0, timer_expires_s=0.5)])),
        ("one lost SYN", snapshot(thread(100, "connect", fd=7, blocked_s=1.5),
                                  sockets=[syn(retransmits=1, backoff=1, rto_s=2.0, timer_expires_s=1.5)])),
        ("a loop connects in the background", snapshot(
            thread(100, call("epoll_wait", 4), blocked_s=20.0), stacks={100: k.ASYNCIO_IDLE}, sockets=[syn()])),
        ("connected", snapshot(thread(100, "recvfrom", fd=7), stacks={100: k.BLPOP}, sockets=[tcp()])),
        ("back-off of a task", snapshot(thread(100, "clock_nanosleep"), stacks={100: k.RETRY_TASK})),
        ("a plain sleep", snapshot(thread(100, "clock_nanosleep"), stacks={100: k.MAIN})),
    ],
)  # fmt: skip
def test_not_failing(what: str, snap: Snapshot) -> None:
    assert failing(snap) == [], what


def refusals(count: int, **more):  # type: ignore[no-untyped-def]
    return TcpEvent(
        "error", None, "10.0.0.1:50000", "10.0.0.2:5672", count, error=more.get("error", errno.ECONNREFUSED)
    )


def test_refused_again_and_again_under_a_loop_of_ones_own() -> None:
    snap = snapshot(
        thread(100, "clock_nanosleep", blocked_s=0.1), stacks={100: [f"send {k.APP}:9", *k.MAIN]},
        tcp_events=[refusals(2)], window_s=1.0,
    )  # fmt: skip
    (finding,) = failing(snap)
    assert finding.confidence == LIKELY
    for word in ("10.0.0.2:5672", "ECONNREFUSED", "again and again"):
        assert word in finding.summary


def test_a_service_that_is_reached_at_its_second_address() -> None:
    """`localhost` is ::1 first, where nobody listens, and 127.0.0.1, where the server is."""
    refused = TcpEvent("error", None, "[::1]:50000", "[::1]:8000", 11, error=errno.ECONNREFUSED)
    reached = TcpEvent("state", 7001, "127.0.0.1:50002", "127.0.0.1:8000", 1, new_state="ESTABLISHED")
    other = TcpEvent("state", 7001, "127.0.0.1:50002", "127.0.0.1:9000", 1, new_state="ESTABLISHED")
    sleeping = thread(100, "clock_nanosleep", blocked_s=0.04)
    connects = activity(100, "connect", 9, 22, last_error=errno.ECONNREFUSED)
    values = {"stacks": {100: k.MAIN}, "window_s": 0.5, "activity": [connects]}
    assert failing(snapshot(sleeping, tcp_events=[refused, reached], **values)) == []
    assert failing(snapshot(sleeping, tcp_events=[refused, other], **values))


def test_one_refusal_is_an_accident() -> None:
    snap = snapshot(thread(100, "clock_nanosleep"), stacks={100: k.MAIN}, tcp_events=[refusals(1)], window_s=1.0)
    assert failing(snap) == []


def test_one_refusal_between_the_sleeps_of_a_retry_is_not() -> None:
    snap = snapshot(
        thread(100, "clock_nanosleep"), stacks={100: k.RETRY_CONNECT}, tcp_events=[refusals(1)], window_s=1.0
    )
    (finding,) = failing(snap)
    assert "retry_over_time" in finding.summary


def test_refusals_are_counted_by_the_calls_too() -> None:
    snap = snapshot(
        thread(100, "clock_nanosleep"), stacks={100: k.MAIN}, window_s=1.0,
        activity=[activity(100, "connect", 9, 4, last_error=errno.ECONNREFUSED)],
    )  # fmt: skip
    (finding,) = failing(snap)
    assert finding.confidence == PROVEN


def test_a_connect_in_progress_is_no_failure() -> None:
    snap = snapshot(
        thread(100, "clock_nanosleep"), stacks={100: k.MAIN}, window_s=1.0,
        activity=[activity(100, "connect", 9, 4, last_error=errno.EINPROGRESS)],
    )  # fmt: skip
    assert failing(snap) == []


def test_between_two_attempts_to_connect() -> None:
    snap = snapshot(thread(100, "clock_nanosleep", blocked_s=0.4), stacks={100: k.RETRY_CONNECT})
    (finding,) = failing(snap)
    assert finding.confidence == LIKELY
    assert "_ensure_connection" in finding.summary


def test_a_bounded_retry_of_redis_is_only_possible() -> None:
    stack = [
        f"Retry.call_with_retry {SITE}redis/retry.py:120",
        f"AbstractConnection.connect {SITE}redis/connection.py:1030",
        *k.MAIN,
    ]
    (finding,) = failing(snapshot(thread(100, "clock_nanosleep"), stacks={100: stack}))
    assert finding.confidence == POSSIBLE


def udp(remote: str = "10.0.0.53:53", fd: int = 9):  # type: ignore[no-untyped-def]
    return tcp(fd, protocol="udp", remote=remote, unacked=None, last_send_s=None, last_receive_s=None, keepalive=None)


def query(age_s: float, *sockets, **more):  # type: ignore[no-untyped-def]
    poll = call("poll", 9, endless=False, timeout_s=5.0)
    return snapshot(thread(100, poll, blocked_s=age_s), stacks={100: k.RESOLVE}, sockets=sockets or [udp()], **more)


def test_a_resolver_that_does_not_answer() -> None:
    assert resolving(query(1.0)) == []
    (finding,) = resolving(query(4.2))
    assert (finding.code, finding.confidence) == ("dns-unanswered", LIKELY)
    for word in ("10.0.0.53:53", "4.2 s", "create_connection"):
        assert word in finding.summary
    assert diagnose(query(4.2), BUDGETS).verdict.code == "dns-unanswered"


def test_the_local_stub_counts_as_a_resolver() -> None:
    assert resolving(query(4.2, udp("127.0.0.53:53")))


def test_a_query_that_timed_out_in_the_window() -> None:
    snap = query(0.4, window_s=1.0, activity=[activity(100, "poll", 9, 1, empty=1)])
    assert "timeout" in resolving(snap)[0].summary


def test_the_second_resolver_after_the_first_was_silent() -> None:
    assert resolving(query(1.5, udp("10.0.0.53:53", 9), udp("10.0.0.54:53", 10)))


def test_a_query_over_tcp() -> None:
    over_tcp = tcp(9, remote="10.0.0.53:53")
    assert resolving(query(4.2, over_tcp)) == []
    assert resolving(query(6.0, over_tcp))


def test_a_name_service_on_a_unix_socket() -> None:
    nscd = tcp(9, family="unix", protocol="unix-stream", state="CONNECTED", local="", remote="/run/nscd/socket")
    assert resolving(query(6.0, nscd))


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("a server on port 53", snapshot(
            thread(100, "recvfrom", fd=9, blocked_s=600),
            sockets=[tcp(9, protocol="udp", local="0.0.0.0:53", remote="", state="")])),
        ("udp to somewhere else", snapshot(
            thread(100, "recvfrom", fd=9, blocked_s=600), stacks={100: k.MAIN}, sockets=[udp("10.0.0.9:8125")])),
        ("a lock in the resolver", snapshot(thread(100, "futex", blocked_s=600), stacks={100: k.RESOLVE})),
    ],
)  # fmt: skip
def test_not_unanswered(what: str, snap: Snapshot) -> None:
    assert resolving(snap) == [], what
