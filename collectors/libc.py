"""Which C library a process runs on: its locks are laid out in its own way, and are read in no other's.

Source: the names of the mapped files; in a static program, which maps none, a word of glibc's start-up code
(GLIBC_TUNABLES, 2.26 and later).
"""

from __future__ import annotations

import re

from stucktrace.collectors import memory
from stucktrace.collectors.regions import Regions

GLIBC, MUSL, STATIC = "glibc", "musl", "static"
"""STATIC: linked statically, and not with glibc: musl, or a language's own."""

_GLIBC = re.compile(r"/(libc\.so\.6|libc-2\.\d+\.so|ld-linux[^/]*|ld-2\.\d+\.so)( \(deleted\))?$")
_MUSL = re.compile(r"/(ld-musl-[^/]*|libc\.musl-[^/]*|[^/]*musl[^/]*/libc\.so)( \(deleted\))?$")
_MARK = b"GLIBC_TUNABLES"
_MOST_BYTES = 64 << 20


def of(pid: int, mapped: Regions) -> str:
    """GLIBC where it cannot be told: nearly every process runs on it."""
    paths = {region.path for region in mapped.regions if region.path.startswith("/")}
    if any(_MUSL.search(path) for path in paths):
        return MUSL
    if any(_GLIBC.search(path) for path in paths) or not paths:
        return GLIBC
    left = _MOST_BYTES
    for region in mapped.regions:
        if not region.path.startswith("/") or region.shared or not region.permissions.startswith("r"):
            continue
        for start in range(region.start, region.end, memory.MAX_BYTES):
            length = min(memory.MAX_BYTES, region.end - start)
            left -= length
            if left < 0:
                return GLIBC
            try:
                if _MARK in memory.read_some(pid, start, length):
                    return GLIBC
            except (ProcessLookupError, PermissionError):
                raise
            except OSError:
                continue
    return STATIC
