"""One thread inside a futex call, and the word it waits on, as often as it is looked at.

Source: the arguments of the call, the memory around its word (`futexes.py` and `musl_futexes.py` tell the kind), and
what CPython 3.13+ keeps beside it on the thread's own stack.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from stucktrace.collectors import cpython_objects, futexes, libc, memory, usage
from stucktrace.collectors.futexes import Wait, Word
from stucktrace.collectors.regions import Regions
from stucktrace.facts import ThreadFact

_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """Where the waiters are."""

    pid: int
    mapped: Regions
    libc: str
    ns_tids: Mapping[int, ThreadFact]


@dataclass(frozen=True)
class Waiter:
    thread: ThreadFact
    wait: Wait
    word: Word
    lock: int
    """The lock's identity: the word's address, or the address that CPython parked the thread on."""
    parked: int | None = None
    """The first byte of a parked-on address."""
    event: bool = False
    """Parked for an event and not for a mutex."""

    @property
    def locked(self) -> bool:
        """A semaphore at 0, or the lowest bit of a parked-on mutex."""
        return bool(self.parked & 1) if self.parked is not None else self.word.word == 0


def wait_of(thread: ThreadFact) -> Wait | None:
    call = thread.syscall
    return Wait.of(call.args) if call is not None and call.name == "futex" and len(call.args) >= 3 else None


def look(place: Place, thread: ThreadFact, wait: Wait) -> Waiter | None:
    try:
        after = memory.read_some(place.pid, wait.address, futexes.AFTER_BYTES)
    except ProcessLookupError:
        raise
    except OSError as error:
        if error.errno == errno.EFAULT:
            # Unmapped while the thread waits in it: nobody can ever wake it through this word, but nothing is known.
            return None
        raise
    if len(after) < 4:
        return None
    before = _before(place.pid, wait.address)
    classify = futexes.classify
    if place.libc != libc.GLIBC:
        from stucktrace.collectors.musl_futexes import classify
    word = classify(wait, before, after, place.ns_tids)
    if word.kind == "semaphore" and (parked := _parked(place, thread, wait, before)) is not None:
        return Waiter(thread, wait, word, *parked)
    return Waiter(thread, wait, word, word.address)


def _before(pid: int, address: int) -> bytes:
    """What lies before the word: fewer bytes where its mapping begins there."""
    for length in (futexes.BEFORE_BYTES, min(address % _PAGE_BYTES, futexes.BEFORE_BYTES)):
        try:
            return memory.read(pid, address - length, length) if length else b""
        except ProcessLookupError:
            raise
        except OSError:
            continue
    return b""


def _parked(place: Place, thread: ThreadFact, wait: Wait, before: bytes) -> tuple[int, int, bool] | None:
    """Where CPython 3.13+ parked the thread, as it says beside the semaphore on the thread's own stack.

    (address, its first byte, an event and not a mutex.)
    """
    if len(before) < 16:
        return None
    argument, address = int.from_bytes(before[-16:-8], "little"), int.from_bytes(before[-8:], "little")
    region = place.mapped.find(wait.address)
    if region is None or place.mapped.find(address) is None:
        return None
    pointer = cpython_objects.stack_pointer(place.pid, thread.tid)
    if pointer is None or not region.start <= pointer < wait.address < region.end:
        return None
    try:
        value = memory.read(place.pid, address, 1)[0]
    except ProcessLookupError:
        raise
    except OSError:
        return None
    return address, value, argument == 0


def in_call(pid: int, waiter: Waiter) -> bool:
    """Still in the same call on the same word; True where that cannot be read, for the word itself did not move."""
    fields = cpython_objects.call_fields(pid, waiter.thread.tid)
    if fields is None:
        return True
    return len(fields) > 3 and fields[1] == hex(waiter.wait.address)


def woke(pid: int, thread: ThreadFact) -> bool:
    """It has run since it was looked at. A thread that waits again and again for a busy lock is its owner in between:
    who it waited for then is not known. One that polls with a timeout runs all the time, and is taken as it is."""
    return thread.syscall is not None and thread.syscall.endless is True and bool(usage.has_run(pid, thread))
