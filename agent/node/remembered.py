"""What is kept of the watched processes for the time when they are gone: who they were, and the last looks at them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from stucktrace.collectors import cgroups, procfs
from stucktrace.collectors.command_line import without_userinfo
from stucktrace.collectors.usage import Sample
from stucktrace.errors import CannotInspect
from stucktrace.facts import ProcessFact, Snapshot
from stucktrace.node.tracker import Tracked

LOOKS_KEPT = 512
"""A worker that hangs is looked at before its master ends it; so many may hang at once."""
MOST_THREADS_KEPT = 256
LONGEST_APPLICATION = 300


@dataclass(frozen=True)
class _Known:
    command: str = ""
    argv: tuple[str, ...] = ()
    ns_pid: int = 0
    uid: int = 0
    cgroups: tuple[tuple[str, str], ...] = ()


class Remembered:
    def __init__(self) -> None:
        self._known: dict[Tracked, _Known] = {}
        self._looks: OrderedDict[Tracked, Snapshot] = OrderedDict()

    def learn(self, processes: Mapping[int, Tracked]) -> None:
        """Reads who is new."""
        for process in processes.values():
            self.known(process)

    def known(self, process: Tracked) -> _Known:
        known = self._known.get(process)
        if known is None:
            known = self._known[process] = _read(process.pid)
        return known

    def forget(self, process: Tracked) -> None:
        self._known.pop(process, None)
        self._looks.pop(process, None)

    def examined(self, process: Tracked, snapshot: Snapshot) -> None:
        """The latest look at it."""
        if len(snapshot.threads) > MOST_THREADS_KEPT:
            return
        self._looks[process] = snapshot
        self._looks.move_to_end(process)
        while len(self._looks) > LOOKS_KEPT:
            self._looks.popitem(last=False)

    def argv(self, process: Tracked) -> tuple[str, ...]:
        return self.known(process).argv

    def cgroups_of(self, process: Tracked) -> tuple[tuple[str, str], ...]:
        return self.known(process).cgroups

    def application(self, process: Tracked) -> str:
        """The command line, which a worker has of its master: it tells one application from another."""
        return without_userinfo(" ".join(self.argv(process)))[:LONGEST_APPLICATION]

    def snapshot(self, process: Tracked, last: Sample | None, since: float) -> Snapshot:
        """The last look at it; the process alone where there was none since then, CLOCK_REALTIME."""
        look = self._looks.get(process)
        if look is not None and look.time >= since:
            return look
        known = self.known(process)
        fact = ProcessFact(
            process.pid,
            known.ns_pid or process.pid,
            process.ppid,
            process.start_time,
            known.command,
            known.argv,
            "S",
            uid=known.uid,
            age_s=procfs.age_s(process.start_time),
            rss_bytes=last.rss_bytes if last is not None else None,
            is_python=True,
            worker=replace(process.worker, last_notify_s=None, seconds_to_kill=None),
            container=process.container,
        )
        return Snapshot(time.time(), fact)


def _read(pid: int) -> _Known:
    try:
        status, argv = procfs.read_status(pid), procfs.read_argv(pid)
        # One that has ended has left its cgroups.
        paths = () if procfs.read_stat(pid).ending else cgroups.read_paths(pid)
        return _Known(
            status.get("Name", ""),
            argv,
            procfs.last_number(status.get("NSpid", ""), pid),
            procfs.first_number(status.get("Uid", "")),
            paths,
        )
    except CannotInspect:
        return _Known()
