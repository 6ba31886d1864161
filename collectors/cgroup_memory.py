"""The memory of a process's cgroup: its limit, what is used of it, and how often the kernel killed there for it.

Source: memory.max, memory.current and memory.events(.local) of version 2, memory.limit_in_bytes,
memory.usage_in_bytes and memory.oom_control of version 1; limits of the cgroups above count too.
None where the cgroup file system is not mounted here, or the path leads above our own cgroup namespace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest number of pages."""


@dataclass(frozen=True)
class CgroupMemory:
    path: str
    limit_bytes: int | None = None
    """The lowest limit of the cgroup and those above it; None: there is none."""
    usage_bytes: int | None = None
    """Of the cgroup with that limit."""
    oom_kills: int | None = None
    """In the cgroup itself."""


@dataclass(frozen=True)
class _Version:
    mount: str
    limit: str
    usage: str
    events: tuple[str, ...]


def read(paths: tuple[tuple[str, str], ...]) -> CgroupMemory | None:
    """`paths`: as `cgroups.read_paths` gives them."""
    for controllers, path in paths:
        version = _v1() if "memory" in controllers.split(",") else _v2() if not controllers else None
        if version is None or ".." in path.split("/"):
            continue
        folder = Path(version.mount) / path.lstrip("/")
        if not (folder / version.usage).exists():
            continue
        limit, usage = _lowest(Path(version.mount), folder, version)
        return CgroupMemory(path, limit, usage, _oom_kills(folder, version))
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


@cache
def _v1() -> _Version | None:
    mount = _mount("cgroup", "memory")
    return _Version(mount, "memory.limit_in_bytes", "memory.usage_in_bytes", ("memory.oom_control",)) if mount else None


@cache
def _v2() -> _Version | None:
    mount = _mount("cgroup2", "")
    return _Version(mount, "memory.max", "memory.current", ("memory.events.local", "memory.events")) if mount else None


def _mount(kind: str, controller: str) -> str:
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        fields, described = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(described) < 3 or described[0] != kind:
            continue
        if not controller or controller in described[2].split(","):
            return fields[4]
    return ""
