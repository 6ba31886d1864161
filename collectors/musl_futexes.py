"""What kind of lock of musl is behind a futex wait: from the call's arguments and the bytes around its word (pure).

Layouts on 64 bits, from musl 1.2.3 (src/internal/pthread_impl.h, src/thread, include/alltypes.h); 1.1.24 to 1.2.5 are
alike but for the semaphore's value. Who waits sets the highest bit of the word, and waits as long as it has that value:

    mutex      type 0, lock 4, waiters 8, count 20; the lock is the owner's tid, or EBUSY in a plain mutex, which has no
               owner; type: 0 plain, 1 recursive, 2 error-checking, and flags: 4 robust, 8 PI, 128 shared.
               Where the owner of a shared one dies, the kernel marks it, and unless it is robust it stays taken
    rwlock     lock 0, waiters 4, shared 8 (0, or 128 when shared); the lock is the number of readers, or all ones for a
               writer, who has no name
    semaphore  value 0, waiters 4, private 8 (128, or 0 when shared); waits for -1 (up to 1.2.3) or 0x80000000
    condition  a word on the waiter's own stack, 2 until it is notified; a shared one counts in the object
    join       the state of the other thread's descriptor, 2; its tid stands 8 bytes before

A mutex and an rwlock begin on multiples of eight, so their words do not lie on the same ones.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from stucktrace.collectors.futexes import AFTER_BYTES, Wait, Word

_WAIT, _LOCK_PI, _LOCK_PI2 = 0, 6, 13
_WAITERS = 0x80000000
_OWNER_DIED = 0x40000000
_TID_MASK = 0x3FFFFFFF
_MAX_TID = 1 << 22
_EBUSY = 16
_WRITER = _MINUS_ONE = 0x7FFFFFFF
_TYPE, _RECURSIVE, _ROBUST, _INHERIT, _SHARED = 3, 1, 4, 8, 128
_JOINABLE = _WAITING = 2


def classify(wait: Wait, before: bytes, after: bytes, tids: Collection[int]) -> Word:
    """As `futexes.classify`."""
    (word,) = struct.unpack_from("<I", after)
    after = after.ljust(AFTER_BYTES, b"\0")
    if wait.operation in (_LOCK_PI, _LOCK_PI2):
        # The kernel itself keeps the owner in the word.
        return Word("pi-mutex", wait.address - 4, word, word & _TID_MASK or None)
    unknown = Word("unknown", wait.address, word)
    if wait.operation != _WAIT:
        return unknown
    if wait.expected & _WAITERS:
        if wait.address % 8 == 4:
            return _mutex(wait, word, before, after) or unknown
        return _counted(wait, word, after) or unknown
    if wait.expected == _WAITING and wait.private and len(before) >= 8:
        return _parked(wait, word, before, tids) or unknown
    return unknown


def _mutex(wait: Wait, word: int, before: bytes, after: bytes) -> Word | None:
    if len(before) < 4:
        return None
    (kind,) = struct.unpack_from("<I", before, len(before) - 4)
    waiters, _, _, count = struct.unpack_from("<IIIi", after, 4)
    if kind & ~(_TYPE | _ROBUST | _INHERIT | _SHARED) or kind & _TYPE == _TYPE or bool(kind & _SHARED) == wait.private:
        return None
    if not 0 < waiters < _MAX_TID or (count and kind & _TYPE != _RECURSIVE) or not 0 <= count < 1 << 20:
        return None
    address, held = wait.address - 4, word & _TID_MASK
    if not kind & (_TYPE | _ROBUST | _INHERIT):
        if wait.expected != _WAITERS | _EBUSY:
            return None
        return Word("pthread-mutex", address, word, note="a plain mutex of musl keeps no owner")
    if wait.expected == _WAITERS | _OWNER_DIED and not kind & _ROBUST:
        return Word("pthread-mutex", address, word, died=word == wait.expected)
    if not 0 < wait.expected & _TID_MASK < _MAX_TID:
        return None
    owner = held if word == wait.expected else None
    again = count + 1 if kind & _TYPE == _RECURSIVE and owner else None
    return Word("robust-mutex" if kind & _ROBUST else "pthread-mutex", address, word, owner, again)


def _counted(wait: Wait, word: int, after: bytes) -> Word | None:
    """An rwlock, or a semaphore at zero: their third words say the same in opposite ways."""
    waiters, shared = struct.unpack_from("<II", after, 4)
    if not 0 < waiters < _MAX_TID or shared not in (0, _SHARED):
        return None
    number = wait.expected & ~_WAITERS
    if (shared == 0) == wait.private:
        return Word("rwlock", wait.address, word) if number == _WRITER or 0 < number < _MAX_TID else None
    if number not in (0, _MINUS_ONE):
        return None
    taken = word in (_WAITERS, _WAITERS | _MINUS_ONE)
    return Word("semaphore" if wait.private else "shared-semaphore", wait.address, 0 if taken else word & ~_WAITERS)


def _parked(wait: Wait, word: int, before: bytes, tids: Collection[int]) -> Word | None:
    before_it, just_before = struct.unpack_from("<iI", before, len(before) - 8)
    if wait.address % 8 == 0 and before_it in tids:
        return Word("join", wait.address, word, before_it if word == _JOINABLE else None)
    if wait.address % 8 == 4 and just_before == 0:
        return Word("condition", wait.address, word)
    return None
