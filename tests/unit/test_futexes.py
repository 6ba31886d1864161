"""What kind of lock a futex word is, from literal bytes as they were read from live processes (x86-64, glibc 2.36)."""

import struct

import pytest
from stucktrace.collectors.futexes import AFTER_BYTES, Wait, classify

ADDRESS = 0x7F7E2A232530
TIDS = (12076, 12256, 12388)
ENDLESS = 0xFFFFFFFF


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values).ljust(AFTER_BYTES, b"\0")


def wait(operation: int, expected: int, address: int = ADDRESS) -> Wait:
    found = Wait.of((address, operation, expected, 0, 0, ENDLESS))
    assert found is not None
    return found


def test_a_pthread_mutex_names_its_owner():
    found = classify(wait(0x80, 2), b"", words(2, 0, 12256, 1, 0), TIDS)
    assert (found.kind, found.owner, found.count) == ("pthread-mutex", 12256, None)


def test_a_mutex_with_a_deadline_is_not_a_read_write_lock():
    before = struct.pack("<4i", 0, 0, 706031112, 32638)
    found = classify(wait(0x189, 2), before, words(2, 0, 12256, 1, 0), TIDS)
    assert (found.kind, found.address, found.owner) == ("pthread-mutex", ADDRESS, 12256)


def test_a_recursive_mutex_has_a_count():
    found = classify(wait(0x80, 2), b"", words(2, 2, 12076, 1, 1), TIDS)
    assert (found.kind, found.owner, found.count) == ("pthread-mutex", 12076, 2)


def test_an_owner_that_is_no_thread_is_still_the_owner():
    assert classify(wait(0x80, 2), b"", words(2, 0, 4711, 1, 0), TIDS).owner == 4711


def test_a_shared_mutex_is_known_by_its_kind():
    found = classify(wait(0x00, 2), b"", words(2, 0, 12256, 1, 128), TIDS)
    assert (found.kind, found.owner) == ("pthread-mutex", 12256)


@pytest.mark.parametrize(
    "after",
    [
        words(2, 0, 0, 0, 0),  # a bare lock word of glibc, or a handover
        words(2, 0, 12256, 1, 7 << 16),  # no such kind
        words(2, 0, -5, 1, 0),  # no such tid
        words(2, 0, 1 << 23, 1, 0),
        words(2, 1, -411047552, 32637, 0),  # stdio's lock: a count and a pointer to its owner
        words(2, 0, 12256, 32637, 0),
        words(2, 3, 12256, 1, 0),  # a count without recursion
        words(2, 0, 12256, 1, 1),  # recursion without a count
        words(2, 0, 12256, 1, 128),  # a private wait on a shared mutex
    ],
)
def test_what_is_not_certainly_a_mutex_has_no_owner(after):
    found = classify(wait(0x80, 2), b"", after, TIDS)
    assert (found.kind, found.owner) == ("unknown", None)


def test_a_priority_inheritance_mutex_has_its_owner_in_the_word():
    found = classify(wait(0x86, 0), b"", words(-2147471572, 1, 12076, 1, 544), TIDS)
    assert (found.kind, found.owner) == ("pi-mutex", 12076)


def test_a_robust_mutex_waits_for_its_owners_tid():
    found = classify(wait(0x00, 0x80002F2C), b"", words(-2147471572, 1, 12076, 1, 144), TIDS)
    assert (found.kind, found.owner) == ("robust-mutex", 12076)


def test_a_private_semaphore_has_no_owner():
    before = struct.pack("<4i", 0, 0, 49, 0)
    found = classify(wait(0x189, 0, 0x563EF7F14B40), before, words(0, 2, 0, 0), TIDS)
    assert (found.kind, found.owner) == ("semaphore", None)


def test_a_shared_semaphore_is_not_owned_by_128():
    found = classify(wait(0x109, 0), b"", words(0, 1, 128, 0), TIDS)
    assert (found.kind, found.owner) == ("shared-semaphore", None)


def test_a_condition_variable_is_known_by_its_waiters():
    before = struct.pack("<12i", 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 8)
    found = classify(wait(0x189, 0, 0x7F7E2A2325D8), before, words(0, 0, 3, 0), TIDS)
    assert (found.kind, found.owner) == ("condition", None)


@pytest.mark.parametrize("distance", [8, 12])
def test_a_read_write_lock_names_the_writer_that_holds_it(distance):
    lock = struct.pack("<16i", 11, 0, 3, 3, 0, 0, 12076, *(0 for _ in range(9)))
    base = 0x7F7E2A23E4F0
    found = classify(wait(0x189, 3, base + distance), lock[:distance], lock[distance:], TIDS)
    assert (found.kind, found.address, found.owner) == ("rwlock", base, 12076)


def test_a_read_write_lock_held_by_readers_names_nobody():
    lock = struct.pack("<16i", 10, 0, 2, 1, *(0 for _ in range(12)))
    found = classify(wait(0x189, 2, 0x7F7E2A23DFF8), lock[:8], lock[8:], TIDS)
    assert (found.kind, found.owner) == ("rwlock", None)


def test_a_join_waits_for_a_threads_end():
    found = classify(wait(0x109, 12388), b"", words(12388, 0, -419440224, 32637), TIDS)
    assert (found.kind, found.owner) == ("join", 12388)


def test_a_word_that_ends_with_its_page_is_read_as_far_as_it_goes():
    assert classify(wait(0x80, 2), b"", struct.pack("<i", 2), TIDS).kind == "unknown"


@pytest.mark.parametrize("operation", [1, 3, 4, 5, 7, 10, 11, 12])
def test_calls_that_wait_for_no_single_word_are_left_out(operation):
    assert Wait.of((ADDRESS, operation, 0, 0, 0, 0)) is None


def test_random_bytes_never_raise():
    import random

    chance = random.Random(7)
    for _ in range(20_000):
        operation = chance.choice([0x00, 0x80, 0x89, 0x109, 0x189, 0x86, 0x06, 0x8D])
        expected = chance.choice([0, 1, 2, 3, 12388, 0x80002F2C, chance.getrandbits(32)])
        before, after = chance.randbytes(chance.choice([0, 16, 48])), chance.randbytes(chance.choice([4, 20, 64]))
        classify(wait(operation, expected, ADDRESS + chance.choice([0, 4, 8])), before, after, TIDS)
