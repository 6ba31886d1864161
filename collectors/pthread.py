"""glibc's and musl's `struct pthread`: which kernel thread a pthread address (`threading.get_ident()`) belongs to.

The address alone names no thread: a thread that ended leaves its stack, and with it the address, to the next one, and a
forked child finds its parent's addresses in its own memory. The `tid` field inside tells: the kernel writes 0 there
when the thread ends, and fork clears it for all threads but the one that forked. Its offset on glibc is 0x2d0 on x86-64
(a TCB of 704 bytes and a list head before it) and 0xd0 on arm64 (24 words and a list head); where that does not fit
what is known of the process's threads (musl, an unusual build), it is searched for.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Collection, Iterable, Mapping

from stucktrace.collectors import memory

_KNOWN = {"x86_64": 0x2D0, "aarch64": 0xD0}
# No known libc keeps the field further in.
_SEARCHED_BYTES = 0x400
# The kernel's PID_MAX_LIMIT on 64 bits (include/linux/threads.h).
_TID_MAX = 4 * 1024 * 1024


def tid_offset(pid: int, idents: Iterable[int], ns_tids: Collection[int]) -> int | None:
    """Where `struct pthread` keeps its tid: an offset at which every one of `idents` names a thread of the process.

    Threads begin and end between the two readings, so at a known offset one of them is enough where the others hold
    what can be the tid of one that came or went; a searched offset needs all.
    """
    headers = [header for header in (_header(pid, ident) for ident in idents) if header is not None]
    if not headers:
        return _KNOWN.get(platform.machine())
    tids = set(ns_tids)
    known = _KNOWN.get(platform.machine())
    if known is not None:
        there = [_field(header, known) for header in headers]
        if not tids.isdisjoint(there) and all(0 <= value <= _TID_MAX for value in there):
            return known
    for offset in range(0, _SEARCHED_BYTES, 4):
        values = [_field(header, offset) for header in headers]
        if len(set(values)) == len(values) and all(value in tids for value in values):
            return offset
    return None


def tid(pid: int, ident: int, offset: int) -> int | None:
    """The target's own tid of the thread at `ident`: 0 for one that ended, None where nothing is mapped."""
    try:
        value: int = struct.unpack("<i", memory.read(pid, ident + offset, 4))[0]
    except ProcessLookupError:
        raise
    except OSError:
        return None
    return value if value >= 0 else None


def tids(pid: int, idents: Iterable[int], offset: int) -> Mapping[int, int]:
    """ident -> the target's own tid, for those that name a thread."""
    wanted = [ident for ident in dict.fromkeys(idents) if ident]
    words = memory.read_words(pid, [ident + offset for ident in wanted])
    return {ident: word & 0x7FFFFFFF for ident, word in zip(wanted, words, strict=True) if word is not None and word}


def _header(pid: int, ident: int) -> bytes | None:
    try:
        header = memory.read_some(pid, ident, _SEARCHED_BYTES)
    except OSError:
        return None
    return header.ljust(_SEARCHED_BYTES, b"\0")


def _field(header: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<i", header, offset)[0]
    return value
