"""The cgroup of a process: paths, and whether it is frozen. Source: /proc/PID/cgroup, cgroup.events, freezer.state."""

from __future__ import annotations

import re
from pathlib import Path

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect

_ROOT = Path("/sys/fs/cgroup")


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


def frozen(paths: tuple[tuple[str, str], ...]) -> bool:
    """The cgroup, or one above it, is frozen. False also when the cgroup file system cannot be seen from here."""
    for controllers, path in paths:
        relative = path.lstrip("/")
        if controllers == "" and ".." not in relative:
            for root in (_ROOT, _ROOT / "unified"):
                if _has_line(root / relative / "cgroup.events", r"^frozen 1$"):
                    return True
        elif "freezer" in controllers.split(",") and _has_line(
            _ROOT / "freezer" / relative / "freezer.state", r"^(FROZEN|FREEZING)$"
        ):
            return True
    return False


def _has_line(file: Path, pattern: str) -> bool:
    try:
        return re.search(pattern, file.read_text(), re.MULTILINE) is not None
    except OSError:
        return False
