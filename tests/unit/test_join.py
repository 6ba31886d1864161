"""Two looks as one snapshot, and when a second look is worth its time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace import join
from stucktrace.facts import (
    EpollFact,
    EpollWatch,
    Frame,
    ProcessFact,
    PythonFact,
    PythonThread,
    Seen,
    SocketFact,
    Syscall,
    ThreadFact,
)

PROCESS = ProcessFact(100, 100, 1, 5, "python", ("python",), "S")
SOCKET = SocketFact(
    fds=(7,), inode=70, family="inet", protocol="tcp", state="ESTABLISHED", local="10.0.0.1:5", remote="10.0.0.2:6",
    bytes_received=100, bytes_acked=50,
)  # fmt: skip


def thread(call: Syscall | None, *, state: str = "S", blocked_s: float | None = 12.0) -> ThreadFact:
    return ThreadFact(100, 100, "MainThread", state, call, blocked_s=blocked_s)


def call(name: str, fd: int | None = None, **rest: object) -> Syscall:
    return replace(Syscall(0, name, (), fd, (fd,) if fd is not None else ()), **rest)  # type: ignore[arg-type]


def look(seen: ThreadFact, *functions: str) -> join.Look:
    frames = tuple(Frame(function, "/app/main.py", 1) for function in functions)
    return join.Look(1.0, (seen,), python=PythonFact("3.11.2", (PythonThread(100, "MainThread", frames),)))


def test_what_arrived_between_two_looks():
    (now,) = join.compared([SOCKET], [replace(SOCKET, bytes_received=130, bytes_acked=50)])
    assert (now.window_received_bytes, now.window_acked_bytes) == (30, 0)


def test_a_new_socket_has_no_window():
    (now,) = join.compared([], [SOCKET])
    assert now.window_received_bytes is None


@pytest.mark.parametrize(
    "later",
    [replace(SOCKET, bytes_received=20), replace(SOCKET, remote="10.0.0.3:6", bytes_received=130)],
    ids=["counter went back", "other peer on the same inode"],
)
def test_another_socket_in_its_place_has_no_window(later: SocketFact):
    (now,) = join.compared([SOCKET], [later])
    assert now.window_received_bytes is None


def test_unknown_counters_stay_unknown():
    (now,) = join.compared([replace(SOCKET, bytes_received=None)], [SOCKET])
    assert now.window_received_bytes is None


def test_a_snapshot_of_one_look_has_no_window():
    made = join.snapshot(PROCESS, join.Look(5.0, sockets=(SOCKET,), fds={7: "socket:[70]"}), Seen("none"))
    assert (made.window_s, made.activity_complete, made.sockets[0].window_received_bytes) == (0.0, False, None)
    assert made.fds_complete


def test_a_snapshot_of_two_looks():
    first = join.Look(5.0, sockets=(SOCKET,))
    second = join.Look(5.5, sockets=(replace(SOCKET, bytes_received=101),))
    made = join.snapshot(PROCESS, second, Seen("none"), first, join.Window(0.5, complete=True))
    assert (made.time, made.window_s, made.activity_complete) == (5.5, 0.5, True)
    assert made.sockets[0].window_received_bytes == 1


def test_an_fd_table_that_could_not_be_read_is_not_an_empty_one():
    made = join.snapshot(PROCESS, join.Look(5.0), Seen("none"))
    assert not made.fds_complete


def test_details_for_the_sockets_that_threads_wait_on():
    epolls = [EpollFact(3, (EpollWatch(8, 1, 80, True), EpollWatch(9, 1, 90, False), EpollWatch(4, 1, 40, True)))]
    threads = [thread(call("recvfrom", 7)), thread(call("epoll_wait", 3)), thread(None), thread(call("read", 5))]
    assert join.waited_fds(threads, epolls, {6, 7, 8, 9}) == {7, 8}


def test_details_are_bounded_for_a_loop_with_thousands_of_sockets():
    watches = tuple(EpollWatch(fd, 1, fd, True) for fd in range(10, 5_000))
    waited = join.waited_fds([thread(call("epoll_wait", 3))], [EpollFact(3, watches)], set(range(5_000)))
    assert len(waited) == join.MOST_EPOLL_DETAILS


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (thread(call("recvfrom", 7, endless=True)), False),
        (thread(call("recvfrom", 7)), False),
        (thread(call("futex", endless=True)), False),
        (thread(call("poll", 7, endless=False, timeout_s=30.0)), False),
        (thread(call("poll", 7, endless=False, timeout_s=0.1), blocked_s=0.05), True),
        (thread(call("poll", 7), blocked_s=0.05), True),
        (thread(call("futex", endless=False, timeout_s=0.005), blocked_s=0.003), True),
        (thread(None, state="R", blocked_s=None), True),
        (thread(call("sched_yield"), state="R", blocked_s=None), True),
        (thread(call("epoll_wait", 3, endless=True), blocked_s=0.0001), True),
        (thread(call("recvfrom", 7), blocked_s=None), True),
        (thread(call("recvfrom", 7), state="T", blocked_s=None), False),
        (thread(None, state="Z", blocked_s=None), False),
    ],
)
def test_a_second_look_only_where_ages_do_not_decide(seen: ThreadFact, wanted: bool):
    assert join.undecided(look(seen, "handle", "<module>")) is wanted


def test_one_restless_thread_is_enough():
    calm = thread(call("recvfrom", 7, endless=True))
    assert join.undecided(join.Look(1.0, (calm, replace(calm, tid=101, state="R", blocked_s=None))))


def test_a_poller_met_awake_is_shown_in_its_poll() -> None:
    """psycopg3 sleeps 100 ms at a time; the second look may come between two sleeps."""
    poll = Syscall(7, "poll", (0,) * 6, fd=3, fds=(3,), endless=False, timeout_s=0.1)
    asleep = ThreadFact(100, 100, "python3", "S", syscall=poll, blocked_s=0.05)
    awake = ThreadFact(100, 100, "python3", "R", cpu_s_in_window=0.01)
    (shown,) = join.polling([asleep], [awake], 0.5)
    assert (shown.state, shown.syscall) == ("S", poll)
    busy = replace(awake, cpu_s_in_window=0.45)
    assert join.polling([asleep], [busy], 0.5) == (busy,)
    endless = replace(asleep, syscall=replace(poll, endless=True, timeout_s=None))
    assert join.polling([endless], [awake], 0.5) == (awake,), "it got what it waited for"
    assert join.polling([], [awake], 0.5) == (awake,)


def resolving(blocked_s: float) -> join.Look:
    poll = Syscall(7, "poll", (0,) * 6, fd=3, fds=(3,), endless=False, timeout_s=5.0)
    frame = Frame("getaddrinfo", "/usr/lib/python3.11/socket.py", 962)
    seen = ThreadFact(100, 100, "python3", "S", syscall=poll, blocked_s=blocked_s)
    return join.Look(1.0, (seen,), python=PythonFact("3.11.2", (PythonThread(100, "MainThread", (frame,)),)))


def test_a_young_query_is_watched_until_it_can_be_judged() -> None:
    assert join.undecided(resolving(1.0))
    assert join.window_s(resolving(1.0), 0.5) == pytest.approx(2.2)
    assert not join.undecided(resolving(3.4)), "old enough; a window could only cross its timeout"
    assert join.window_s(look(thread(call("poll", 7, endless=False, timeout_s=0.1), blocked_s=0.05)), 0.5) == 0.5
