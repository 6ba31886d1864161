"""Where a Celery beat keeps its schedule, and how long it sleeps: enough to tell that two beats run the same one.

Source: the command line, the fd table, and the schedule file in the process's own root. Of the environment only a hash
is kept: it tells two deployments of one command apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from stucktrace.collectors import command_line, interpreter, openfiles, procfs, regions, startup, target_files
from stucktrace.errors import StucktraceError

MAX_INTERVAL_S = 300.0
SCHEDULE = "celerybeat-schedule"
_SUFFIXES = ("", ".db", ".dat", ".dir")
"""What the kinds of dbm call their files."""
_SETTINGS = re.compile(r"BROKER|CELERY|DJANGO|DATABASE|REDIS|AMQP|RABBIT|SETTINGS|CONFIG|URL|DB|HOST|ENV")


@dataclass(frozen=True)
class Plan:
    """One beat's schedule, as far as it shows."""

    argv: tuple[str, ...]
    scheduler: str = ""
    """As the command line names it."""
    open_files: frozenset[tuple[int, int, str]] = frozenset()
    """(device, inode, path) of the schedule that it has open."""
    place: tuple[int, int, str] | None = None
    """(device, inode, name): the folder and the name of the schedule file, where there is one."""
    path: str = ""
    written: float = 0.0
    """When that file was last written, CLOCK_REALTIME."""
    home: tuple[int | str, ...] | None = None
    """Its root, working directory and user."""
    settings: int | None = None
    """Hash of the environment as far as it may choose a broker or a database."""


def longest_sleep(argv: Sequence[str]) -> tuple[float, str]:
    """How long a beat with this command line sleeps between two ticks, and where that stands."""
    given = command_line.number(_option(argv, "--max-interval"))
    return (given, "--max-interval") if given else (MAX_INTERVAL_S, "the default of beat_max_loop_interval")


def read(pid: int, argv: tuple[str, ...]) -> Plan:
    """Raises nothing: what cannot be read is not there."""
    plan = Plan(argv, _option(argv, "-S", "--scheduler") or "", _open_files(pid), home=_home(pid))
    environ = _environ(pid)
    chosen = None if environ is None else frozenset(item for item in environ.items() if _SETTINGS.search(item[0]))
    name = _option(argv, "-s", "--schedule", "--schedule-filename") or SCHEDULE
    path = os.path.normpath(f"{procfs.read_link(pid, 'cwd')}/{name}" if not name.startswith("/") else name)
    folder = _stat(pid, path.rpartition("/")[0] or "/")
    written = [status.st_mtime for suffix in _SUFFIXES if (status := _stat(pid, path + suffix)) is not None]
    line = command_line.read(argv)
    known = bool(written) and folder is not None and (bool(line.arguments) or not line.title)
    return Plan(
        plan.argv,
        plan.scheduler,
        plan.open_files,
        (folder.st_dev, folder.st_ino, path.rpartition("/")[2]) if known and folder is not None else None,
        path,
        max(written, default=0.0),
        plan.home,
        None if chosen is None else hash(chosen),
    )


def same(older: Plan, younger: Plan, younger_began: float) -> tuple[str, bool] | None:
    """(the schedule file or "", both have it open) of two beats of one schedule; None: that is not known of them.

    - Both have one file open, or both write the same path: a file that nobody has written since the younger one began
      belongs to a scheduler that neither uses.
    - Without a file: the same command with the same scheduler, root, working directory, user and settings.
    """
    shared = older.open_files & younger.open_files
    if shared:
        return min(shared)[2], True
    if older.scheduler and not older.scheduler.endswith("PersistentScheduler"):
        alike = (older.argv, older.home, older.settings) == (younger.argv, younger.home, younger.settings)
        return ("", False) if alike and older.home is not None and older.settings is not None else None
    if younger.scheduler and not younger.scheduler.endswith("PersistentScheduler"):
        return None
    if older.place is None or older.place != younger.place:
        return None
    in_use = bool(older.open_files or younger.open_files) or max(older.written, younger.written) > younger_began
    return (younger.path, False) if in_use else None


def _option(argv: Sequence[str], *names: str) -> str | None:
    return command_line.option(command_line.read(argv).arguments, *names)


def _open_files(pid: int) -> frozenset[tuple[int, int, str]]:
    found = set()
    with suppress(StucktraceError):
        for fd, link in openfiles.read_fds(pid).links.items():
            if link.startswith("/") and "schedule" in link.rpartition("/")[2]:
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{fd}")
                    found.add((status.st_dev, status.st_ino, link.removesuffix(" (deleted)")))
    return frozenset(found)


def _stat(pid: int, path: str) -> os.stat_result | None:
    try:
        fd = target_files.open_inside(pid, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _environ(pid: int) -> dict[str, str] | None:
    """From memory where a process title was written over it."""
    environ = procfs.read_environ(pid)
    if environ is not None:
        return environ
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped)
    except OSError:
        return None
    return startup.read_environ(pid, mapped, found) if found is not None else None


def _home(pid: int) -> tuple[int | str, ...] | None:
    try:
        root, cwd = os.stat(f"/proc/{pid}/root"), os.stat(f"/proc/{pid}/cwd")
        user = procfs.read_status(pid).get("Uid", "")
    except (OSError, StucktraceError):
        return None
    return root.st_dev, root.st_ino, cwd.st_dev, cwd.st_ino, user
