"""The memory of a process's cgroup: its limit, what is used of it, and how often the kernel killed there for it.

Source: memory.max, memory.current and memory.events(.local) of version 2, memory.limit_in_bytes,
memory.usage_in_bytes and memory.oom_control of version 1; limits of the cgroups above count too.
None where its folder is not to be seen (cgroups.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors import cgroups

UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest number of pages."""


@dataclass(frozen=True)
class CgroupMemory:
    path: str
    """In the hierarchy as it is mounted where it was found."""
    limit_bytes: int | None = None
    """The lowest limit of the cgroup and those above it; None: there is none."""
    usage_bytes: int | None = None
    """Of the cgroup with that limit."""
    oom_kills: int | None = None
    """In the cgroup itself."""


@dataclass(frozen=True)
class _Version:
    limit: str
    usage: str
    events: tuple[str, ...]


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", ("memory.oom_control",))
_V2 = _Version("memory.max", "memory.current", ("memory.events.local", "memory.events"))


def read(paths: tuple[tuple[str, str], ...]) -> CgroupMemory | None:
    """`paths`: as `cgroups.read_paths` gives them."""
    for controllers, path in paths:
        if "memory" in controllers.split(","):
            controller, version = "memory", _V1
        elif not controllers:
            controller, version = "cgroup2", _V2
        else:
            continue
        for root, folder in cgroups.folders(controller, path):
            if _text(folder / version.usage):
                limit, usage = _lowest(root, folder, version)
                return CgroupMemory(f"/{folder.relative_to(root)}", limit, usage, _oom_kills(folder, version))
    return None


def _lowest(mount: Path, folder: Path, version: _Version) -> tuple[int | None, int | None]:
    found: tuple[int | None, int | None] = (None, _number(folder / version.usage))
    lowest = UNLIMITED_BYTES
    while folder.is_relative_to(mount) and folder != folder.parent:
        limit = _number(folder / version.limit)
        if limit is not None and limit < lowest:
            lowest = limit
            found = limit, _number(folder / version.usage)
        folder = folder.parent
    return found


def _oom_kills(folder: Path, version: _Version) -> int | None:
    for name in version.events:
        match = re.search(r"^oom_kill (\d+)$", _text(folder / name), re.MULTILINE)
        if match:
            return int(match[1])
    return None


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
