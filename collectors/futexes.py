"""What kind of lock is behind a futex wait: read from the call's arguments and the bytes around its word (pure).

The same system call serves glibc's mutexes, semaphores, condition variables, read-write locks and joins, and CPython's
locks on top of them. An owner is named only where the kind is certain: the word after a shared semaphore's value is its
pshared flag and would read like "owner 128". Layouts are glibc's on 64-bit (x86-64 and arm64 alike; its 2.31, 2.36 and
2.41 were looked at):

    mutex      lock 0, count 4, owner 8, nusers 12, kind 16; waits for lock == 2 (or its owner's tid: PI and robust)
    semaphore  value 0, waiters 4, private 8 (0, or 128 when shared); waits for value == 0
    condition  the word is one of two signal counters; wrefs (waiters << 3 | flags) lies 4 or 8 bytes before it
    rwlock     readers 0, writers 4, wrphase 8, writers' futex 12, current writer 24, shared 28, flags 48
    barrier    in 0, round 4, count 8, shared 12, out 16; waits as long as its round lasts
    join       the tid field of the other thread's `struct pthread`; waits for it to become 0
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

# How much of the memory around the word `classify` wants to see.
BEFORE_BYTES = 48
AFTER_BYTES = 64

_WAIT, _LOCK_PI, _WAIT_BITSET, _LOCK_PI2 = 0, 6, 9, 13
_PRIVATE = 128
_TID_MASK = 0x3FFFFFFF
_WAITERS = 0x80000000
_MAX_TID = 1 << 22

# The bits of a mutex's __kind.
_KIND_TYPE, _KIND_ROBUST, _KIND_INHERIT, _KIND_PROTECT, _KIND_SHARED = 0x3, 0x10, 0x20, 0x40, 0x80
_KIND_KNOWN = _KIND_TYPE | _KIND_ROBUST | _KIND_INHERIT | _KIND_PROTECT | _KIND_SHARED | 0x100 | 0x200
_RECURSIVE = 1


@dataclass(frozen=True)
class Wait:
    """A futex call that waits, taken apart."""

    address: int
    operation: int
    private: bool
    expected: int

    @classmethod
    def of(cls, args: tuple[int, ...]) -> Wait | None:
        """None for an operation that does not wait, or one whose lock has no single word."""
        operation = args[1] & 0x7F
        if operation not in (_WAIT, _LOCK_PI, _WAIT_BITSET, _LOCK_PI2):
            return None
        return cls(args[0], operation, bool(args[1] & _PRIVATE), args[2] & 0xFFFFFFFF)


def is_on_mutex(args: tuple[int, ...]) -> bool:
    """The call sleeps until a mutex is free, for however long; as in bpf/inflight.bpf.c.

    What idle threads wait for looks different: glibc's semaphores, condition variables, joins and read-write locks use
    FUTEX_WAIT_BITSET, and so do CPython's locks, which are semaphores. A robust mutex has its owner in the word.
    """
    operation, expected = args[1] & 0x7F, args[2] & 0xFFFFFFFF
    if args[3]:
        return False
    if operation in (_LOCK_PI, _LOCK_PI2):
        return True
    return operation == _WAIT and (expected == 2 or bool(expected & _WAITERS and 0 < expected & _TID_MASK <= _MAX_TID))


@dataclass(frozen=True)
class Word:
    """What `classify` made of it. `owner` is the target's own tid."""

    kind: str
    address: int
    word: int
    owner: int | None = None
    count: int | None = None
    note: str = ""
    died: bool = False
    """The kernel marked it: its owner ended."""


def classify(wait: Wait, before: bytes, after: bytes, tids: Collection[int]) -> Word:
    """`before` ends and `after` begins at the word; `before` is shorter where nothing is mapped.

    `tids`: the process's threads, in its own view.
    """
    (word,) = struct.unpack_from("<I", after)
    unknown = Word("unknown", wait.address, word)
    after = after.ljust(AFTER_BYTES, b"\0")
    if wait.operation in (_LOCK_PI, _LOCK_PI2):
        # The kernel itself keeps the owner in the word.
        owner = word & _TID_MASK
        return Word("pi-mutex", wait.address, word, owner or None, _recursion(after))
    if wait.expected & _WAITERS and wait.expected & _TID_MASK:
        return _robust(wait, word, after) or unknown
    if wait.expected > 3 and wait.expected in tids:
        # The kernel clears the word when that thread ends.
        return Word("join", wait.address, word, wait.expected if word == wait.expected else None)
    if wait.expected in (2, 3):
        # A read-write lock has padding where a mutex has its owner: this order mistakes neither for the other.
        found = _mutex(wait, word, after) if wait.expected == 2 else None
        return found or _rwlock(wait, before, after) or unknown
    if wait.expected <= 1:
        found = _condition(wait, word, before, tids) or _semaphore(wait, word, after)
        return found or _barrier(wait, word, before, after) or unknown
    return _condition(wait, word, before, tids) or _barrier(wait, word, before, after) or unknown


def _mutex(wait: Wait, word: int, after: bytes) -> Word | None:
    count, owner, users, kind = struct.unpack_from("<IiII", after, 4)
    if kind & ~_KIND_KNOWN or kind & (_KIND_ROBUST | _KIND_INHERIT):
        return None
    if bool(kind & _KIND_SHARED) == wait.private or wait.address % 8:
        return None
    # Nobody owns it for the moment of a handover; the bare lock words inside glibc never have an owner or a user here.
    if not 0 < owner < _MAX_TID or not 0 < users < 4096:
        return None
    if (kind & _KIND_TYPE == _RECURSIVE) != (count > 0) or count > 1 << 20:
        return None
    return Word("pthread-mutex", wait.address, word, owner if word else None, count or None)


def _recursion(after: bytes) -> int | None:
    count, _, _, kind = struct.unpack_from("<IiII", after, 4)
    return count if not kind & ~_KIND_KNOWN and kind & _KIND_TYPE == _RECURSIVE and 0 < count < 1 << 20 else None


def _robust(wait: Wait, word: int, after: bytes) -> Word | None:
    _, owner, _, kind = struct.unpack_from("<IiII", after, 4)
    if kind & ~_KIND_KNOWN or not kind & _KIND_ROBUST:
        return None
    held = word & _TID_MASK
    # The word is taken before the field is written.
    return Word("robust-mutex", wait.address, word, held if held and held == owner else None, _recursion(after))


def _semaphore(wait: Wait, word: int, after: bytes) -> Word | None:
    waiters, private = struct.unpack_from("<II", after, 4)
    if wait.expected != 0 or wait.operation != _WAIT_BITSET or wait.address % 8:
        return None
    if private != (0 if wait.private else _PRIVATE) or not 0 < waiters < _MAX_TID:
        return None
    return Word("semaphore" if wait.private else "shared-semaphore", wait.address, word)


def _condition(wait: Wait, word: int, before: bytes, tids: Collection[int]) -> Word | None:
    if wait.operation not in (_WAIT, _WAIT_BITSET) or len(before) < 40:
        return None
    # The first counter lies on a multiple of eight behind wrefs, the second one word further.
    distance = 4 if wait.address % 8 == 0 else 8
    (references,) = struct.unpack_from("<I", before, len(before) - distance)
    shared, waiters = references & 1, references >> 3
    if bool(shared) == wait.private or not 0 < waiters <= (len(tids) if not shared else _MAX_TID):
        return None
    return Word("condition", wait.address, word, note="monotonic" if references & 2 else "")


def _barrier(wait: Wait, word: int, before: bytes, after: bytes) -> Word | None:
    if wait.operation != _WAIT or wait.address % 8 != 4 or len(before) < 4:
        return None
    (came,) = struct.unpack_from("<I", before, len(before) - 4)
    count, shared, went = struct.unpack_from("<III", after, 4)
    here = came - wait.expected
    if shared != (0 if wait.private else _PRIVATE) or not 0 < here < count < _MAX_TID or went > came:
        return None
    missing = count - here
    return Word("barrier", wait.address - 4, word, note=f"waits for {missing} more of {count} threads")


def _rwlock(wait: Wait, before: bytes, after: bytes) -> Word | None:
    if wait.operation != _WAIT_BITSET:
        return None
    around = before + after
    for distance in (8, 12):
        start = len(before) - distance
        if start < 0 or (wait.address - distance) % 8:
            continue
        readers, writers, phase, waiting, _, _, writer, shared = struct.unpack_from("<8I", around, start)
        (flags,) = struct.unpack_from("<I", around, start + 48)
        if flags > 2 or shared > 1 or bool(shared) == wait.private or phase > 3 or waiting > 3 or writers > _MAX_TID:
            continue
        if readers >> 3 > _MAX_TID:
            continue
        # Locked for writing, or held by at least one reader: else nobody would wait.
        if not readers & 2 and not readers >> 3:
            continue
        held = readers & 3 == 3 and 0 < writer < _MAX_TID
        if not held and writer:
            continue
        return Word("rwlock", wait.address - distance, readers, writer if held else None)
    return None
