"""The logical wait of a thread: its age across polls, its socket, what the call adds to the frames."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import waits
from stucktrace.diagnosis.purposes import Purpose as P
from stucktrace.diagnosis.waits import Wait
from stucktrace.facts import Snapshot

from tests.unit import known_stacks as k
from tests.unit.snapshots import (
    STDLIB,
    activity,
    black_hole,
    call,
    epoll,
    listen,
    lock,
    pipe,
    process,
    snapshot,
    tcp,
    thread,
    watch,
)


def only(snap: Snapshot) -> Wait:
    (wait,) = waits.waits(snap)
    return wait


def test_a_blocking_receive_is_as_old_as_its_sleep() -> None:
    wait = only(snapshot(thread(100, "recvfrom", fd=7, blocked_s=35), stacks={100: k.CONFIRM}, sockets=[black_hole()]))
    assert (wait.age_s, wait.purpose, wait.fd, wait.polls) == (35, P.OWED, 7, False)
    assert wait.socket is not None and wait.socket.remote == "10.0.0.2:5672"


def test_short_polls_are_as_old_as_the_last_data() -> None:
    """psycopg3 polls 100 ms at a time; the statement went out 42 s ago."""
    poll = call("poll", 7, endless=False, timeout_s=0.1)
    wait = only(
        snapshot(
            thread(100, poll, blocked_s=0.03),
            stacks={100: k.PSYCOPG3},
            sockets=[tcp(last_send_s=42.0, last_receive_s=42.1)],
        )
    )
    assert wait.polls
    assert wait.age_s == 42.0
    assert "data" in wait.age_source


def test_retransmits_are_not_data() -> None:
    poll = call("poll", 7, endless=False, timeout_s=0.1)
    wait = only(snapshot(thread(100, poll, blocked_s=0.03), stacks={100: k.PSYCOPG3}, sockets=[black_hole()]))
    assert wait.age_s == pytest.approx(35.0, abs=0.1)


def test_one_long_timeout_is_a_wait_of_its_own() -> None:
    poll = call("poll", 7, endless=False, timeout_s=60.0)
    wait = only(snapshot(thread(100, poll, blocked_s=12.0), stacks={100: k.REQUESTS}, sockets=[tcp(last_send_s=300.0)]))
    assert (wait.age_s, wait.polls) == (12.0, False)


def test_an_epoll_set_of_one_connection_is_that_connection() -> None:
    wait = only(
        snapshot(
            thread(100, call("epoll_wait", 4, endless=False, timeout_s=0.5)),
            stacks={100: k.PIKA_CONSUMER},
            sockets=[tcp(7), tcp(8, family="unix", protocol="unix-stream", remote="", local="")],
            epolls=[epoll(4, watch(7), watch(8))],
        )
    )
    assert wait.socket is not None and wait.socket.fds == (7,)
    assert wait.fds == (7, 8)
    assert wait.purpose is P.SUBSCRIPTION


def test_a_poll_of_many_connections_is_about_none() -> None:
    poll = call("poll", None, fds=(7, 8))
    assert only(snapshot(thread(100, poll), sockets=[tcp(7), tcp(8)])).socket is None


def test_a_thread_that_computes_waits_for_nothing() -> None:
    assert waits.waits(snapshot(thread(100, None))) == ()


def test_without_calls_a_sleeping_thread_has_its_frames() -> None:
    bare = thread(100, None, state="S")
    wait = only(snapshot(bare, stacks={100: k.BLPOP}))
    assert (wait.purpose, wait.call, wait.age_s) == (P.SUBSCRIPTION, "", None)


def test_c_calls_have_no_frame() -> None:
    """The innermost Python frame is the caller's: only the call tells what it does."""
    for name, purpose in (
        ("clock_nanosleep", P.SLEEP),
        ("connect", P.CONNECT),
        ("accept4", P.WORK),
        ("wait4", P.JOIN),
        ("flock", P.LOCK),
        ("pause", P.WORK),
    ):
        wait = only(snapshot(thread(100, name, fd=7), stacks={100: k.MAIN}, sockets=[tcp(7, state="SYN_SENT")]))
        assert wait.purpose is purpose, name


def test_sleeping_between_attempts_is_not_a_request() -> None:
    assert only(snapshot(thread(100, "clock_nanosleep"), stacks={100: k.RETRY_CONNECT})).purpose is P.RETRY
    assert only(snapshot(thread(100, "clock_nanosleep"), stacks={100: k.REDIS_GET})).purpose is P.SLEEP
    assert only(snapshot(thread(100, "clock_nanosleep"), stacks={100: k.CELERY_BEAT})).purpose is P.WORK


def test_a_name_says_nothing_about_a_lock() -> None:
    """consume() may well hang in a lock that it takes."""
    stack = [f"consume {k.APP}:5", *k.MAIN]
    wait = only(snapshot(thread(100, "futex"), stacks={100: stack}, locks=[lock(100)]))
    assert wait.purpose is P.UNKNOWN
    assert wait.lock is not None


def test_a_listening_socket_is_work() -> None:
    poll = call("poll", 5)
    assert only(snapshot(thread(100, poll), stacks={100: k.MAIN}, sockets=[listen(5)])).purpose is P.WORK


def test_a_resolver_is_known_by_its_socket() -> None:
    udp = tcp(9, protocol="udp", remote="127.0.0.53:53", state="ESTABLISHED")
    poll = call("poll", 9, endless=False, timeout_s=5.0)
    assert only(snapshot(thread(100, poll, blocked_s=4.0), stacks={100: k.MAIN}, sockets=[udp])).purpose is P.RESOLVE


LIBPQ = process(hooked_c_clients=("libpq",), packages={"psycopg2": "2.9.9"})


def test_libpq_waits_without_a_frame() -> None:
    poll = call("poll", 7, waits_to="read")
    wait = only(
        snapshot(
            thread(100, poll, blocked_s=40),
            stacks={100: k.MAIN},
            sockets=[tcp(remote="10.0.0.2:5432", last_send_s=40.0, last_receive_s=40.0)],
            process=LIBPQ,
        )
    )
    assert wait.purpose is P.REQUEST


@pytest.mark.parametrize(
    ("what", "poll", "socket"),
    [
        ("select over a LISTEN connection", call("select", 7), tcp()),
        ("several fds", call("poll", None, fds=(7, 8)), tcp()),
        ("a poll with an end", call("poll", 7, endless=False, timeout_s=30.0), tcp()),
        ("data came last", call("poll", 7, waits_to="read"), tcp(last_send_s=600.0, last_receive_s=2.0)),
        ("an inbound connection", call("poll", 7, waits_to="read"), tcp(direction="in")),
        ("the program's own select.poll(), POLLIN alone", call("poll", 7, waits_to="read", poll_events=1), tcp()),
        ("the same with POLLPRI, POLLERR and POLLHUP", call("poll", 7, waits_to="read", poll_events=27), tcp()),
    ],
)
def test_not_libpq(what: str, poll, socket) -> None:  # type: ignore[no-untyped-def]
    wait = only(snapshot(thread(100, poll), stacks={100: k.MAIN}, sockets=[socket], process=LIBPQ))
    assert wait.purpose is P.UNKNOWN, what


def test_libpq_asks_for_errors_by_name() -> None:
    poll = call("poll", 7, waits_to="read", poll_events=1 | 8)
    wait = only(snapshot(thread(100, poll), stacks={100: k.MAIN}, sockets=[tcp()], process=LIBPQ))
    assert wait.purpose is P.REQUEST


def test_a_connection_between_processes_is_no_database() -> None:
    """`Connection.poll(None)` of a socket pair, in a worker that has psycopg2 loaded."""
    stack = [
        f"_PollLikeSelector.select {STDLIB}selectors.py:415",
        f"wait {STDLIB}multiprocessing/connection.py:930",
        f"Connection._poll {STDLIB}multiprocessing/connection.py:440",
        f"_ConnectionBase.poll {STDLIB}multiprocessing/connection.py:257",
        *k.MAIN,
    ]
    pair = tcp(family="unix", protocol="unix-stream", state="CONNECTED", local="", remote="", last_send_s=None,
               last_receive_s=None)  # fmt: skip
    facts = snapshot(thread(100, call("poll", 7, waits_to="read")), stacks={100: stack}, sockets=[pair], process=LIBPQ)
    assert only(facts).purpose is P.UNKNOWN


def test_without_libpq_a_poll_is_just_a_poll() -> None:
    wait = only(snapshot(thread(100, call("poll", 7, waits_to="read")), stacks={100: k.MAIN}, sockets=[tcp()]))
    assert wait.purpose is P.UNKNOWN


@pytest.mark.parametrize(
    ("link", "purpose"),
    [
        ("/dev/pts/3", P.WORK),
        ("anon_inode:inotify", P.WORK),
        ("anon_inode:[signalfd]", P.WORK),
        ("anon_inode:[timerfd]", P.SLEEP),
        ("anon_inode:[eventfd]", P.CONDITION),
        ("/data/file", P.UNKNOWN),
    ],
)
def test_files_whose_reads_are_waits(link: str, purpose: P) -> None:
    assert only(snapshot(thread(100, "read", fd=0), stacks={100: k.MAIN}, fds={0: link})).purpose is purpose


def test_a_pipe() -> None:
    wait = only(snapshot(thread(100, "read", fd=12), stacks={100: k.CELERY_CHILD}, pipes=[pipe(12)]))
    assert wait.pipe is not None and wait.socket is None and wait.fd == 12


def test_sends() -> None:
    assert only(snapshot(thread(100, "sendto", fd=7), sockets=[tcp()])).sends
    assert only(snapshot(thread(100, call("poll", 7, waits_to="write")), sockets=[tcp()])).sends
    assert not only(snapshot(thread(100, "recvfrom", fd=7), sockets=[tcp()])).sends


def test_still() -> None:
    poll = call("poll", 7, endless=False, timeout_s=0.1)

    def seen(**more):  # type: ignore[no-untyped-def]
        socket = more.pop("socket", tcp(window_received_bytes=0, window_acked_bytes=0))
        return only(snapshot(thread(100, more.pop("call", poll), **more.pop("facts", {})), sockets=[socket], **more))

    assert seen().still is None, "one look tells nothing"
    assert seen(window_s=1.0).still is True
    assert seen(window_s=1.0, socket=tcp(window_received_bytes=120)).still is False
    assert seen(window_s=1.0, activity=[activity(100, "recvfrom", 7, 3, moved_bytes=99)]).still is False
    slept = {"slept_through": True}
    assert seen(window_s=1.0, call="recvfrom", facts=slept).still is True
    assert seen(window_s=1.0, call="recvfrom", facts={"slept_through": False}).still is False


def test_two_thousand_threads() -> None:
    snap = snapshot(*(thread(100 + n) for n in range(2000)), stacks={100 + n: k.POOL_IDLE for n in range(2000)})
    assert len(waits.waits(snap)) == 2000
    assert waits.waits(snap) is waits.waits(snap)
