"""What kind of musl's locks a futex word is, from bytes as they lie in memory (x86-64, musl 1.2.3)."""

from __future__ import annotations

import struct

import pytest
from stucktrace.collectors.futexes import AFTER_BYTES, Wait, Word
from stucktrace.collectors.musl_futexes import classify

ADDRESS = 0x7F7E2A232534
TIDS = (12076, 12256)
WAITERS = 0x80000000
PRIVATE, SHARED = 128, 0


def read(expected: int, before: tuple[int, ...], after: tuple[int, ...], address: int = ADDRESS, **more: int) -> Word:
    wait = Wait.of((address, more.get("operation", PRIVATE), expected, 0, 0, 0))
    assert wait is not None
    pack = [struct.pack(f"<{len(words)}I", *words) for words in (before, after)]
    return classify(wait, pack[0], pack[1].ljust(AFTER_BYTES, b"\0"), TIDS)


def test_an_error_checking_mutex_names_its_owner():
    found = read(WAITERS | 12256, (2,), (WAITERS | 12256, 1))
    assert (found.kind, found.owner, found.address) == ("pthread-mutex", 12256, ADDRESS - 4)


def test_a_recursive_mutex_counts_what_came_after_the_first():
    found = read(WAITERS | 12256, (1,), (WAITERS | 12256, 1, 0, 0, 2))
    assert (found.kind, found.owner, found.count) == ("pthread-mutex", 12256, 3)


def test_a_plain_mutex_has_no_owner():
    found = read(WAITERS | 16, (0,), (WAITERS | 16, 1))
    assert (found.kind, found.owner) == ("pthread-mutex", None)


def test_the_kernel_marks_a_shared_mutex_whose_owner_died():
    found = read(WAITERS | 0x40000000, (130,), (WAITERS | 0x40000000, 1), operation=SHARED)
    assert (found.kind, found.owner, found.died) == ("pthread-mutex", None, True)


@pytest.mark.parametrize("before", [(3,), (4096,), (130,)])
def test_another_type_before_the_word_is_no_mutex(before: tuple[int, ...]):
    assert read(WAITERS | 12256, before, (WAITERS | 12256, 1)).kind == "unknown"


def test_a_lock_inside_musl_has_no_count_of_waiters():
    assert read(WAITERS | 16, (0,), (WAITERS | 16, 0)).kind == "unknown"


def test_semaphores_and_read_write_locks_say_private_in_opposite_ways():
    eight = ADDRESS + 4
    assert read(0xFFFFFFFF, (), (0xFFFFFFFF, 1, 128), eight).kind == "semaphore"
    assert read(0x80000000, (), (0x80000000, 1, 128), eight).kind == "semaphore"
    written = read(0xFFFFFFFF, (), (0xFFFFFFFF, 1, 0), eight)
    assert (written.kind, written.owner) == ("rwlock", None)
    assert read(WAITERS | 1, (), (WAITERS | 1, 1, 0), eight).kind == "rwlock"


def test_a_condition_is_not_taken_for_a_mutex_of_glibc():
    """The word is 2, on the waiter's stack."""
    found = read(2, (0, 0), (2, 0, 12256, 1, 0))
    assert (found.kind, found.owner) == ("condition", None)


def test_a_join_names_the_thread():
    found = read(2, (12076, 0), (2, 0), ADDRESS + 4)
    assert (found.kind, found.owner) == ("join", 12076)
