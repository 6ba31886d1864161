"""Journals: files of msgpack records which survive a crash, and a directory of them that stays small.

A file is MAGIC, a format number (u32) and records: length (u32), CRC-32 of the payload (u32), payload. Integers are
little-endian. A file appears under its name complete or not at all: it is written beside it, synced and renamed. What
another program tore or cut still gives all whole records, and the reader says what is missing. Reading is bounded, for
a journal may come from anywhere.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from stucktrace.errors import JournalError

Json = dict[str, Any]

MAGIC = b"STUCKJNL"
FORMAT = 1
LONGEST_RECORD_BYTES = 16 << 20
LONGEST_FILE_BYTES = 128 << 20
MOST_ENTRIES = 1 << 17
"""Of one list or mapping in a record."""
_HEAD = struct.Struct("<8sI")
_RECORD = struct.Struct("<II")
_NAME = re.compile(r"stucktrace-\d{8}T\d{6}Z-[a-z-]{1,40}-[0-9a-f]{8}\.journal")
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\.\d+\.tmp")


def name(at: float, code: str, alert_id: str) -> str:
    """The file name of an alert's journal in a directory of journals."""
    return f"stucktrace-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}-{code}-{alert_id[:8]}.journal"


def pack(record: Json) -> bytes:
    """A record's payload. Texts from a target may hold bytes that are no UTF-8, as lone surrogates."""
    import msgpack

    packed: bytes = msgpack.packb(record, unicode_errors="surrogatepass", default=str)
    return packed


def unpack(payload: bytes) -> Json:
    """The record of a payload. ValueError when it is none."""
    import msgpack

    try:
        record = msgpack.unpackb(
            payload,
            strict_map_key=False,
            unicode_errors="surrogatepass",
            max_array_len=MOST_ENTRIES,
            max_map_len=MOST_ENTRIES,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"{type(error).__name__}: {error}"[:200]) from None
    if not isinstance(record, dict):
        raise ValueError("no mapping")
    return record


def write(path: Path, payloads: Iterable[bytes], before: Path | None = None) -> int:
    """Makes or replaces the file, with the records of the journal `before` in front. Readable by its owner only.

    How many records were too long, or one too many, and were left out. OSError when it fails: then `path` is as it was.
    """
    left_out = 0
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        unfinished.unlink()
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            # Held while it is written: `prune` tells it from one whose writer was killed.
            fcntl.flock(fd, fcntl.LOCK_EX)
            file.write(_HEAD.pack(MAGIC, FORMAT))
            if before is not None:
                with open(before, "rb") as earlier:
                    for payload in _payloads(earlier, before, lambda _: None):
                        left_out += not _append(file, payload)
            for payload in payloads:
                left_out += not _append(file, payload)
            file.flush()
            os.fsync(fd)
            unfinished.rename(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    _sync_directory(path.parent)
    return left_out


def _append(file: BinaryIO, payload: bytes) -> bool:
    if len(payload) > LONGEST_RECORD_BYTES or file.tell() + _RECORD.size + len(payload) > LONGEST_FILE_BYTES:
        return False
    file.write(_RECORD.pack(len(payload), zlib.crc32(payload)))
    file.write(payload)
    return True


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read(path: Path, torn: Callable[[str], None]) -> Iterator[Json]:
    """The records of a journal; `torn` is told, once, what is missing at its end. JournalError: it is no journal."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise JournalError(f"{path}: not a file", "give a file that the agent or `stucktrace record` wrote")
        if about.st_size > LONGEST_FILE_BYTES:
            raise JournalError(f"{path}: {about.st_size} bytes are too many for a stucktrace journal")
        with open(path, "rb") as file:
            yield from _records(file, path, torn)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None


def _records(file: BinaryIO, path: Path, torn: Callable[[str], None]) -> Iterator[Json]:
    for number, payload in enumerate(_payloads(file, path, torn)):
        try:
            record = unpack(payload)
        except ValueError as error:
            torn(f"record {number} cannot be read ({error})")
            return
        yield record


def _payloads(file: BinaryIO, path: Path, torn: Callable[[str], None]) -> Iterator[bytes]:
    """The whole records' payloads."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise JournalError(
            f"{path}: not a stucktrace journal", "give a file that the agent or `stucktrace record` wrote"
        )
    number = _HEAD.unpack(head)[1]
    if number != FORMAT:
        raise JournalError(
            f"{path}: a stucktrace journal of format {number}, and this version reads format {FORMAT}",
            "use the version that wrote it",
        )
    size, count = os.fstat(file.fileno()).st_size, 0
    while head := file.read(_RECORD.size):
        what = f"it is torn behind {count} whole records: the last {size - file.tell() + len(head)} bytes are lost"
        if len(head) < _RECORD.size:
            return torn(what)
        length, crc = _RECORD.unpack(head)
        if length > min(LONGEST_RECORD_BYTES, size - file.tell()):
            return torn(what)
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload) != crc:
            return torn(what)
        yield payload
        count += 1
    return None


def prune(directory: Path, most_bytes: int, oldest_s: float) -> None:
    """Removes journals that are too old, then the oldest until the rest is small enough, and what a killed writer left.

    Only files that were written here are touched: by their name and their first bytes. OSError when it fails.
    """
    found: list[tuple[float, int, Path]] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if _UNFINISHED.fullmatch(entry.name) and _abandoned(directory / entry.name):
                (directory / entry.name).unlink(missing_ok=True)
            elif _NAME.fullmatch(entry.name) and _is_journal(directory / entry.name):
                about = entry.stat(follow_symlinks=False)
                found.append((about.st_mtime, about.st_size, directory / entry.name))
    left, now = sum(size for _, size, _ in found), time.time()
    for written, size, path in sorted(found):
        if left <= most_bytes and now - written <= oldest_s:
            break
        path.unlink(missing_ok=True)
        left -= size


def _is_journal(path: Path) -> bool:
    with _plain_file(path) as file:
        return file is not None and file.read(len(MAGIC)) == MAGIC


def _abandoned(path: Path) -> bool:
    """Nobody writes this file any more: its writer held its lock to the end."""
    with _plain_file(path) as file:
        if file is None:
            return False
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return file.read(len(MAGIC)) in (b"", MAGIC)


@contextmanager
def _plain_file(path: Path) -> Iterator[BinaryIO | None]:
    """The open file; None where there is none, or something else: a FIFO without a writer must not hang us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        yield None
        return
    with open(fd, "rb") as file:
        yield file
