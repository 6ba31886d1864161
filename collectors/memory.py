"""Reads another process's memory: process_vm_readv(2) through ctypes, else /proc/PID/mem.

Nothing is stopped and nothing is written. A value can change between two reads: callers that conclude something from
memory read it twice. Errors are OSErrors: ProcessLookupError (gone), PermissionError (ptrace access mode), EFAULT (the
range is not mapped). No caller may ask for more than `MAX_BYTES` at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stucktrace.errors import CollectorError

MAX_BYTES = 16 << 20
# The kernel takes at most UIO_MAXIOV vectors in one call.
_MAX_VECTORS = 1024


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_readv = getattr(_libc, "process_vm_readv", None)
if _readv is not None:
    _readv.restype = ctypes.c_ssize_t
    _readv.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(_Vector),
        ctypes.c_ulong,
        ctypes.POINTER(_Vector),
        ctypes.c_ulong,
        ctypes.c_ulong,
    )


def permission_remedy() -> str:
    """What would let its memory be read, which was refused."""
    from stucktrace.collectors import permission

    return permission.remedy("SYS_PTRACE", otherwise="run as the target's user")


class MemoryChanged(CollectorError):
    """What was there a moment ago is gone, or is not what it was."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Around a collector's reads: what they raise becomes a CollectorError that says why, or MemoryChanged."""
    try:
        yield
    except (ProcessLookupError, FileNotFoundError):
        raise CollectorError(what, "the process ended", "") from None
    except PermissionError:
        raise CollectorError(what, "its memory may not be read", permission_remedy()) from None
    except OSError as error:
        raise MemoryChanged(what, f"its memory could not be read: {error.strerror}", "run stucktrace again") from None
    except struct.error:
        raise MemoryChanged(what, "its memory changed while it was read", "run stucktrace again") from None


def read(pid: int, address: int, length: int) -> bytes:
    """Exactly `length` bytes at `address` of process `pid`. Raises OSError, EFAULT when a part is not mapped."""
    data = read_some(pid, address, length)
    if len(data) != length:
        raise OSError(errno.EFAULT, f"only {len(data)} of {length} bytes at {address:#x} are mapped")
    return data


def read_some(pid: int, address: int, length: int) -> bytes:
    """Up to `length` bytes at `address`: ends early where the mapping ends. Raises OSError when not a byte is there."""
    if not 0 <= length <= MAX_BYTES:
        raise ValueError(f"{length} bytes in one read")
    if not 0 < address < 1 << 63:
        raise OSError(errno.EFAULT, f"{address:#x} is no user-space address")
    if length == 0:
        return b""
    buffer = ctypes.create_string_buffer(length)
    taken = _call(pid, [(address, length)], buffer, length)
    if taken is None:
        return _read_mem_file(pid, address, length)
    return buffer.raw[:taken]


def read_words(pid: int, addresses: Sequence[int]) -> list[int | None]:
    """The 64-bit words at `addresses`, None where nothing is mapped. One system call for each 1024 that are mapped."""
    words: list[int | None] = [None] * len(addresses)
    index = 0
    while index < len(addresses):
        batch = addresses[index : index + _MAX_VECTORS]
        values = _read_batch(pid, batch)
        words[index : index + len(values)] = values
        # The kernel stops at the first vector that is not mapped: that one stays None, and reading goes on behind it.
        index += len(values) if len(values) == len(batch) else len(values) + 1
    return words


def read_each(pid: int, addresses: Sequence[int], length: int) -> list[bytes]:
    """Up to `length` bytes at each address, b"" where nothing is mapped. Few system calls."""
    return read_ranges(pid, [(address, length) for address in addresses])


def read_ranges(pid: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Up to so many bytes at each address, b"" where nothing is mapped. One system call for each 1024 that are, or for
    each `MAX_BYTES`."""
    found: list[bytes] = []
    while len(found) < len(ranges):
        batch = ranges[len(found) : len(found) + _MAX_VECTORS]
        while (size := sum(length for _, length in batch)) > MAX_BYTES:
            if len(batch) == 1:
                raise ValueError(f"{size} bytes in one read")
            batch = batch[: len(batch) // 2]
        buffer = ctypes.create_string_buffer(size)
        try:
            taken = _call(pid, batch, buffer, size)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            taken = 0
        if taken is None:
            found += [_read_alone(pid, *each) for each in batch]
            continue
        place, data = 0, buffer.raw
        for _, length in batch:
            if place + length > taken:
                # Not mapped to its end: this one alone, and on behind it.
                found.append(_read_alone(pid, *ranges[len(found)]))
                break
            found.append(data[place : place + length])
            place += length
    return found


def places_of(data: bytes, word: int) -> Iterator[int]:
    """Where this word (not 0) stands in `data`, which begins on a multiple of eight, at multiples of eight."""
    # Without its zeros at the end the search skips memory that was never used.
    whole = word.to_bytes(8, "little")
    needle = whole.rstrip(b"\0")
    place = data.find(needle)
    while place >= 0:
        if place % 8 == 0 and data[place : place + 8] == whole:
            yield place
        place = data.find(needle, place + 1)


def _read_alone(pid: int, address: int, length: int) -> bytes:
    try:
        return read_some(pid, address, length)
    except (ProcessLookupError, PermissionError):
        raise
    except OSError:
        return b""


def _read_batch(pid: int, addresses: Sequence[int]) -> list[int]:
    size = 8 * len(addresses)
    buffer = (ctypes.c_uint64 * len(addresses))()
    try:
        taken = _call(pid, [(address, 8) for address in addresses], buffer, size)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return []
    if taken is None:
        values = []
        for address in addresses:
            try:
                values.append(int.from_bytes(_read_mem_file(pid, address, 8), "little"))
            except OSError:
                break
        return values
    return list(buffer[: taken // 8])


def _call(pid: int, ranges: Sequence[tuple[int, int]], buffer: object, size: int) -> int | None:
    """Bytes taken, or None where the call itself is refused (a seccomp filter, an old kernel)."""
    if _readv is None:
        return None
    local = _Vector(ctypes.addressof(buffer), size)  # type: ignore[arg-type]
    remote = (_Vector * len(ranges))(*(_Vector(address, length) for address, length in ranges))
    taken: int = _readv(pid, ctypes.byref(local), 1, remote, len(ranges), 0)
    if taken >= 0:
        return taken
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):
        return None
    raise OSError(number, os.strerror(number))


def _read_mem_file(pid: int, address: int, length: int) -> bytes:
    if not 0 <= address < 1 << 63:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, length, address)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    except OSError as error:
        if error.errno == errno.EIO:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None
        raise
    if not data:
        # An address space that is gone (the process is exiting) reads as empty.
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return data
