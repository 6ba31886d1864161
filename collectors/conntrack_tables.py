"""The conntrack tables of a node that have entries: one a network namespace, with a socket to ask and one to listen,
which is not needed where conntrack_hooks.py hears of all tables.

Source: ctnetlink in every namespace that a process of this node lives in, or that has a name (/run/netns): routers in
between often hold no process. A socket keeps its namespace alive, so one that is otherwise gone is let go at the next
look. Needs NET_ADMIN, and SYS_ADMIN for namespaces other than the own one; without them
only how full a table is can be known (conntrack_proc.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from stucktrace.collectors import conntrack_proc, conntrack_stats, ctnetlink, netns, permission
from stucktrace.collectors.conntrack_events import Stream
from stucktrace.facts import ConntrackFact, Missing

MOST_TABLES = 512
LESS = "; without it a lost entry shows only once a worker waits for an answer"


@dataclass(eq=False)
class Table:
    """One namespace's."""

    netns: int
    path: str
    """A file that stands for the namespace."""
    where: str
    asking: socket.socket
    fact: ConntrackFact
    had_entries: bool = False
    stream: Stream | None = None
    asked: dict[int, int] = field(default_factory=dict)
    """Inode of a socket -> with how many names its entry was asked for here."""

    def close(self) -> None:
        self.asking.close()
        if self.stream is not None:
            self.stream.close()


class Tables:
    """All of the node's."""

    def __init__(self, *, listen: bool = True) -> None:
        self._listen = listen
        self._all: dict[int, Table] = {}
        self.missing: tuple[Missing, ...] = ()
        self.counted: dict[int, ConntrackFact] = {}
        """Namespace -> how full its table is, where that is all that may be known: those with entries."""

    def __iter__(self) -> Iterator[Table]:
        """Those with entries, now or before."""
        return (table for table in self._all.values() if table.had_entries)

    def get(self, inode: int) -> Table | None:
        return self._all.get(inode)

    def refresh(self) -> None:
        """Finds new namespaces, lets go of those that are gone, and reads every table's counters."""
        self.missing = ()
        before, self.counted = self.counted, {}
        found = dict(_namespaces()) if ctnetlink.is_there() else {}
        for inode in self._all.keys() - found.keys():
            self._all.pop(inode).close()
        for inode, (path, where) in found.items():
            table = self._all.get(inode)
            try:
                if table is None:
                    if len(self._all) < MOST_TABLES:
                        self._all[inode] = _open(inode, path, where, self._listen)
                    continue
                table.path = path
                fact = conntrack_stats.ask(table.asking, inode)
                table.fact = replace(fact, where=table.where, window_drop=max(0, fact.drop - table.fact.drop))
                table.had_entries = table.had_entries or fact.count > 0
                if table.had_entries and table.stream is None and self._listen:
                    table.stream = netns.enter(path, Stream)
            except PermissionError:
                self._count(inode, path, where, before.get(inode))
                own = inode == netns.own()
                because = (
                    "the kernel does not let it ask for entries" if own else "network namespaces cannot be entered"
                )
                remedy = permission.remedy("NET_ADMIN", *(() if own else ("SYS_ADMIN",)))
                self.missing = (Missing("conntrack", because, f"{remedy}{LESS}"),)
            except OSError:
                # Gone meanwhile.
                continue

    def _count(self, inode: int, path: str, where: str, before: ConntrackFact | None) -> None:
        pid = _pid(path)
        fact = conntrack_proc.fact(pid, inode, where) if pid is not None else None
        if fact is not None and fact.count:
            dropped = max(0, fact.drop - before.drop) if before is not None else 0
            self.counted[inode] = replace(fact, window_drop=dropped)

    def close(self) -> None:
        for table in self._all.values():
            table.close()
        self._all.clear()


def _pid(path: str) -> int | None:
    """Of /proc/PID/ns/net."""
    words = path.split("/")
    return int(words[2]) if words[1] == "proc" and words[2].isdecimal() and words[3] == "ns" else None


def _open(inode: int, path: str, where: str, listen: bool) -> Table:
    def there() -> Table:
        asking = ctnetlink.open_socket()
        try:
            fact = replace(conntrack_stats.ask(asking, inode), where=where)
            stream = Stream() if listen and fact.count else None
            return Table(inode, path, where, asking, fact, fact.count > 0, stream)
        except OSError:
            asking.close()
            raise

    return netns.enter(path, there)


def _namespaces() -> Iterator[tuple[int, tuple[str, str]]]:
    """(inode, (path, what to call it)), the surest path last: later ones replace earlier ones."""
    for inode, pid in list(netns.representatives()):
        command = ""
        with suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as file:
            command = f" ({file.read().strip()})"
        yield inode, (netns.path_of(pid), f"the network namespace of pid {pid}{command}")
    for inode, path in netns.named():
        yield inode, (path, f"the network namespace {Path(path).name}")
    for pid, where in (
        (1, "the network namespace of pid 1"),
        (os.getpid(), "the network namespace that stucktrace runs in"),
    ):
        own = netns.inode_of(pid)
        if own is not None:
            yield own, (netns.path_of(pid), where)
