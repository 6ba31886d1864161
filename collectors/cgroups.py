"""The cgroup of a process: paths, the folder in the cgroup file system, and whether it is frozen.

Source: /proc/PID/cgroup; cgroup.events (v2) and freezer.state (v1) in the folder; without one the kernel function that
its main thread waits in, which tells it for v2 only. A container's own mount shows its own cgroup alone, and a path
from its cgroup namespace may lead above that ("/../.."): with the node's processes in sight the folder is reached by
way of process 1 (/proc/1/root), whose mount shows them all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from os.path import normpath
from pathlib import Path

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect

# Where a frozen task waits: v2 (a compiler may inline the first into the second, where nothing else sleeps so), and v1
# before Linux 6.1, which now leaves a task in the function that it waited in.
_FREEZERS = frozenset({"do_freezer_trap", "get_signal", "__refrigerator"})


NODE_PID = 1
CONTROLLERS = frozenset({"freezer", "memory"})
"""Those of version 1 that are asked for."""


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
        if controllers == "":
            controller, file, pattern = "cgroup2", "cgroup.events", r"^frozen 1$"
        elif "freezer" in controllers.split(","):
            controller, file, pattern = "freezer", "freezer.state", r"^FROZEN$"
        else:
            continue
        if any(_has_line(folder / file, pattern) for _, folder in folders(controller, path)):
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
    except (OSError, ValueError):
        return False


def folders(controller: str, path: str) -> Iterator[tuple[Path, Path]]:
    """(root, folder) of a cgroup in each place where it may be seen; "cgroup2" is the controller of version 2."""
    steps = path.removesuffix(" (deleted)").split("/")
    mount = _mounts().get(controller)
    if mount and ".." not in steps:
        yield Path(mount), Path(mount) / "/".join(steps).lstrip("/")
    mount = _node_mounts().get(controller)
    above = _above(controller) if mount and ".." in steps else "/"
    if mount and above is not None:
        root = f"/proc/{NODE_PID}/root{mount}"
        yield Path(root), Path(root + normpath(f"{above}/{path}"))


@cache
def _mounts() -> dict[str, str]:
    """Mount points here: "cgroup2", and controllers of version 1. They do not change while we run."""
    try:
        return parse_mounts(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except OSError:
        return {}


@cache
def _node_mounts() -> dict[str, str]:
    """Mount points of the node's process 1; nothing where process 1 is not the node's: its root is a stranger's."""
    if procfs.own_pids():
        return {}
    try:
        return parse_mounts(Path(f"/proc/{NODE_PID}/mountinfo").read_text(errors="surrogateescape"))
    except OSError:
        return {}


@cache
def _above(controller: str) -> str | None:
    """The root of our cgroup namespace as the node calls it; None when that is not to be found.

    Its folder is the one with the inode of our own mount's root, as deep as process 1 is above us.
    """
    shown = next((path for controllers, path in read_paths(NODE_PID) if _is(controller, controllers)), None)
    mount, node = _mounts().get(controller), _node_mounts().get(controller)
    if shown is None or mount is None or node is None:
        return None
    depth = shown.split("/").count("..")
    try:
        return _by_inode(f"/proc/{NODE_PID}/root{node}", "", depth, os.stat(mount).st_ino)
    except OSError:
        return None


def _is(controller: str, controllers: str) -> bool:
    return controller in controllers.split(",") if controllers else controller == "cgroup2"


def _by_inode(root: str, folder: str, depth: int, inode: int) -> str | None:
    if depth == 0:
        return folder if os.stat(root + folder).st_ino == inode else None
    with suppress(OSError), os.scandir(root + folder) as entries:
        below = [f"{folder}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
        return next((found for each in below if (found := _by_inode(root, each, depth - 1, inode)) is not None), None)
    return None


def parse_mounts(mountinfo: str) -> dict[str, str]:
    """ "cgroup2" or controller of version 1 -> where it is mounted first."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, described = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(described) < 3:
            continue
        if described[0] == "cgroup2":
            found.setdefault("cgroup2", fields[4])
        elif described[0] == "cgroup":
            for controller in set(described[2].split(",")) & CONTROLLERS:
                found.setdefault(controller, fields[4])
    return found
