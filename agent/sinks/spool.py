"""Alerts on disk until their sink has taken them: one directory a sink, one file an item, oldest first.

A file is MAGIC, the CRC-32 of the rest, the rest; its name is the item's number in the queue. It is written under
another name, synced and renamed, so a reader meets all of it or nothing, also after kill -9; after a power cut the CRC
decides.
What else lies in the directory is left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from stucktrace.errors import CannotInspect

MAGIC = b"stktrc1\n"
NAME = re.compile(r"[0-9]{20}\.item", re.ASCII)
UNFINISHED = re.compile(r"[0-9]{20}\.new", re.ASCII)
LARGEST_BYTES = 64 << 20
"""Nothing of ours is larger."""


class Torn(Exception):
    """The file is not a whole item."""


def lock(directory: Path) -> int:
    """A file descriptor that keeps other agents out of `directory`, made if need be; closing it lets go.

    OSError when the directory cannot be used; CannotInspect when another agent uses it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CannotInspect(
            f"the spool directory {directory} is in use by another agent", "give each agent a spool of its own"
        ) from None
    return descriptor


class Spool:
    """The items of one sink. Every method may raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            # What could not be removed once it is delivered would be delivered again.
            raise PermissionError(f"{directory} cannot be written")
        entries = sorted(directory.iterdir())
        for entry in entries:
            if UNFINISHED.fullmatch(entry.name):
                entry.unlink()
        self.found = tuple(
            (int(entry.stem), entry.lstat().st_size)
            for entry in entries
            if NAME.fullmatch(entry.name) and not entry.is_dir()
        )
        """(number, size in bytes) of the items that an earlier process left, oldest first."""

    def write(self, number: int, data: bytes) -> None:
        unfinished = self._directory / f"{number:020}.new"
        try:
            descriptor = os.open(
                unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with open(descriptor, "wb", buffering=0) as file:
                left = memoryview(MAGIC + struct.pack("<I", zlib.crc32(data)) + data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(descriptor)
            unfinished.rename(self._path(number))
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self, number: int) -> bytes:
        """Torn when it is not what was written."""
        descriptor = os.open(self._path(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            whole = file.read(LARGEST_BYTES)
        head, data = whole[: len(MAGIC) + 4], whole[len(MAGIC) + 4 :]
        if head != MAGIC + struct.pack("<I", zlib.crc32(data)):
            raise Torn
        return data

    def remove(self, number: int) -> None:
        with suppress(FileNotFoundError):
            self._path(number).unlink()

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:020}.item"
