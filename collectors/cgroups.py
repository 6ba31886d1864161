"""The cgroup of a process: paths, and whether it is frozen.

Source: /proc/PID/cgroup; cgroup.events (v2) and freezer.state (v1) where the cgroup file system is mounted here and the
path does not lead above our own cgroup namespace; else the kernel function that its main thread waits in, which tells
it for v2 only.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect

# Where a frozen task waits: v2 (a compiler may inline the first into the second, where nothing else sleeps so), and v1
# before Linux 6.1, which now leaves a task in the function that it waited in.
_FREEZERS = frozenset({"do_freezer_trap", "get_signal", "__refrigerator"})


def read_paths(pid: int) -> tuple[tuple[str, str], ...]:
    """(controllers, path) of each hierarchy; controllers is "" for version 2. () when not readable."""
    try:
        return parse(procfs.read(pid, "cgroup").decode(errors="replace"))
    except CannotInspect:
        return ()


def parse(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for line in text.splitlines():
        _, separator, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if separator:
            found.append((controllers, path))
    return tuple(found)


def frozen(pid: int, paths: tuple[tuple[str, str], ...]) -> bool:
    """The cgroup, or one above it, is frozen."""
    for controllers, path in paths:
        if ".." in path.split("/"):
            continue
        if controllers == "":
            mount, file, pattern = _mounts().get("cgroup2"), "cgroup.events", r"^frozen 1$"
        elif "freezer" in controllers.split(","):
            mount, file, pattern = _mounts().get("freezer"), "freezer.state", r"^FROZEN$"
        else:
            continue
        if mount and _has_line(Path(mount) / path.lstrip("/") / file, pattern):
            return True
    try:
        return (
            procfs.read(pid, "wchan", 128).decode(errors="replace").strip() in _FREEZERS
            and procfs.read_stat(pid).state in "SD"
        )
    except CannotInspect:
        return False


def _has_line(file: Path, pattern: str) -> bool:
    try:
        return re.search(pattern, file.read_text(), re.MULTILINE) is not None
    except OSError:
        return False


@cache
def _mounts() -> dict[str, str]:
    """Mount points here: "cgroup2", and "freezer" of version 1. They do not change while we run."""
    try:
        return parse_mounts(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except OSError:
        return {}


def parse_mounts(mountinfo: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, described = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(described) < 3:
            continue
        if described[0] == "cgroup2":
            found.setdefault("cgroup2", fields[4])
        elif described[0] == "cgroup" and "freezer" in described[2].split(","):
            found.setdefault("freezer", fields[4])
    return found
