"""Decoding of system calls: literal arguments, with sets and timespecs in this process's own memory."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time

import pytest
from stucktrace.collectors import syscall_names, syscalls
from stucktrace.facts import Syscall

MINUS_ONE = 0xFFFFFFFFFFFFFFFF
KEPT: list[object] = []


def memory(data: bytes) -> int:
    """The address of these bytes in this process."""
    buffer = ctypes.create_string_buffer(data, len(data))
    KEPT.append(buffer)
    return ctypes.addressof(buffer)


def timespec(seconds: float) -> int:
    return memory(struct.pack("=qq", int(seconds), int(seconds % 1 * 1e9)))


def decode(name: str, *args: int, since_ns: int | None = None, wchan: str = "") -> Syscall:
    # Names that this architecture lacks get a number of their own, so that the decoding is tested all the same.
    numbers = {**syscalls.NUMBERS, **{known: number for number, known in syscall_names.X86_64.items()}}
    names = {numbers[name]: name}
    padded = (*args, *(0,) * (6 - len(args)))
    before = syscalls.NAMES
    syscalls.NAMES = {**before, **names}
    try:
        return syscalls.decode(os.getpid(), numbers[name], padded, since_ns, wchan)
    finally:
        syscalls.NAMES = before


def poll_set(*entries: tuple[int, int]) -> int:
    return memory(b"".join(struct.pack("=ihh", fd, events, 0) for fd, events in entries))


def fd_set(*fds: int) -> int:
    return memory(sum(1 << fd for fd in fds).to_bytes(128, "little"))


@pytest.mark.parametrize(
    ("name", "waits_to"),
    [
        ("read", "read"),
        ("recvfrom", "read"),
        ("recvmsg", "read"),
        ("accept4", "read"),
        ("write", "write"),
        ("sendto", "write"),
        ("sendmsg", "write"),
        ("connect", "connect"),
        ("epoll_wait", ""),
        ("flock", ""),
    ],
)
def test_the_fd_of_a_call_on_one_fd(name, waits_to):
    call = decode(name, 7, 4096, 10)
    assert (call.name, call.fd, call.fds, call.waits_to) == (name, 7, (7,), waits_to)


def test_an_fd_of_minus_one_is_none():
    call = decode("recvfrom", 0xFFFFFFFF, 4096, 10)
    assert (call.fd, call.fds) == (None, ())


@pytest.mark.parametrize(
    ("events", "waits_to"),
    [
        (select.POLLIN, "read"),
        (select.POLLIN | select.POLLPRI, "read"),
        (select.POLLOUT, "write"),
        (select.POLLIN | select.POLLOUT, ""),
        (0, "read"),
    ],
)
def test_poll_on_one_fd(events, waits_to):
    call = decode("poll", poll_set((5, events)), 1, 1500)
    assert (call.fd, call.fds, call.waits_to) == (5, (5,), waits_to)
    assert (call.endless, call.timeout_s) == (False, 1.5)


def test_the_events_of_a_poll_on_one_fd():
    assert decode("poll", poll_set((5, select.POLLIN | select.POLLERR)), 1, 1500).poll_events == 9
    assert decode("poll", poll_set((5, 1), (6, 1)), 2, 1500).poll_events is None
    assert decode("poll", 0xDEAD0000, 1, 100).poll_events is None


def test_poll_on_several_fds_leaves_out_the_negative_ones():
    call = decode("poll", poll_set((5, select.POLLIN), (-1, select.POLLIN), (9, select.POLLIN)), 3, 0xFFFFFFFF)
    assert (call.fd, call.fds, call.waits_to) == (None, (5, 9), "read")
    assert (call.endless, call.timeout_s) == (True, None)


def test_poll_on_nothing_and_on_memory_that_is_not_there():
    assert decode("poll", 0, 0, 100).fds == ()
    lost = decode("poll", 0xDEAD0000, 4, 100)
    assert (lost.fds, lost.fd, lost.timeout_s) == ((), None, 0.1)
    assert decode("poll", 4096, MINUS_ONE, 100).fds == ()


def test_ppoll_takes_a_timespec():
    assert decode("ppoll", poll_set((5, 1)), 1, timespec(2.5)).timeout_s == pytest.approx(2.5)
    assert decode("ppoll", poll_set((5, 1)), 1, 0).endless is True


def test_select_sets():
    call = decode("pselect6", 70, fd_set(3, 69), fd_set(4), 0, timespec(1))
    assert (call.fds, call.fd, call.waits_to) == ((3, 69, 4), None, "")
    assert (call.endless, call.timeout_s) == (False, 1.0)
    call = decode("select", 8, fd_set(3), 0, fd_set(3), memory(struct.pack("=qq", 2, 250_000)))
    assert (call.fds, call.fd, call.waits_to) == ((3,), 3, "read")
    assert call.timeout_s == pytest.approx(2.25)
    call = decode("select", 8, 0, fd_set(6), 0, 0)
    assert (call.fd, call.waits_to, call.endless) == (6, "write", True)


def test_select_counts_only_fds_below_its_first_argument():
    assert decode("select", 5, fd_set(3, 7), 0, 0, 0).fds == (3,)


def test_select_as_a_sleep():
    call = decode("pselect6", 0, 0, 0, 0, timespec(0.5))
    assert (call.fds, call.fd, call.timeout_s) == ((), None, 0.5)


@pytest.mark.parametrize("name", ["epoll_wait", "epoll_pwait"])
def test_epoll_timeouts(name):
    assert decode(name, 4, 4096, 10, 0xFFFFFFFF).endless is True
    assert decode(name, 4, 4096, 10, MINUS_ONE).endless is True
    assert decode(name, 4, 4096, 10, 2000).timeout_s == 2.0
    assert decode("epoll_pwait2", 4, 4096, 10, timespec(3)).timeout_s == 3.0
    assert decode("epoll_pwait2", 4, 4096, 10, 0).endless is True


FUTEX_WAIT, FUTEX_WAKE, FUTEX_LOCK_PI, FUTEX_WAIT_BITSET, PRIVATE, REALTIME = 0, 1, 6, 9, 128, 256


def test_futex_without_timeout_is_endless():
    for operation in (FUTEX_WAIT, FUTEX_WAIT | PRIVATE, FUTEX_WAIT_BITSET | REALTIME, FUTEX_LOCK_PI):
        call = decode("futex", 4096, operation, 2, 0)
        assert (call.endless, call.timeout_s, call.fd, call.fds) == (True, None, None, ())
    assert decode("futex", 4096, FUTEX_WAKE, 1, 0).endless is None


def test_futex_relative_and_absolute_timeouts():
    relative = decode("futex", 4096, FUTEX_WAIT | PRIVATE, 2, timespec(12))
    assert (relative.endless, relative.timeout_s) == (False, 12.0)
    now = time.monotonic()
    since_ns = int((now - 3) * 1e9)
    absolute = decode("futex", 4096, FUTEX_WAIT_BITSET | PRIVATE, 2, timespec(now + 7), since_ns=since_ns)
    assert absolute.timeout_s == pytest.approx(10, abs=0.01)
    wall = time.time()
    realtime = decode("futex", 4096, FUTEX_WAIT_BITSET | REALTIME, 2, timespec(wall + 7), since_ns=since_ns)
    assert realtime.timeout_s == pytest.approx(10, abs=1)
    unknown_age = decode("futex", 4096, FUTEX_WAIT_BITSET | PRIVATE, 2, timespec(now + 7))
    assert (unknown_age.endless, unknown_age.timeout_s) == (False, None)


def test_sleeps():
    assert decode("nanosleep", timespec(5), 0).timeout_s == 5.0
    assert decode("clock_nanosleep", time.CLOCK_MONOTONIC, 0, timespec(5)).timeout_s == 5.0
    now = time.monotonic()
    absolute = decode("clock_nanosleep", 1, 1, timespec(now + 5), since_ns=int((now - 1) * 1e9))
    assert absolute.timeout_s == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize(
    ("wchan", "args", "name"),
    [
        ("futex_wait_queue", (4096, 128, 2, 0), "futex"),
        ("poll_schedule_timeout.constprop.0", (0, 0, 1000), "poll"),
        ("hrtimer_nanosleep", (1, 0, 0x7F0000000000), "clock_nanosleep"),
        ("do_syscall_64", (0x7F0000000000, 0), "nanosleep"),
        ("", (1, 2, 3), "restart_syscall"),
        ("do_signal_stop", (1, 2, 3), "restart_syscall"),
    ],
)
def test_a_restarted_call_is_named_by_where_it_waits(wchan, args, name):
    if name == "poll" and "poll" not in syscalls.NUMBERS:
        return
    assert decode("restart_syscall", *args, wchan=wchan).name == name


def test_an_unknown_number_keeps_its_number():
    call = syscalls.decode(os.getpid(), 9999, (0,) * 6)
    assert (call.name, call.number, call.fd, call.endless) == ("syscall_9999", 9999, None, None)


def test_a_process_that_is_gone_gives_what_the_registers_say():
    call = syscalls.decode(2**22 - 1, syscalls.NUMBERS["ppoll"], (4096, 3, 8192, 0, 0, 0))
    assert (call.fds, call.endless, call.timeout_s) == ((), False, None)


def test_the_tables_have_no_name_twice_and_agree_where_numbers_are_shared():
    for table in (syscall_names.X86_64, syscall_names.ARM64):
        assert len(set(table.values())) == len(table)
    for number in range(424, 453):
        assert syscall_names.X86_64[number] == syscall_names.ARM64[number]


def test_the_calls_that_park_python_are_on_both_architectures():
    both = {"read", "recvfrom", "sendto", "connect", "accept4", "futex", "ppoll", "pselect6", "epoll_pwait"}
    for table in (syscall_names.X86_64, syscall_names.ARM64):
        assert both <= set(table.values())
    assert {"poll", "select", "epoll_wait"}.isdisjoint(syscall_names.ARM64.values())
